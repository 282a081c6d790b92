"""Build an image from a Containerfile: each step makes a layer, or changes the configuration.

RUN runs in a container of ours, as `pymigrate run` makes it; what it left in its upper directory
becomes the layer. Nothing has a name before all has succeeded: a step that fails leaves only the
layers of those before it, which the next build uses, or `image prune` removes.
"""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pymigrate.runtime import (
    accounts,
    build_cache,
    build_context,
    build_layers,
    containerfile,
    errors,
    image_record,
    oci_documents,
    rootfs,
    syscalls,
    tree,
)
from pymigrate.runtime.build_cache import Cache, Made
from pymigrate.runtime.build_context import Context, Ignored, Item
from pymigrate.runtime.containerfile import Instruction, Stage
from pymigrate.runtime.host import Host
from pymigrate.runtime.image_record import Image, ImageConfig
from pymigrate.runtime.images import Store
from pymigrate.runtime.tree_layer import Below

_SHELL = ("/bin/sh", "-c")
# Known without an ARG, and not part of the cache's key, as docker has it.
_PROXIES = frozenset(
    name for each in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (each, each.upper())
)  # fmt: skip

RunCommand = Callable[["Step"], tuple[int, Path, Callable[[], None]]]
"""Run a command; returns its exit code, the directory of its changes, and what removes it all."""


@dataclass(frozen=True)
class Options:
    """What a person wants of a build."""

    context: Path
    text: str  # of the Containerfile
    reference: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    use_cache: bool = True


@dataclass(frozen=True)
class Step:
    """A command of RUN, and on what it is run."""

    layers: tuple[str, ...]
    command: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str


@dataclass(frozen=True)
class _State:
    """How far a stage has come."""

    layers: tuple[str, ...] = ()
    size: int = 0
    config: ImageConfig = field(default_factory=ImageConfig)
    arguments: Mapping[str, str] = field(default_factory=dict)
    has_own_command: bool = False

    @property
    def variables(self) -> dict[str, str]:
        """What ${…} means: the environment wins over arguments of the same name."""
        return {**self.arguments, **_pairs(self.config.env)}


class Builder:
    """One build; not to be used twice."""

    def __init__(
        self, host: Host, options: Options, run: RunCommand, say: Callable[[str], None]
    ) -> None:
        """``say`` is told of each step; ``run`` runs what RUN says."""
        self._host = host
        self._store = Store(host)
        self._options = options
        self._run = run
        self._say = say
        self._cache = Cache(host.cache / "builds.json")
        self._done: list[tuple[Stage, _State]] = []
        self._undo = ExitStack()
        self._has_mounts = False

    def build(self) -> Image:
        """Build all stages that the last one, or the one asked for, may need.

        Raises:
            UsageError: the Containerfile or a path in it is wrong.
            ContainerError: a command failed.

        """
        read = containerfile.parse(self._options.text)
        context = Context.open(self._options.context)
        wanted = self._wanted(read.stages)
        stages = read.stages[: wanted + 1]
        shared = self._global_arguments(read.arguments)
        total = sum(1 + len(stage.instructions) for stage in stages)
        number = 0
        with self._undo:
            for stage in stages:
                number += 1
                self._say(f"STEP {number}/{total}: {stage.base}")
                now = self._base(stage, shared)
                for each in stage.instructions:
                    number += 1
                    self._say(f"STEP {number}/{total}: {each}")
                    now = self._step(each, now, context, shared)
                self._done.append((stage, now))
        if not now.layers:
            raise errors.ImageError("the image would be empty; no image was made")
        layers = image_record.with_layers_once(now.layers)
        return self._store.name(self._options.reference, layers, now.config, now.size)

    def _wanted(self, stages: Sequence[Stage]) -> int:
        target = self._options.target
        if target is None:
            return len(stages) - 1
        for index, stage in enumerate(stages):
            if target.lower() in (stage.name, str(index)):
                return index
        raise errors.UsageError(f"--target {target}: no such stage; no image was made")

    def _global_arguments(self, instructions: Sequence[Instruction]) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in instructions:
            for name, default in _arguments(each, found):
                value = self._options.arguments.get(name, default)
                if value is not None:
                    found[name] = value
        return found

    def _base(self, stage: Stage, shared: Mapping[str, str]) -> _State:
        name = containerfile.word(stage.base.value.split()[0], shared)
        platform = stage.base.flags.get("platform")
        machine = oci_documents.architectures(os.uname().machine)
        if platform is not None and platform not in (f"linux/{each}" for each in machine):
            raise stage.base.wrong(f"--platform={platform} is not this machine's")
        arguments = {
            key: value for key, value in self._options.arguments.items() if key in _PROXIES
        }
        if name == "scratch":
            return _State(arguments=arguments, config=_dated(ImageConfig()))
        earlier = self._stage(name)
        if earlier is not None:
            return replace(earlier, arguments=arguments, has_own_command=False)
        try:
            image = self._store.get(name)
        except errors.NotFound as error:
            error.hint = "pymigrate image import or bootstrap makes it; nothing is downloaded"
            raise
        return _State(image.layers, image.size, _dated(image.config), arguments)

    def _stage(self, name: str) -> _State | None:
        for index, (stage, done) in enumerate(self._done):
            if name.lower() in (stage.name, str(index)):
                return done
        return None

    def _step(
        self, each: Instruction, now: _State, context: Context, shared: Mapping[str, str]
    ) -> _State:
        if each.name == "RUN":
            return self._do_run(each, now)
        if each.name in ("COPY", "ADD"):
            return self._do_copy(each, now, context)
        if each.name == "WORKDIR":
            return self._do_workdir(each, now)
        if each.name == "ARG":
            found = dict(now.arguments)
            for name, default in _arguments(each, now.variables):
                value = self._options.arguments.get(name, shared.get(name, default))
                if value is not None:
                    found[name] = value
            return replace(now, arguments=found)
        return _configured(each, now)

    # Steps that make layers

    def _layered(self, now: _State, key: str, make: Callable[[], tree.Summary]) -> _State:
        """Add the layer of a step, from the cache if it is there."""
        made = self._cache.find(key) if self._options.use_cache else None
        if made is not None and (made.layer is None or not self._store.missing((made.layer,))):
            self._say("  as before")
        else:
            summary = make()
            made = Made(summary.digest if summary.files else None, summary.bytes)
            self._cache.keep(key, made)
        if made.layer is None:
            return now
        return replace(now, layers=(*now.layers, made.layer), size=now.size + made.size)

    def _do_run(self, each: Instruction, now: _State) -> _State:
        if not now.layers:
            raise each.wrong("there is nothing to run in an empty image")
        command = each.words if each.words is not None else (*_shell(now.config), each.value)
        if not command:
            raise each.wrong("there is no command")
        secret = {name: value for name, value in now.arguments.items() if name in _PROXIES}
        env = {**now.arguments, **_pairs(now.config.env)}
        config = now.config
        step = Step(
            image_record.with_layers_once(now.layers),
            command,
            tuple(f"{name}={value}" for name, value in env.items()),
            config.working_dir,
            config.user,
        )
        named = sorted(pair for pair in env.items() if pair[0] not in secret)
        key = build_cache.key(now.layers, "RUN", command, named, config.working_dir, config.user)

        def make() -> tree.Summary:
            exit_code, upper, remove = self._run(step)
            with ExitStack() as undo:
                undo.callback(remove)
                if exit_code != 0:
                    raise errors.ContainerError(
                        f"line {each.line}, RUN: the command failed with exit code {exit_code}; "
                        "no image was made"
                    )
                return self._store.add_layer(build_layers.changed(upper, self._below(now)))

        return self._layered(now, key, make)

    def _do_copy(self, each: Instruction, now: _State, context: Context) -> _State:
        words = each.words
        if words is None:
            words = tuple(containerfile.words(each.value, now.variables))
        else:
            words = tuple(containerfile.word(word, now.variables) for word in words)
        if len(words) < 2:
            raise each.wrong("must name what to copy and where to")
        if each.name == "ADD" and any("://" in word or word.startswith("git@") for word in words):
            raise each.wrong("nothing is downloaded", hint="fetch it, then COPY it")
        below = self._below(now)
        if "from" in each.flags:
            context = self._other_context(containerfile.word(each.flags["from"], now.variables))
        items = self._items(each, words, now, context, below)
        dress = self._dress(each, now)
        key = build_cache.key(
            now.layers, each.name, build_context.digest(items), [dress.uid, dress.gid, dress.mode]
        )
        make = build_layers.copied(items, below, dress)
        return self._layered(now, key, lambda: self._store.add_layer(make))

    def _items(
        self,
        each: Instruction,
        words: Sequence[str],
        now: _State,
        context: Context,
        below: Below,
    ) -> list[Item]:
        given = posixpath.join(now.config.working_dir, words[-1])
        target = build_layers.resolve(below, given)
        paths = [path for word in words[:-1] for path in context.matches(word)]
        into = (
            len(paths) > 1
            or given.endswith(("/", "/."))
            or build_layers.is_directory(below, target)
        )
        items = []
        for path in paths:
            item = Item(context, path, target)
            with context.opened(path) as file:
                is_directory = os.path.isdir(file)  # noqa: PTH112 - a descriptor is no path
            if each.name == "ADD" and build_layers.is_archive(item):
                item = replace(item, unpack=True)
            elif into and not is_directory:
                item = replace(item, target=posixpath.join(target, posixpath.basename(path)))
            items.append(item)
        return items

    def _dress(self, each: Instruction, now: _State) -> build_layers.Dress:
        mode = each.flags.get("chmod")
        if mode is not None:
            mode = containerfile.word(mode, now.variables)
            if not mode or set(mode) - set("01234567") or len(mode) > 5:
                raise each.wrong(f"--chmod={mode}: not an octal mode")
        owner = containerfile.word(each.flags.get("chown", ""), now.variables)
        user, colon, _ = owner.partition(":")
        if user.isdigit() and not colon:
            owner = f"{user}:{user}"
        directories = [self._store.layer_path(digest) for digest in now.layers]
        found = accounts.resolve_in_layers(owner, directories).user
        return build_layers.Dress(found.uid, found.gid, None if mode is None else int(mode, 8))

    def _do_workdir(self, each: Instruction, now: _State) -> _State:
        path = containerfile.word(each.value, now.variables)
        path = posixpath.normpath(posixpath.join(now.config.working_dir, path))
        path = "/" + path.lstrip("/")
        below = self._below(now)
        target = build_layers.resolve(below, path)
        if not build_layers.is_directory(below, target):
            key = build_cache.key(now.layers, "WORKDIR", target)
            make = build_layers.made_directory(target, below, (0, 0))
            now = self._layered(now, key, lambda: self._store.add_layer(make))
        return replace(now, config=replace(now.config, working_dir=path))

    def _below(self, now: _State) -> Below:
        layers = image_record.with_layers_once(now.layers)
        return Below([self._store.layer_path(digest) for digest in layers])

    def _other_context(self, name: str) -> Context:
        """Return the files of another stage or image."""
        earlier = self._stage(name)
        layers = earlier.layers if earlier is not None else self._store.get(name).layers
        directories = [
            self._store.layer_path(digest) for digest in image_record.with_layers_once(layers)
        ]
        if len(directories) == 1:
            return Context(directories[0], Ignored())
        return Context(self._undo.enter_context(self._merged(directories)), Ignored())

    @contextmanager
    def _merged(self, directories: Sequence[Path]) -> Iterator[Path]:
        """Show layers as a container sees them, in a mount namespace of this process."""
        with self._store.scratch() as scratch:
            places = [scratch.path / name for name in ("upper", "work", "merged")]
            for place in places:
                place.mkdir()
            if not directories:
                yield places[0]
                return
            if not self._has_mounts:
                syscalls.unshare(syscalls.CLONE_NEWNS)
                syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
                self._has_mounts = True
            rootfs.overlay(directories, places[0], places[1], places[2])
            try:
                yield places[2]
            finally:
                syscalls.umount2(places[2])


# Steps that change the configuration only


def _configured(each: Instruction, now: _State) -> _State:
    config, variables = now.config, now.variables
    own_command = now.has_own_command
    match each.name:
        case "ENV":
            env = {**_pairs(config.env), **_assignments(each, variables)}
            config = replace(config, env=tuple(f"{name}={value}" for name, value in env.items()))
        case "LABEL" | "MAINTAINER":
            given = {"maintainer": each.value}
            if each.name == "LABEL":
                given = _assignments(each, variables)
            labels = {**dict(config.labels), **given}
            config = replace(config, labels=tuple(sorted(labels.items())))
        case "USER":
            config = replace(config, user=containerfile.word(each.value, variables))
        case "STOPSIGNAL":
            config = replace(config, stop_signal=containerfile.word(each.value, variables))
        case "SHELL":
            config = replace(config, shell=each.words or ())
        case "EXPOSE":
            words = containerfile.words(each.value, variables)
            ports = {port if "/" in port else f"{port}/tcp" for port in words}
            config = replace(config, exposed_ports=tuple(sorted({*config.exposed_ports, *ports})))
        case "VOLUME":
            named = each.words or containerfile.words(each.value, variables)
            paths = {posixpath.join(config.working_dir, word) for word in named}
            config = replace(config, volumes=tuple(sorted({*config.volumes, *paths})))
        case "CMD":
            config = replace(config, cmd=_command(each, config))
            own_command = True
        case "ENTRYPOINT":
            # A command that was meant for another entry point would be its arguments.
            cmd = config.cmd if own_command else ()
            config = replace(config, entrypoint=_command(each, config), cmd=cmd)
        case _:
            raise each.wrong("is not supported")
    return replace(now, config=config, has_own_command=own_command)


def _command(each: Instruction, config: ImageConfig) -> tuple[str, ...]:
    return each.words if each.words is not None else (*_shell(config), each.value)


def _shell(config: ImageConfig) -> tuple[str, ...]:
    return config.shell or _SHELL


def _assignments(each: Instruction, variables: Mapping[str, str]) -> dict[str, str]:
    """Read ``NAME=VALUE …``, or the older ``NAME VALUE``."""
    first = each.value.split(None, 1)
    if "=" not in first[0]:
        if len(first) < 2:
            raise each.wrong(f"{first[0]} has no value")
        return {first[0]: containerfile.word(first[1], variables)}
    found = {}
    for word in containerfile.words(each.value, variables):
        name, equals, value = word.partition("=")
        if not equals or not name or "\0" in value:
            raise each.wrong(f"{word!r} is not NAME=VALUE")
        found[name] = value
    return found


def _arguments(each: Instruction, variables: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    for word in containerfile.words(each.value, variables):
        name, equals, default = word.partition("=")
        if not name:
            raise each.wrong(f"{word!r} is not NAME or NAME=VALUE")
        yield name, default if equals else None


def _pairs(env: Sequence[str]) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in env)


def _dated(config: ImageConfig) -> ImageConfig:
    """Date it by SOURCE_DATE_EPOCH (reproducible-builds.org), else by the clock at its end."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    created = ""
    if epoch.isdecimal():
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch)))
    return replace(config, created=created)
