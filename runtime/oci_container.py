"""A container of the OCI command line: a directory below its own --root, and no supervisor.

::

    ROOT/ID/config.json     the bundle's, as it was at `create`
    ROOT/ID/state.json      what `create` knows; never changed
    ROOT/ID/control.sock    where its first process waits; gone when it has been started

Whoever called `create` (conmon, containerd's shim) keeps its streams, is its parent once `create`
has ended, reaps it and calls `delete`. So nothing of ours stays between two commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pymigrate.runtime import control, errors, lock, oci_birth, oci_hooks, spec, state, stdio
from pymigrate.runtime.cgroups import Cgroup
from pymigrate.runtime.settings import OCI_VERSION, Resources, Spec
from pymigrate.runtime.state import Identity

DEFAULT_ROOT = Path("/run/pymigrate-oci")
_ID = re.compile(r"[A-Za-z0-9_+.-]{1,250}")
_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class OciContainer:
    """One container; all but ``init`` was written down by `create`."""

    directory: Path
    bundle: str
    created: str
    cgroup: Cgroup
    annotations: Mapping[str, str]
    init: Identity | None
    boot: str

    @property
    def id(self) -> str:
        """Its name."""
        return self.directory.name

    @classmethod
    def open(cls, root: Path, name: str) -> OciContainer:
        """Open a container.

        Raises:
            NotFound: there is none of this name.

        """
        check_id(name)
        try:
            document = state.read_document(root / name / "state.json")
        except FileNotFoundError as error:
            raise errors.NotFound(f"container {name!r} does not exist below {root}") from error
        match document:
            case {"bundle": str(bundle), "created": str(created), "cgroup": dict(cgroup),
                  "boot": str(boot), "annotations": dict(annotations), **rest}:  # fmt: skip
                pid, started = rest.get("pid"), rest.get("pid_started")
                known = isinstance(pid, int) and isinstance(started, int)
                return cls(
                    root / name,
                    bundle,
                    created,
                    Cgroup.from_document(cgroup),
                    annotations,
                    Identity(pid, started) if known else None,  # type: ignore[arg-type]
                    boot,
                )
        raise errors.ContainerError(
            f"the state of container {name} is damaged", hint="delete --force removes it"
        )

    @classmethod
    def all(cls, root: Path) -> list[OciContainer]:
        """Return all containers that can be read, by name."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for directory in sorted(root.iterdir()):
                with contextlib.suppress(errors.ContainerError, errors.NotFound):
                    found.append(cls.open(root, directory.name))
        return found

    @property
    def spec(self) -> Spec:
        """Its settings."""
        return spec.load(self.directory / "config.json")

    @property
    def is_alive(self) -> bool:
        """Whether its first process is there, waiting to be started or started."""
        return self.init is not None and self.boot == state.boot_id() and self.init.is_alive

    def status(self) -> str:
        """Return creating, created, running, paused or stopped."""
        if self.init is None:
            return "creating"
        if not self.is_alive:
            return "stopped"
        if (self.directory / control.SOCKET_NAME).exists():
            return "created"
        with contextlib.suppress(FileNotFoundError):  # it ended just now
            if self.cgroup.frozen():
                return "paused"
        return "running"

    def document(self, status: str | None = None) -> dict[str, object]:
        """Return the state as runtime-spec's runtime.md has it."""
        status = status or self.status()
        pid = self.init.pid if self.init is not None and status != "stopped" else 0
        return {
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": status,
            "pid": pid,
            "bundle": self.bundle,
            "annotations": dict(self.annotations),
        }

    def start(self) -> None:
        """Let it run its command; returns when that has been executed.

        Raises:
            WrongState: it is not waiting to be started.
            CannotRun, CommandNotFound, HostError: it could not be run; it has ended.

        """
        with lock.locked(self.directory):
            status = self.status()
            if status != "created":
                raise errors.WrongState(f"cannot start container {self.id}: it is {status}")
            try:
                connection = control.connect(self.directory)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise errors.WrongState(f"container {self.id} does not wait any more") from error
            with connection:
                control.send(connection, {"op": "start"})
                try:
                    answer = control.receive(connection)
                except ConnectionResetError:
                    answer = None
            (self.directory / control.SOCKET_NAME).unlink()
            if answer is not None:
                raise control.error_from_document(answer[0].get("error"))
        hooks = self.spec.hooks.get("poststart", ())
        oci_hooks.run_all("poststart", hooks, self.document())

    def kill(self, number: int, *, everything: bool = False) -> None:
        """Send a signal to its first process, or to every one.

        Raises:
            WrongState: it is not running.

        """
        if not self.is_alive or self.init is None:
            raise errors.WrongState(f"cannot kill container {self.id}: container not running")
        if everything and number != signal.SIGKILL:
            for pid in self.cgroup.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return
        if number == signal.SIGKILL and (everything or self.status() == "paused"):
            self.cgroup.kill()  # on cgroup v1 what is frozen does not die by a signal alone
        lock.send_signal(self.init, number)

    def pause(self) -> None:
        """Freeze it; WrongState if it does not run."""
        self._must_be("running")
        self.cgroup.freeze()

    def resume(self) -> None:
        """Let it go on; WrongState if it is not paused."""
        self._must_be("paused")
        self.cgroup.thaw()

    def update(self, resources: Resources) -> None:
        """Change its limits; the rules for devices stay as they are."""
        devices = self.spec.resources.devices
        now = self.cgroup.cpu_quota()
        if resources.cpu_period_us is not None and resources.cpu_quota_us is None and now:
            # In version 2 the two are one line.
            resources = replace(resources, cpu_quota_us=now.quota_us)
        self.cgroup.apply(replace(resources, devices=device_rules(devices)))

    def delete(self, *, force: bool = False) -> None:
        """Remove what is left of it; with ``force`` end it first.

        Raises:
            WrongState: it runs.
            NotFound: another was faster.

        """
        hooks: Mapping[str, tuple[spec.Hook, ...]] = {}
        try:
            with lock.locked(self.directory):
                status = self.status()
                if self.is_alive and not force and status != "created":
                    raise errors.WrongState(f"cannot delete container {self.id}: it is {status}")
                self._end()
                with contextlib.suppress(FileNotFoundError):
                    hooks = self.spec.hooks
                shutil.rmtree(self.directory)
        except FileNotFoundError as error:
            raise errors.NotFound(f"container {self.id} was deleted by another") from error
        oci_hooks.run_all("poststop", hooks.get("poststop", ()), self.document("stopped"))

    def _end(self) -> None:
        """Make sure that nothing of it runs, and that its cgroup is gone."""
        if self.init is not None and self.is_alive:
            lock.send_signal(self.init, signal.SIGKILL)
        self.cgroup.kill(_KILL_SECONDS)
        if self.init is not None and not lock.await_end(self.init, _KILL_SECONDS):
            raise errors.ContainerError(f"container {self.id} does not end")
        self.cgroup.remove()

    def _must_be(self, wanted: str) -> None:
        status = self.status()
        if status != wanted:
            raise errors.WrongState(f"container {self.id} is {status}, not {wanted}")


Restorer = Callable[[Spec, Path, Cgroup, int | None], tuple[int | None, int]]
"""Brings a container back; given settings, root, cgroup and network namespace, it returns the
master of its terminal and the PID of its first process, a child of the caller."""


@dataclass(frozen=True)
class Creation:
    """What `create` is told beside the bundle."""

    streams: stdio.Stdio
    preserved: int = 0
    restore: Restorer | None = None  # instead of the command


def create(root: Path, name: str, bundle: Path, given: Creation) -> tuple[OciContainer, int | None]:
    """Make a container whose first process waits for `start`; also return its terminal's master.

    With ``given.restore`` it is one that runs already.

    The process is a child of the caller. On failure nothing is left.

    Raises:
        AlreadyExists: the name is in use.
        UsageError: config.json says something impossible.
        HostError, CannotRun, CommandNotFound: it cannot be made.

    """
    check_id(name)
    bundle = bundle.absolute()
    try:
        text = (bundle / "config.json").read_bytes()
    except OSError as error:
        raise errors.UsageError(f"{bundle}/config.json: {error.strerror}") from error
    settings = spec.load(bundle / "config.json")
    rootfs = bundle / settings.root_path  # an absolute path replaces the bundle's
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        directory = root / name
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError as error:
            raise errors.AlreadyExists(f"container with id {name} exists already") from error
        undo.callback(shutil.rmtree, directory)
        (directory / "config.json").write_bytes(text)
        cgroup = _cgroup(settings, name)
        made = OciContainer(
            directory, os.fspath(bundle), state.now(), cgroup, settings.annotations, None,
            state.boot_id(),
        )  # fmt: skip
        _write(made)
        undo.callback(_remove_cgroup, cgroup)
        cgroup.create()
        resources = settings.resources
        cgroup.apply(replace(resources, devices=device_rules(resources.devices)))
        if given.restore is None:
            with _opened(directory) as place, control.listen(place) as gate:
                master, pid = _give_birth(settings, rootfs, made, gate, given)
        else:
            if settings.hooks:
                raise errors.UsageError("hooks: cannot be run by a restore")
            with contextlib.ExitStack() as held:
                network, _ = _namespaces(settings, held)
                master, pid = given.restore(settings, rootfs, cgroup, network)
        found = Identity.of(pid)
        made = replace(made, init=found or Identity(pid, 0))  # it may have been killed already
        _write(made)
        undo.pop_all()
    return made, master


def _give_birth(
    settings: Spec,
    rootfs: Path,
    made: OciContainer,
    gate: socket.socket,
    given: Creation,
) -> tuple[int | None, int]:
    from pymigrate.runtime import init

    ceremony = oci_birth.Ceremony(gate, settings.hooks, made.document("creating"), given.preserved)
    with contextlib.ExitStack() as held:
        network, users = _namespaces(settings, held)
        started = init.spawn_init(
            settings,
            rootfs=os.fspath(rootfs),
            netns_fd=network,
            users_fd=users,
            cgroup=made.cgroup,
            stdio=stdio.TERMINAL if settings.process.terminal else given.streams,
            cgroup_places=made.cgroup.places,
            ceremony=ceremony,
        )
    return started.terminal_master_fd, started.pid


def _namespaces(settings: Spec, held: contextlib.ExitStack) -> tuple[int | None, int | None]:
    """Make the network and the user namespace, if they are new: the loopback has to be up."""
    from pymigrate.runtime import network as networks

    network, users = None, None
    if settings.private("user"):
        from pymigrate.runtime import userns

        made = userns.make(settings, network=settings.private("network"))
        users, network = made.users, made.network
        held.callback(os.close, users)
    elif settings.private("network"):
        network = networks.new_namespace()
    if network is not None:
        held.callback(os.close, network)
        networks.attach(state.NetworkSettings(mode="none"), network, "", plugged=False)
    return network, users


def device_rules(rules: tuple[spec.DeviceRule, ...]) -> tuple[spec.DeviceRule, ...]:
    """Return the rules with those that runtime-spec's default devices need, after its own."""
    from pymigrate.runtime import cgroups_devices

    return (*rules, *(each for each in cgroups_devices.DEFAULT if each.allow)) if rules else ()


def check_id(name: str) -> None:
    """Raise UsageError for what cannot be a container's name."""
    if not _ID.fullmatch(name) or name in (".", ".."):
        raise errors.UsageError(f"{name!r} cannot be the name of a container")


def _cgroup(settings: Spec, name: str) -> Cgroup:
    path = settings.cgroups_path
    if path is None:
        return Cgroup.named(f"oci/{name}" if name[0].isalnum() else f"oci/x{name}")
    if path.startswith("/"):
        return Cgroup.at(path)
    return Cgroup.named(f"oci/{path}")


def _remove_cgroup(cgroup: Cgroup) -> None:
    cgroup.kill()
    cgroup.remove()


def _write(made: OciContainer) -> None:
    document: dict[str, object] = {
        "bundle": made.bundle,
        "created": made.created,
        "cgroup": made.cgroup.to_document(),
        "annotations": dict(made.annotations),
        "boot": made.boot,
    }
    if made.init is not None:
        document |= {"pid": made.init.pid, "pid_started": made.init.started}
    state.write_document(made.directory / "state.json", document, durable=False)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
