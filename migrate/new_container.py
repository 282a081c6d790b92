"""Make a container from the options of ``run``: check all, then make its directory."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pymigrate.migrate import device_options, limit_options, network_options
from pymigrate.migrate import run_options as options
from pymigrate.migrate.amounts import NOTHING
from pymigrate.runtime import errors, image_index, image_notes, launch, lock, reaping, spec, state
from pymigrate.runtime.container import Container
from pymigrate.runtime.defaults import CGROUP_MOUNT
from pymigrate.runtime.host import Host
from pymigrate.runtime.values import dataclass, field, replace


@dataclass(frozen=True)
class Source:
    """What a container is made of: an image or a directory, and how its command is run."""

    image: str | None
    digest: str | None
    layers: tuple[str, ...]
    rootfs: str | None
    env: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


def make(host: Host, name: str, arguments: argparse.Namespace) -> Container:
    """Check all options, then make the container's directory; nothing is made on failure."""
    if arguments.bundle is not None:
        from pymigrate.migrate import bundle, cli

        defaults = cli.build_parser("run").parse_args(["run", "x"])
        record, made_spec = bundle.read(name, arguments, defaults)
        with lock.locked(host.containers):
            return Container.create(host, _with_address(host, record), made_spec)
    source, command = _source(host, arguments.rootfs, arguments.words)
    return make_from(host, name, arguments, source, command)


def make_from(
    host: Host,
    name: str,
    arguments: argparse.Namespace,
    source: Source,
    command: tuple[str, ...],
) -> Container:
    """Do as `make`, of a source and with a command that are known."""
    identifier = os.urandom(32).hex()
    network = network_options.network_asked(arguments, arguments.net)
    namespaces = options.namespaces(arguments.share, arguments.join, arguments.net)
    network, namespaces = _join_network(network, namespaces)
    volumes = _volumes(host, arguments.volume)
    record = state.Record(
        id=identifier,
        name=name,
        image=source.image,
        image_digest=source.digest,
        layers=source.layers,
        created=state.now(),
        network=network,
        stdin_open=arguments.interactive,
        remove_on_exit=arguments.rm,
        rootfs=source.rootfs,
        volumes=volumes,
        log_size=options.log_size(arguments.log_opt),
        restart=options.restart(arguments.restart, removed=arguments.rm),
        health=options.health(arguments),
        cpu_baseline=arguments.cpu_baseline,
    )
    init = reaping.find() if arguments.init else None
    made_spec = _spec(host, arguments, source, command, record, namespaces)
    if init is not None:
        made_spec, init = _below(init, made_spec)
    with (
        lock.locked(host.containers),  # two must not choose the same address
        contextlib.ExitStack() as undo,
    ):
        _make_volumes(host, record, made_spec, undo)
        container = Container.create(host, _with_address(host, record), made_spec, init)
        undo.pop_all()
    return container


def _volumes(host: Host, texts: Sequence[str]) -> tuple[state.Volume, ...]:
    found = tuple(options.volume(text) for text in texts)
    if all(each.name is None for each in found):
        return found
    from pymigrate.runtime import volumes

    return tuple(volumes.located(host, each) for each in found)


def _make_volumes(
    host: Host, record: state.Record, made: spec.Spec, undo: contextlib.ExitStack
) -> None:
    """Make the named volumes that are not there yet, the container's root's."""
    named = [each for each in record.volumes if each.name is not None]
    if not named:
        return
    from pymigrate.runtime import userns, volumes

    mappings = (made.uid_mappings, made.gid_mappings)
    owner = (userns.owner_on_host(mappings[0], 0), userns.owner_on_host(mappings[1], 0))
    for each in named:
        if volumes.make(host, each.name or "", owner):
            undo.callback(os.rmdir, each.source)


def _below(init: Path, made: spec.Spec) -> tuple[spec.Spec, Path | None]:
    """Let the command run below an init; return what is to be copied into the container."""
    if not made.private("pid"):
        raise errors.UsageError(f"--init needs a PID namespace of the container's own; {NOTHING}")
    own_files = made.private("mount")
    program = reaping.INSIDE if own_files else os.fspath(init)
    process = replace(made.process, args=reaping.before(program, made.process.args))
    return replace(made, process=process), init if own_files else None


def _source(host: Host, rootfs: str | None, words: Sequence[str]) -> tuple[Source, tuple[str, ...]]:
    words = tuple(words[1:] if words[:1] == ["--"] else words)
    if rootfs is not None:
        directory = Path(rootfs).absolute()
        if not directory.is_dir():
            raise errors.UsageError(f"--rootfs {rootfs}: not a directory; {NOTHING}")
        return Source(None, None, (), os.fspath(directory)), words
    if not words:
        raise errors.UsageError(
            f"no image was given; {NOTHING}", hint="pymigrate run --help shows an example"
        )
    image = image_index.read(host.index).get(words[0])
    config = image.config
    source = Source(
        image=image.reference or words[0],
        digest=image.digest,
        layers=image.layers,
        rootfs=None,
        env=config.env,
        command=config.cmd,
        entrypoint=config.entrypoint,
        working_dir=config.working_dir or "/",
        user=config.user,
        annotations=image_notes.of_image(config),
    )
    return source, words[1:]


def _join_network(
    network: state.NetworkSettings, namespaces: tuple[spec.Namespace, ...]
) -> tuple[state.NetworkSettings, tuple[spec.Namespace, ...]]:
    """Say the same about the network in both places, for there are two ways to say it."""
    given = next((each for each in namespaces if each.kind == "network"), None)
    if given is None:
        return state.NetworkSettings(mode="host", names=network.names), namespaces
    if given.path is not None:
        network = state.NetworkSettings(mode=f"ns:{given.path}", names=network.names)
    # The supervisor holds the namespace, whoever's it is: the spec only says that there is one.
    others = tuple(each for each in namespaces if each is not given)
    return network, (*others, spec.Namespace("network"))


def _with_address(host: Host, record: state.Record) -> state.Record:
    if not record.network.has_cable:
        return record
    from ipaddress import ip_interface

    from pymigrate.runtime import addresses

    subnet = ip_interface(addresses.SUBNET)
    text = record.network.address
    taken = {one.record.network.address: one.name for one in Container.all(host)}
    if text is None:
        address = ip_interface(addresses.choose_address(taken))
    else:
        given = text if "/" in text else f"{text}/{subnet.network.prefixlen}"
        address = ip_interface(str(addresses.parse_for_container(given)))
        holder = next((taken[each] for each in taken if _ip(each) == str(address.ip)), None)
        if holder is not None:
            raise errors.UsageError(f"--ip {text}: container {holder} has this address; {NOTHING}")
    gateway = str(subnet.ip) if address.ip in subnet.network else None
    network = replace(record.network, address=str(address), gateway=gateway)
    if network.address6 is not None:
        second = addresses.parse_second(network.address6)
        for one in Container.all(host):
            if _ip(one.record.network.address6) == str(second.ip):
                raise errors.UsageError(
                    f"--ip6 {second.ip}: container {one.name} has this address; {NOTHING}"
                )
        network = replace(network, address6=str(second), gateway6=addresses.second_gateway(second))
    return replace(record, network=network)


def _ip(address: str | None) -> str | None:
    return None if address is None else address.partition("/")[0]


def _spec(
    host: Host,
    arguments: argparse.Namespace,
    source: Source,
    command: tuple[str, ...],
    record: state.Record,
    namespaces: tuple[spec.Namespace, ...],
) -> spec.Spec:
    from pymigrate.runtime import accounts

    lower = launch.lower_directories(host, record)
    account = accounts.resolve_in_layers(arguments.user or source.user, lower)
    entrypoint = source.entrypoint
    if arguments.entrypoint is not None:
        entrypoint = _words(arguments.entrypoint)
        source = replace(source, command=())
    args = entrypoint + (command or source.command)
    if not args:
        raise errors.UsageError(
            f"there is no command to run; {NOTHING}", hint="give one after the image"
        )
    kinds = {each.kind for each in namespaces}
    hostname = None
    if "uts" in kinds:
        hostname = options.hostname(arguments.hostname or record.id[:12])
    elif arguments.hostname:
        raise errors.UsageError(f"--hostname needs a UTS namespace of its own; {NOTHING}")
    given = options.environment(arguments.env, arguments.env_file, os.environ)
    env = {"PATH": spec.DEFAULT_PATH, "HOME": account.home, "container": "pymigrate"}
    if arguments.tty:
        env["TERM"] = "xterm"
    if hostname:
        env["HOSTNAME"] = hostname
    env.update(dict(pair.partition("=")[::2] for pair in source.env))
    env.update(given)
    if arguments.cpu_baseline is not None:
        from pymigrate.migrate import cpu, facts

        here = facts.cpu_features(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        env = cpu.bound(env, cpu.check(arguments.cpu_baseline, here, os.uname().machine))
    process = spec.Process(
        args=args,
        env=tuple(f"{name}={value}" for name, value in env.items()),
        cwd=options.absolute(arguments.workdir or source.working_dir),
        user=account.user,
        terminal=arguments.tty,
        rlimits=tuple(limit_options.ulimit(text) for text in arguments.ulimit),
    )
    users, groups = options.users(arguments.userns)
    if users:
        namespaces = (*namespaces, spec.Namespace("user"))
    process, overrides = _rights(arguments, process)
    own_root = any(each.kind == "mount" and each.path is None for each in namespaces)
    devices = device_options.granted(arguments.device, renamed=own_root and not users)
    made = spec.default_spec(
        args,
        process=process,
        namespaces=namespaces,
        hostname=hostname,
        root_readonly=arguments.read_only,
        root_path="rootfs" if own_root else "/",
        annotations=source.annotations,
        sysctl=options.sysctls(arguments.sysctl),
        uid_mappings=users,
        gid_mappings=groups,
        time_offsets=options.time_offsets(arguments, {each.kind for each in namespaces}),
        devices=tuple(each.device for each in devices) if own_root else (),
        resources=replace(limit_options.chosen(arguments), devices=device_options.rules(devices)),
        **overrides,
    )
    extra = (
        *(options.tmpfs(text) for text in arguments.tmpfs),
        *(options.bind(volume) for volume in record.volumes),
    )
    made = replace(
        made, mounts=(*made.mounts, *_cgroup_mount(own_root=own_root, extra=extra), *extra)
    )
    spec.check(made)
    return made


def _cgroup_mount(*, own_root: bool, extra: Sequence[spec.Mount]) -> tuple[spec.Mount, ...]:
    """Show it its cgroup, unless it has no mounts of its own or something else is wanted there."""
    place = CGROUP_MOUNT.destination
    taken = any(f"{each.destination}/".startswith(f"{place}/") for each in extra)
    return (CGROUP_MOUNT,) if own_root and not taken else ()


def _rights(
    arguments: argparse.Namespace, process: spec.Process
) -> tuple[spec.Process, dict[str, object]]:
    """Decide capabilities, seccomp, masks and no_new_privs."""
    from pymigrate.runtime import capabilities, labels
    from pymigrate.runtime.defaults import capability_sets

    held = capabilities.host_bounding()
    granted = held if arguments.privileged else capabilities.DEFAULT & held
    for word in arguments.cap_drop:
        granted -= options.capability(word, "--cap-drop", capabilities.NAMES)
    for word in arguments.cap_add:
        asked = options.capability(word, "--cap-add", capabilities.NAMES)
        granted |= asked & held if word.upper() == "ALL" else asked
    overrides: dict[str, object] = {}
    no_new_privileges = not arguments.privileged
    context: list[str] = []
    if arguments.privileged:
        overrides.update(seccomp=None, masked_paths=(), readonly_paths=())
    for text in arguments.security_opt:
        name, _, value = text.partition("=")
        if name == "seccomp" and value:
            overrides["seccomp"] = _profile(value)
        elif name == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        elif name == "apparmor" and value:
            process = replace(process, apparmor_profile=options.apparmor(value))
        elif name == "label" and value:
            context.append(value)
        else:
            raise errors.UsageError(
                f"--security-opt {text}: unknown; {NOTHING}",
                hint="seccomp=unconfined, seccomp=FILE, no-new-privileges=false, "
                "apparmor=PROFILE, label=type:TYPE",
            )
    process = replace(process, selinux_label=options.selinux(context))
    labels.chosen(process)
    sets = capability_sets(granted, process.user)
    capabilities.require(sets, held)
    return replace(process, capabilities=sets, no_new_privileges=no_new_privileges), overrides


def _profile(value: str) -> object:
    if value == "unconfined":
        return None
    try:
        profile = json.loads(Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.UsageError(f"--security-opt seccomp={value}: {error}; {NOTHING}") from error
    if not isinstance(profile, dict):
        raise errors.UsageError(f"--security-opt seccomp={value}: not a seccomp profile; {NOTHING}")
    return profile


def _words(text: str) -> tuple[str, ...]:
    """Read --entrypoint: one word, or a JSON list as podman allows."""
    if not text.startswith("["):
        return (text,) if text else ()
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise errors.UsageError(f"--entrypoint {text}: not a JSON list of texts; {NOTHING}")
    return tuple(words)
