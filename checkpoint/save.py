"""Write a running container into one file, or leave everything as it was.

Most of its memory is compressed while it runs (archive_memory.py). It stands still from the freeze
until the rest and its files are aside: all are of one instant. With ``leave_running`` it goes on
then, while the file is still being written; otherwise it ends, but only when the file is complete
and on the disk. From before the freeze on the supervisor guards the container: should this process
die, it goes on (runtime/guard.py).
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

from pymigrate.checkpoint import archive, archive_writer, dump, new_file, podman, scan
from pymigrate.checkpoint.archive_memory import THREADS, ArchiveMemory, TakenPages
from pymigrate.checkpoint.archive_writer import Compression
from pymigrate.checkpoint.hidden_memory import Hidden
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_looks import MemoryLooks
from pymigrate.checkpoint.page_blocks import Encoder, Pages
from pymigrate.checkpoint.protection import Protection
from pymigrate.checkpoint.requests import DUMP_LOG, DumpOptions
from pymigrate.checkpoint.spool import Spool
from pymigrate.checkpoint.staging import staging
from pymigrate.checkpoint.wire import Wire
from pymigrate.runtime import events, lock, tree
from pymigrate.runtime.container import KILL_SECONDS, Container
from pymigrate.runtime.errors import NoSpace, PymigrateError, WrongState
from pymigrate.runtime.scratch import Scratch
from pymigrate.runtime.state import Status

_FULL = 1 << 20  # bytes left on a disk that is as good as full


@dataclass
class Saved:
    """What was written, and how long it took; seconds by phase in the order of their end."""

    path: Path
    size: int = 0
    frozen: float = 0.0
    froze_at: float = 0.0  # time.monotonic()
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a block."""
        begun = time.monotonic()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - begun


class MemoryTaker(Protocol):
    """Takes the memory that a lazy dump leaves in the processes of a container."""

    def look(self, pids: Sequence[int], *, tracked: bool) -> None:
        """Look at the processes while they run, so that little is left for `take`.

        With ``tracked`` they are asked for what tells later what they have written since.
        """

    def look_still(self, pids: Sequence[int], stage: Path) -> None:
        """Begin to look at what cannot change any more; they stand still, CRIU is at work."""

    def take(self, pids: Sequence[int], stage: Path, hidden: Sequence[Hidden]) -> None:
        """Take all of it; they stand still, and CRIU's images are in the stage.

        The pages of what was hidden from CRIU are not in its images.
        """


def save(
    container: Container,
    path: Path,
    options: DumpOptions,
    compression: Compression,
    protection: Protection | None = None,
) -> Saved:
    """Write the checkpoint; on any error the container goes on as before, and no file is left.

    Raises:
        WrongState: the container has no processes, or a migration holds it.
        DumpFailed: CRIU could not; the message has the first cause. Or the scan says that it would.
        NoSpace: a disk is full.

    """
    protection = protection or Protection()
    saved = Saved(path)
    with new_file.target(path) as target, ExitStack() as held:
        memory = None
        if _may_be_lazy(container, options):
            # What is to be encrypted goes nowhere else than the host's own directory before.
            disk = path.parent if protection.secret is None else container.host.root
            memory = _Memory.begin(disk, compression, held)

        def store(members: Mapping[str, Path], manifest: Manifest) -> None:
            with saved.phase("archive"), new_file.writing(path):
                pages = {} if memory is None else memory.complete(members)
                whole = replace(manifest, lazy=False)  # its memory is in it
                stream = target.stream
                archive_writer.write(members, whole, stream, compression, protection, pages)
                if memory is not None:
                    memory.store.close()  # what is on no disk yet need not go there before the file
                saved.size = target.publish()

        capture(container, options, store, saved, None if memory is None else memory.looks)
    return saved


def _may_be_lazy(container: Container, options: DumpOptions) -> bool:
    """Say whether memory can stay in the processes until the container goes on or has ended.

    CRIU does not end what was dumped so: we do, and then its connections are closed as ever. In a
    network of its own nobody hears that, for its cable is out.
    """
    return options.leave_running or container.record.network.is_own


@dataclass(frozen=True)
class _Memory:
    """The memory on its way into the archive."""

    store: ArchiveMemory
    looks: MemoryLooks

    @classmethod
    def begin(cls, disk: Path, compression: Compression, held: ExitStack) -> Self:
        """Spool on the disk of a directory until `held` is closed."""
        encoder = Encoder(compression.level)
        scratch = held.enter_context(closing(Scratch(disk)))
        store = held.enter_context(closing(ArchiveMemory(Spool(disk), encoder, scratch.zeros)))
        return cls(store, held.enter_context(closing(MemoryLooks(store, THREADS))))

    def complete(self, members: Mapping[str, Path]) -> Mapping[str, Pages]:
        """Change the pagemaps to what they are in an archive; return the files of pages."""
        self.looks.complete(members)
        return {name: TakenPages(self.store, taken) for name, taken in self.looks.taken.items()}


def capture(
    container: Container,
    options: DumpOptions,
    store: Callable[[Mapping[str, Path], Manifest], None],
    saved: Saved,
    memory: MemoryTaker | None = None,
) -> None:
    """Take a container down and have ``store`` keep it, for good, before it may end.

    ``store`` gets the members of the checkpoint, by their names in an archive, as files that are
    removed afterwards. On any error, also one of ``store``, the container goes on as before.
    With ``memory`` the dump is lazy: see `_may_be_lazy`.
    """
    options = replace(options, lazy=memory is not None, carried=True)
    with staging(container.host) as stage, _alone(container) as alone:
        now = container.state()
        if not now.status.may_checkpoint:
            raise WrongState(
                f"{container.name} is {now.status.value}: only a running container can be "
                "checkpointed; nothing was changed",
                hint=f"pymigrate start {container.name}",
            )
        container.check_whole()
        with saved.phase("scan"):
            scan.refuse(container, options.tcp, options.skip)
        if memory is not None:
            with saved.phase("look"), _told_of(container):
                # What stands still already cannot be asked for anything: one would wait in vain.
                tracked = not container.cgroup.frozen()
                memory.look(container.cgroup.pids(), tracked=tracked)
        with (
            Wire(container) as wire,
            _as_before(container, now.status, saved, wire) as let_go_on,
            new_file.writing(stage),
            dump.prepare(container, lazy=options.lazy, carried=options.carried) as prepared,
            _guarded(container, alone, prepared.pid),
        ):
            with saved.phase("freeze"):
                saved.froze_at = time.monotonic()
                container.freeze()
                wire.unplug()
            if memory is not None:
                memory.look_still(container.cgroup.pids(), stage)
            members, held = _take_down(container, stage, options, prepared, saved, memory)
            with held:
                if options.leave_running:
                    held.abandon()
                    let_go_on()
                store(members, held.manifest)
                if not options.leave_running:
                    with saved.phase("end"):
                        container.expect_end()
                        if memory is None:
                            held.finish()
                        else:
                            container.end_processes(now)
                        saved.frozen = time.monotonic() - saved.froze_at
        events.note(
            container.host, container.record, "checkpoint", leave_running=options.leave_running
        )
        if not options.leave_running and now.supervisor is not None:
            lock.await_end(now.supervisor, KILL_SECONDS)  # it writes down the end and cleans up


@contextmanager
def _alone(container: Container) -> Iterator[int]:
    with lock.locked(container.directory) as held:
        container.check_free()
        yield held


@contextmanager
def _guarded(container: Container, held: int, criu_pid: int) -> Iterator[None]:
    """Have the supervisor let the container go on if this block does not end well."""
    with container.supervision() as supervision:
        supervision.guard(held, [criu_pid])
        yield
        supervision.unguard()


@contextmanager
def _as_before(
    container: Container, status: Status, saved: Saved, wire: Wire
) -> Iterator[Callable[[], None]]:
    """Give a function that lets the container go on; on an error it is called."""

    def let_go_on() -> None:
        wire.plug()
        if status is not Status.PAUSED:
            container.thaw()
        wire.deliver()
        saved.frozen = saved.frozen or time.monotonic() - saved.froze_at

    try:
        yield let_go_on
    except BaseException as error:
        if container.state().status.is_alive:
            container.expect_end(wanted=False)
            if saved.froze_at:
                let_go_on()
            if isinstance(error, PymigrateError):
                _tell_of(container, error)
        raise


@contextmanager
def _told_of(container: Container) -> Iterator[None]:
    """Say in an error what the container does, which was not stopped yet."""
    try:
        yield
    except PymigrateError as error:
        _tell_of(container, error)
        raise


def _tell_of(container: Container, error: PymigrateError) -> None:
    error.message = f"{container.name}: {error.message}; it goes on as before"


def _take_down(
    container: Container,
    stage: Path,
    options: DumpOptions,
    prepared: dump.PreparedDump,
    saved: Saved,
    memory: MemoryTaker | None,
) -> tuple[dict[str, Path], dump.HeldDump]:
    """Dump the frozen container and copy its files; returns the files of the archive."""
    images = stage / archive.IMAGES
    images.mkdir(mode=0o700)
    try:
        with saved.phase("dump"):
            held = dump.hold(container, images, options, prepared)
    except PymigrateError as error:
        free = os.statvfs(stage)
        if free.f_bavail * free.f_frsize < _FULL:
            raise NoSpace(
                f"the disk of {container.host.root} is full", hint="free some space, or use --root"
            ) from error
        raise
    try:
        if memory is not None:
            with saved.phase("let go"):
                # While the memory is looked at: CRIU leaves all in the freezer's hands, and needs
                # as long as a tenth of the whole pause to end.
                held.abandon()
            with saved.phase("memory"):
                memory.take(container.cgroup.pids(), stage, held.hidden)
        with saved.phase("files"):
            _copy_files(container, stage)
            _describe(container, stage, held)
    except BaseException:
        held.abandon()
        raise
    members = {
        str(path.relative_to(stage)): path
        for path in stage.rglob("*")
        if path.is_file() and path.name != DUMP_LOG
    }
    return members, held


def _copy_files(container: Container, stage: Path) -> None:
    with (stage / archive.FILES).open("wb", buffering=0) as stream:
        tree.write(container.upper, stream, overlay=True, hashed=False)
    for number, volume in enumerate(container.record.volumes):
        # A single file is the host's own, as /etc/localtime is: it must be there at the restore.
        if not volume.local and Path(volume.source).is_dir():
            (stage / "volumes").mkdir(exist_ok=True)
            with (stage / f"volumes/{number}.tar").open("wb", buffering=0) as stream:
                tree.write(Path(volume.source), stream, hashed=False)
    if container.log.exists():
        shutil.copyfile(container.log, stage / archive.LOG)


def _describe(container: Container, stage: Path, held: dump.HeldDump) -> None:
    deleted = sorted(whiteouts(container.upper))
    for name, document in podman.documents(held.manifest, deleted).items():
        (stage / name).write_text(json.dumps(document), encoding="utf-8")


def whiteouts(upper: Path) -> Iterator[str]:
    """Yield the paths, as the container sees them, of what it deleted from its image.

    Overlayfs marks them by character devices 0:0 (kernel: filesystems/overlayfs.rst).
    """
    for directory, _, names in os.walk(upper):
        for name in names:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                yield "/" + os.fsencode(path.relative_to(upper)).decode("utf-8", "replace")
