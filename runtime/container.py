"""A container on this host: its directory, its state, and the steps of which verbs are made."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from pymigrate.runtime import errors, events, lock, restarting, spec, state
from pymigrate.runtime.cgroups import Cgroup
from pymigrate.runtime.host import NAME, Host
from pymigrate.runtime.launch import (
    FENCE_NAME,
    HIDDEN,
    Launch,
    discard,
    lower_directories,
)
from pymigrate.runtime.making import make_directory
from pymigrate.runtime.spec import Spec
from pymigrate.runtime.state import Record, State, Status, Volume
from pymigrate.runtime.supervision import LENT, Supervision, SupervisorEnded
from pymigrate.runtime.values import dataclass, field, replace

KILL_SECONDS = 20.0  # for a killed container to be cleaned up
FREEZE_SECONDS = 10.0
_ID_PREFIX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Container:
    """One container; its record and spec were read when it was opened, and never change."""

    host: Host
    record: Record
    spec: Spec
    _keepers: list[Supervision] = field(default_factory=list, compare=False)

    @classmethod
    def open(cls, host: Host, name: str) -> Container:
        """Open a container by its name or by the beginning of its id (6 digits or more).

        Raises:
            NotFound: there is none, or the id's beginning belongs to several.

        """
        if NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                return cls._load(host, name)
        if _ID_PREFIX.fullmatch(name):
            found = [one for one in cls.all(host) if one.record.id.startswith(name)]
            if len(found) == 1:
                return found[0]
            if found:
                raise errors.NotFound(
                    f"{name} begins the ids of {', '.join(one.name for one in found)}",
                    hint="use the name",
                )
        raise errors.NotFound(
            f"there is no container {name!r} below {host.root}",
            hint="pymigrate ps -a lists the containers",
        )

    @classmethod
    def all(cls, host: Host) -> list[Container]:
        """Return every container of the host that can be read, by name."""
        return cls.look(host)[0]

    @classmethod
    def look(cls, host: Host) -> tuple[list[Container], list[errors.ContainerError]]:
        """Return as `all` does, and why others cannot be read: these must not suffer from it."""
        found, damaged = [], []
        for directory in sorted(host.containers.iterdir()):
            if not directory.name.startswith(HIDDEN):
                try:
                    found.append(cls._load(host, directory.name))
                except FileNotFoundError:
                    continue  # removed while we look
                except errors.ContainerError as error:
                    damaged.append(error)
        return found, damaged

    @classmethod
    def remnant(cls, host: Host, name: str) -> Container:
        """Return a damaged container, good for nothing but to be removed.

        Raises:
            NotFound: there is none of this name.

        """
        if not NAME.fullmatch(name) or not (host.containers / name).is_dir():
            return cls.open(host, name)
        record = Record("", name, None, None, (), "", state.NetworkSettings())
        return cls(host, record, spec.default_spec(["unknown"]))

    @classmethod
    def create(
        cls, host: Host, record: Record, container_spec: Spec, init: Path | None = None
    ) -> Container:
        """Make the container's directory; it appears complete or not at all.

        ``init`` is a program to put among its own files; see reaping.py.

        Raises:
            UsageError: the name is not one.
            AlreadyExists: the name is in use.

        """
        make_directory(host, record, container_spec, init)
        events.note(host, record, "create", image=record.image or record.rootfs)
        return cls(host, record, container_spec)

    @classmethod
    def _load(cls, host: Host, name: str) -> Container:
        directory = host.containers / name
        try:
            document = state.read_document(directory / "container.json")
            record = state.record_from_document(document)
            return cls(host, record, spec.load(directory / "config.json"))
        except (errors.ContainerError, errors.UsageError) as error:
            raise errors.ContainerError(
                f"container {name} cannot be read: {error.message}",
                hint=f"put its files back, or remove it: pymigrate rm -f {name}",
            ) from error

    @property
    def name(self) -> str:
        """The name, which is also the name of its directory."""
        return self.record.name

    @property
    def directory(self) -> Path:
        """Where everything of this container is kept."""
        return self.host.containers / self.name

    @property
    def upper(self) -> Path:
        """The overlay's upper directory: what the container changed, and what must travel."""
        return self.directory / "upper"

    @property
    def rootfs(self) -> Path:
        """The mount point of its root, mounted only in its supervisor's namespace."""
        return self.directory / "rootfs"

    @property
    def lent(self) -> Path:
        """Where its supervisor attaches mounts that CRIU is to find."""
        return self.directory / LENT

    @property
    def log(self) -> Path:
        """The file with its output; see log.py."""
        return self.directory / "log"

    @property
    def volumes_to_travel(self) -> tuple[Volume, ...]:
        """The volumes that move with the container."""
        return tuple(volume for volume in self.record.volumes if not volume.local)

    @property
    def lower(self) -> tuple[Path, ...]:
        """The read-only directories of its root, lowest first."""
        return lower_directories(self.host, self.record)

    @property
    def cgroup(self) -> Cgroup:
        """Its cgroup, which exists while it is prepared or alive."""
        document = self._written().cgroup
        if document is not None:
            return Cgroup.from_document(document)
        return Cgroup.named(f"{self.host.id}/{self.name}")

    @property
    def host_interface(self) -> str:
        """The name of the host's end of its cable."""
        from pymigrate.runtime import network  # costs what few verbs need

        return network.interface_name(self.host.id, self.name)

    def state(self) -> State:
        """Return what it is doing now: what was written down, compared with the processes."""
        written = self._written()
        if written.status in (Status.CREATED, Status.STOPPED):
            return written
        this_boot = written.boot_id == state.boot_id()
        supervisor, init = written.supervisor, written.init
        supervised = this_boot and supervisor is not None and supervisor.is_alive
        if written.status.has_supervisor_only:
            if supervised:
                return written
            status = Status.STOPPED if written.finished else Status.CREATED
            return replace(written, status=status, supervisor_pid=None, supervisor_started=None)
        if not supervised:
            written = replace(written, supervisor_pid=None, supervisor_started=None)
            if not (this_boot and init is not None and init.is_alive):
                # Its supervisor may have finished between our reading and our looking.
                again = self._written()
                if again.status is Status.STOPPED:
                    return again
                return replace(written, status=Status.STOPPED, pid=None, pid_started=None)
        return replace(written, status=Status.PAUSED if self._frozen() else Status.RUNNING)

    # For checkpoints and migrations: the fence is not asked. What people do is in lifecycle.py.

    def prepare(self, *, plugged: bool = True, launch: Launch | None = None) -> Supervision:
        """Start the supervisor; returns when network and cgroup are there and nothing runs.

        ``launch`` is one that was begun for this container before.

        The connection is the supervisor's keeper (see Supervision); it also stays open as long
        as this object lives and nobody closes it.

        Raises:
            WrongState: it is prepared or alive already.
            MissingFeature: a limit cannot be enforced here.

        """
        try:
            with self.locked():
                return self.prepare_locked(plugged=plugged, launch=launch)
        except BaseException:
            if launch is not None:
                launch.abandon()
            raise

    def prepare_locked(self, *, plugged: bool, launch: Launch | None = None) -> Supervision:
        """Do as ``prepare`` for a caller that holds the lock."""
        now = self.state()
        if not now.status.may_start:
            raise self.wrong_state(now, "nothing was started")
        supervision = (launch or Launch(self.directory)).ready(plugged=plugged)
        self._keepers.append(supervision)
        return supervision

    def supervision(self) -> Supervision:
        """Connect to the supervisor.

        Raises:
            WrongState: there is none.

        """
        return Supervision.connect(self.directory)

    def freeze(self) -> None:
        """Stop every process where it is; a second time does nothing."""
        if self.record.health is not None:
            with (
                contextlib.suppress(errors.WrongState, SupervisorEnded),
                self.supervision() as supervision,
            ):
                supervision.hush()
        self.cgroup.freeze(FREEZE_SECONDS)

    def thaw(self) -> None:
        """Let the processes go on; a second time does nothing."""
        self.cgroup.thaw()

    def plug(self) -> None:
        """Let packets pass; a second time does nothing."""
        if self.record.network.has_cable:
            from pymigrate.runtime import network  # costs what few verbs need

            network.plug(self.host_interface)

    def unplug(self) -> None:
        """Let no packet pass; a second time does nothing."""
        if self.record.network.has_cable:
            from pymigrate.runtime import network  # costs what few verbs need

            network.unplug(self.host_interface)

    def fence(self, migration_id: str) -> None:
        """Refuse every verb until ``unfence``: a migration decides about this container.

        Raises:
            WrongState: another migration has it. Of two that begin at once, one gets it.

        """
        with self.locked():  # a checkpoint that is at work has it first
            if self.fenced_by == migration_id:
                return
            fresh = self.directory / f".{FENCE_NAME}.{migration_id}"
            state.write_document(fresh, {"migration": migration_id})
            try:
                os.link(fresh, self.directory / FENCE_NAME)
            except FileExistsError:
                self.check_free()
            finally:
                fresh.unlink()

    def unfence(self, migration_id: str) -> None:
        """Allow verbs again, if this migration has it; a second time does nothing."""
        if self.fenced_by == migration_id:
            (self.directory / FENCE_NAME).unlink(missing_ok=True)

    @property
    def fenced_by(self) -> str | None:
        """The migration that holds this container."""
        try:
            document = state.read_document(self.directory / FENCE_NAME)
        except FileNotFoundError:
            return None
        return str(document.get("migration")) if isinstance(document, dict) else "?"

    def check_free(self) -> None:
        """Raise WrongState while a migration holds the container."""
        holder = self.fenced_by
        if holder is not None:
            raise errors.WrongState(
                f"{self.name} is being moved by migration {holder}; "
                "it stays frozen until that is settled",
                hint=f"pymigrate recover {holder}",
            )

    def check_whole(self) -> None:
        """Wait for the memory that a restore brings; raise WrongState if more is missing.

        That is so while it comes from another host, which may take longer than anybody waits.
        """
        with self.supervision() as supervision:
            supervision.wait_relied()
            if supervision.count_kept():
                raise errors.WrongState(
                    f"{self.name} came from another host, and not all of its memory is here yet",
                    hint="wait until the move is done; there: pymigrate migrations ls",
                )

    def remove(self, *, force: bool = False, fenced_ok: bool = False) -> None:
        """Remove it; with ``force`` kill it first, even if paused or without a supervisor.

        ``fenced_ok`` is for the migration that holds it.

        Raises:
            WrongState: it has processes and there is no force, or it is being moved.

        """
        with self.locked():
            if not fenced_ok:
                self.check_free()
            now = self.state()
            if not now.status.may_remove and not force:
                raise self.wrong_state(
                    now, "it was not removed", hint=f"pymigrate rm -f {self.name} kills it first"
                )
            self._end(now)
            self._clean()
            discard(self.directory, self.record.id)
            events.note(self.host, self.record, "remove")
        while self._keepers:
            self._keepers.pop().close()

    def end_unsupervised(self) -> None:
        """Kill what has lost its supervisor, and clean up, so that it can be prepared again.

        Does nothing to a container that has one.
        """
        with self.locked():
            now = self.state()
            if now.supervisor is None:
                self._end(now)
                self._clean()

    def _end(self, now: State) -> None:
        """Make sure that neither its processes nor its supervisor are left."""
        if now.status.has_supervisor_only:
            now = self.release(now)
        if now.init is not None and now.status.is_alive:
            self.expect_end()
            self.end_processes(now)
        if now.supervisor is not None and not lock.await_end(now.supervisor, KILL_SECONDS):
            raise errors.ContainerError(
                f"{self.name} has ended, but its supervisor (PID {now.supervisor.pid}) has not; "
                "it was not removed",
                hint=f"{self.directory}/supervisor.log says what it does",
            )

    def end_processes(self, now: State) -> None:
        """End every process of one that is alive, frozen or not: none runs another instruction."""
        if now.init is None:
            raise self.wrong_state(now, "it has no processes")
        lock.send_signal(now.init, signal.SIGKILL)
        self.kill_all()
        if not lock.await_end(now.init, KILL_SECONDS):
            raise self.undying()

    def kill_all(self) -> None:
        """End every process of it by SIGKILL, frozen or not."""
        try:
            self.cgroup.kill()
        except OSError as error:
            # The first death may end init, and its supervisor then removes the cgroup.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def expect_end(self, *, wanted: bool = True) -> None:
        """Have its supervisor not run it again when it ends, whatever its policy says.

        With ``wanted`` False the policy holds again.
        """
        if self.record.restart != restarting.NEVER:
            with (
                contextlib.suppress(errors.WrongState, SupervisorEnded),
                self.supervision() as supervision,
            ):
                supervision.expect_end(wanted=wanted)

    def release(self, now: State) -> State:
        """Have a supervisor that has nothing running end; return what is so then.

        It may have begun to run before it heard that.
        """
        with contextlib.suppress(errors.WrongState), self.supervision() as supervision:
            supervision.release()
        after = self.state()
        if after.status.may_start and now.supervisor is not None:
            lock.await_end(now.supervisor, KILL_SECONDS)
        return after

    def _clean(self) -> None:
        """Remove what a supervisor that was killed could not remove; all of it is idempotent."""
        if self.record.network.has_cable:
            from pymigrate.runtime import network  # costs what few verbs need

            network.detach(self.host_interface)
        if self.record.network.ports:
            from pymigrate.runtime import publishing

            publishing.unpublish(self.host_interface)
        cgroup = self.cgroup
        cgroup.kill()
        cgroup.remove()

    def _written(self) -> State:
        try:
            document = state.read_document(self.directory / "state.json")
        except FileNotFoundError:
            return state.CREATED
        return state.state_from_document(document)

    def _frozen(self) -> bool:
        try:
            return self.cgroup.frozen()
        except FileNotFoundError:
            return False  # it ended while we looked

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other verbs waiting; NotFound if it was removed in the meantime."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.locked(self.directory))
            except FileNotFoundError as error:
                raise errors.NotFound(f"{self.name} was removed in the meantime") from error
            yield

    def wrong_state(self, now: State, message: str, hint: str = "") -> errors.WrongState:
        """Return the error that says what it is doing now, and what was not done therefore."""
        return errors.WrongState(f"{self.name} is {now.status.value}: {message}", hint=hint)

    def undying(self) -> errors.ContainerError:
        """Return the error for processes that SIGKILL does not end."""
        return errors.ContainerError(
            f"{self.name} still has processes {KILL_SECONDS:.0f} s after SIGKILL",
            hint=f"pymigrate top {self.name} shows them; they may wait for a disk",
        )
