"""Write a container down, and hold it: CRIU has everything and waits in ``post-dump`` for our vote.

Seen (kernel 6.18, CRIU 4.2.1): while CRIU waits, it has thawed the cgroup and holds the tasks by
ptrace alone; should it be killed then, they would run on. So the cgroup is frozen again at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pymigrate.checkpoint import criu, diagnosis, hidden_memory, own_namespaces, preload
from pymigrate.checkpoint.hidden_memory import Hidden
from pymigrate.checkpoint.images import prepare as load_messages
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.requests import (
    DUMP_LOG,
    LAZY_CONFIG,
    SKIPS_SINCE,
    DumpOptions,
    Subject,
    dump_fields,
    node_mounts,
)
from pymigrate.checkpoint.sight import is_below
from pymigrate.checkpoint.tmpfs_contents import Contents, open_of
from pymigrate.runtime import mounts, namespaces, tcp_repair
from pymigrate.runtime.cgroups import current_layout
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import DumpFailed, WrongState
from pymigrate.runtime.namespaces import host_id
from pymigrate.runtime.settings import Spec
from pymigrate.runtime.state import Record
from pymigrate.runtime.version import VERSION

HELD_AT = "post-dump"
ANSWER_SECONDS = 60.0
KEPT_LOG = "criu-dump.log"
"""In the container's directory: CRIU's log of its last dump that failed, for `report-bug`; or, with
--debug, of its last dump."""
KEPT_REQUEST = "criu-dump.json"
"""Beside it, with --debug: what CRIU was asked for."""


class HeldDump:
    """A container that is written down, frozen, and neither dead nor running.

    ``finish`` kills it (or, if it was dumped to be left running, lets CRIU go); ``abandon`` lets it
    live. Either way its cgroup is frozen afterwards if it lives: to thaw is the caller's.

    A lazy dump can only be abandoned: its memory is in its processes, and CRIU does not kill them.
    """

    def __init__(
        self,
        container: Container,
        session: criu.Session,
        images: Path,
        manifest: Manifest,
        hidden: Sequence[Hidden],
    ) -> None:
        """Wrap a session that waits for its vote; use `hold`.

        ``hidden`` is the memory that CRIU was not shown.
        """
        self.container = container
        self.images = images
        self.manifest = manifest
        self.hidden = hidden
        self._session: criu.Session | None = session

    def finish(self) -> None:
        """Vote yes. On cgroup v1 what is frozen does not die, so it is thawed: to die, not to run.

        Raises DumpFailed if CRIU failed all the same.
        """
        if self.manifest.lazy:
            raise AssertionError("a lazy dump is abandoned, and then the container is killed")
        if self._session is None:
            return
        session, self._session = self._session, None
        with session:
            cgroup = self.container.cgroup
            if cgroup.freezer_version == 1:
                # CRIU has sent each task its SIGKILL-to-be by ptrace: none runs on.
                cgroup.thaw()
            try:
                session.vote(yes=True)
                answer = _until_finished(session)
            except criu.HungUp as error:
                _undo_for(self.container, session)
                raise _failed(self.container, str(error), self.images, None) from error
        if not answer.success:
            raise _failed(self.container, "the dump could not be finished", self.images, answer)

    def abandon(self) -> None:
        """Vote no: CRIU undoes what it did and leaves the cgroup frozen. May be repeated."""
        if self._session is None:
            return
        session, self._session = self._session, None
        with session:
            try:
                session.vote(yes=False)
                _until_finished(session)
            except criu.HungUp:
                _undo_for(self.container, session)

    def __enter__(self) -> Self:
        """Abandon at the end of the block unless finished."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abandon unless finished."""
        self.abandon()


class PreparedDump(criu.Prepared):
    """A CRIU that waits for its request; ``inside`` says whether in the container's network.

    From there CRIU takes nothing of the network, which costs 20 ms also where that is external:
    connection tracking is written down all the same (CRIU: dump_net_ns in criu/net.c). But it
    would lose networks that the container made itself, so `hold` looks for these.
    """

    def __init__(
        self,
        session: criu.Session,
        table: int | None,
        contents: Contents | None,
        *,
        inside: bool,
    ) -> None:
        """Take a session that was asked nothing yet, and what is ours then; use `prepare`.

        ``table`` is a file in memory, in which CRIU looks for what is hidden from it; ``contents``
        are those of the tmpfs that we carry.
        """
        super().__init__(session)
        self.contents = contents
        self.inside = inside
        self.hides = table is not None
        self._table = table

    def hide(self, pids: Sequence[int]) -> Sequence[Hidden]:
        """Hide from CRIU what nobody reads there, if it can be; the processes stand still."""
        if self._table is None:
            return ()
        hidden = hidden_memory.look(pids)
        os.write(self._table, hidden_memory.table(hidden))
        return hidden

    def close(self) -> None:
        """End CRIU if it was not taken; may be repeated."""
        super().close()
        if self._table is not None:
            os.close(self._table)
            self._table = None
        if self.contents is not None:
            self.contents.close()


def prepare(
    container: Container, *, inside: bool = False, lazy: bool = False, carried: bool = False
) -> PreparedDump:
    """Do what needs no frozen container: load CRIU's messages and start CRIU.

    With ``inside`` it is started in the container's network, if that can be dumped from there; with
    ``lazy`` so that memory can be hidden from it; with ``carried`` it need not see to tmpfs.
    DumpFailed says already now what could never be restored.
    """
    _refuse_what_cannot_come_back(container)
    init = container.state().init
    inode = None
    if inside and init is not None and own_namespaces.can_be_inside(container):
        inode = own_namespaces.network_of(init.pid)
    with ExitStack() as undo:
        table = None
        if lazy:
            load_messages()
        if lazy and preload.is_here():
            table = os.memfd_create("pymigrate-hidden", os.MFD_CLOEXEC)
            undo.callback(os.close, table)
        contents = None
        if carried and init is not None and can_be_carried(container):
            contents = undo.enter_context(_contents_of(container, init.pid))
        passed = [] if table is None else [table]
        number = None if table is None else criu.Session.INHERITED_FROM
        with container.supervision() as supervision:
            session = criu.Session.start(
                lambda argv, fds: supervision.spawn(
                    preload.wrapped(argv, number),
                    fds,
                    in_cgroup=False,
                    in_network=inode is not None,
                ),
                passed,
            )
        undo.pop_all()
    return PreparedDump(
        session,
        table,
        contents,
        inside=inode is not None and namespaces.is_in_network(session.pid, inode),
    )


def can_be_carried(container: Container) -> bool:
    """Say whether tmpfs may be carried: made by root, as ours are, and nobody else's mounts."""
    return container.spec.private("mount") and not container.spec.private("user")


def _contents_of(container: Container, pid: int) -> Contents:
    return open_of(pid, _not_carried(container.record, container.spec, pid))


def _not_carried(record: Record, spec: Spec, pid: int) -> frozenset[str]:
    """List where the container has something of the host's, or what is made anew otherwise."""
    binds = (each.destination for each in spec.mounts if each.type == "bind")
    volumes = (each.destination for each in record.volumes)
    return frozenset((*binds, *volumes, *_cgroup_mounts(spec, pid)))


def _refuse_what_cannot_come_back(container: Container) -> None:
    """Raise DumpFailed for what CRIU writes down and could not restore as the container's users."""
    if not container.spec.private("user"):
        return
    if not container.record.network.is_own:
        # CRIU, as the container's users, would have to mount a sysfs of the host's network.
        raise DumpFailed(
            f"{container.name} has users of its own and a network that is not: criu could not "
            "restore it; it goes on as before",
            hint="run it without --userns, or with a network of its own",
        )
    uid = host_id(container.spec.uid_mappings, 0)
    for volume in container.record.volumes:
        for parent in Path(volume.source).parents:
            status = parent.stat()
            if not status.st_mode & 0o001 and status.st_uid != uid:
                raise DumpFailed(
                    f"{container.name}: its users may not pass through {parent} on the host, so "
                    f"criu could not mount {volume.source} for them; it goes on as before",
                    hint=f"chmod o+x {parent}, or keep the volume elsewhere",
                )


def _nothing() -> None:
    """Do nothing beside CRIU."""


def hold(
    container: Container,
    images: Path,
    options: DumpOptions,
    prepared: PreparedDump | None = None,
    *,
    asked: Callable[[], None] = _nothing,
) -> HeldDump:
    """Dump a frozen container into an empty directory; returns when CRIU waits for the vote.

    ``asked`` is called once CRIU has been asked, for what is to be done beside it.

    Raises DumpFailed with the first cause in CRIU's log; the container is then as it was: frozen.
    """
    held = _hold(container, images, options, prepared, asked)
    try:
        if hidden_memory.fits(held.hidden, images):
            return held
    except BaseException:  # nobody has it yet who would let CRIU go
        held.abandon()
        raise
    # Of a mapping that was hidden and would not come later pages were lost: once more, all shown.
    held.abandon()
    for path in images.iterdir():
        path.unlink()
    again = prepare(container, inside=options.inside, carried=options.carried)
    return _hold(container, images, options, again, _nothing)


def _hold(
    container: Container,
    images: Path,
    options: DumpOptions,
    prepared: PreparedDump | None,
    asked: Callable[[], None],
) -> HeldDump:
    init = container.state().init
    if init is None:
        raise WrongState(f"{container.name} has no processes to write down")
    prepared = prepared or prepare(
        container, inside=options.inside, lazy=options.lazy, carried=options.carried
    )
    if prepared.inside and not own_namespaces.has_one("net", container, init.pid):
        prepared.close()
        prepared = prepare(container, lazy=prepared.hides, carried=options.carried)
    with ExitStack() as opened:
        opened.callback(prepared.close)
        options = replace(options, inside=prepared.inside)
        contents = _current_contents(prepared, container, init.pid)
        tmpfs = () if contents is None else contents.carried
        subject = subject_of(container, init.pid)
        subject = replace(
            subject,
            inside=prepared.inside,
            mounts=(*subject.mounts, *(each.place for each in tmpfs)),
        )
        manifest = replace(describe(container, init.pid, options), tmpfs=tmpfs)
        images_fd = os.open(images, os.O_RDONLY | os.O_DIRECTORY)
        opened.callback(os.close, images_fd)
        config = _memory_file(LAZY_CONFIG, opened) if options.lazy else ""
        hidden = prepared.hide(container.cgroup.pids()) if options.lazy else ()
        session = prepared.take()
        session.before_kill = container.freeze
        fields = dump_fields(subject, images_fd, options, config)
        if options.debug:
            criu.keep_request(container.directory / KEPT_REQUEST, "DUMP", fields)
            opened.callback(_keep_log, container, images)
        try:
            session.ask("DUMP", fields)
            asked()
            _until_held(container, session, images)
            container.freeze()
            if contents is not None:  # not before: CRIU gives names to what has none any more
                contents.write(images)
        except criu.HungUp as error:
            _undo_for(container, session)
            raise _failed(container, str(error), images, None) from error
        except BaseException:  # also Ctrl-C: whoever thaws the container next must be the last
            session.end()
            raise
    return HeldDump(container, session, images, manifest, hidden)


def _current_contents(prepared: PreparedDump, container: Container, pid: int) -> Contents | None:
    """Return the contents that can be carried of a frozen container, of the mounts that it has."""
    contents = prepared.contents
    if contents is None or not own_namespaces.has_one("mnt", container, pid):
        return None
    if not contents.is_current(pid):
        contents.close()
        contents = prepared.contents = _contents_of(container, pid)
    return contents


def _undo_for(container: Container, session: criu.Session) -> None:
    """Undo what a CRIU did that was killed: it leaves the container frozen, its sockets halted."""
    session.end()
    container.freeze()
    tcp_repair.end(container.cgroup.pids())


def _memory_file(text: str, opened: ExitStack) -> str:
    """Return the path of a file that is in no file system, and there as long as `opened` is."""
    descriptor = os.memfd_create("pymigrate-criu", os.MFD_CLOEXEC)
    opened.callback(os.close, descriptor)
    os.write(descriptor, text.encode())
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def subject_of(container: Container, pid: int) -> Subject:
    """Say what CRIU must know of the container."""
    network = container.record.network
    return Subject(
        pid=pid,
        network_inode=Path(f"/proc/{pid}/ns/net").stat().st_ino if network.is_own else None,
        mounts=(
            *(volume.destination for volume in container.record.volumes),
            *_host_nodes(container.spec, pid),
        ),
        freezer=container.cgroup.freezer_path,
        left_out=_cgroup_mounts(container.spec, pid),
        own_users=container.spec.private("user"),
        cut_off=network.is_own and criu.find().number >= SKIPS_SINCE,
    )


def _host_nodes(spec: Spec, pid: int) -> list[str]:
    """List where device nodes of the host are mounted, as containers with own users have them."""
    if not spec.private("user"):
        return []
    ours = {path for path, _ in node_mounts(spec)}
    # Of the masked places the directories are covered by a tmpfs of the container's own.
    return [each[4] for each in _mountinfo(pid) if each[4] in ours and each[3] != "/"]


def _cgroup_mounts(spec: Spec, pid: int) -> tuple[str, ...]:
    """List where the container sees its cgroup: of v1 a directory a hierarchy, below a tmpfs."""
    places = mounts.cgroup_places(spec)
    if not places:
        return ()
    found = (each[4] for each in _mountinfo(pid))
    return tuple(path for path in found if any(is_below(path, place) for place in places))


def _mountinfo(pid: int) -> list[list[str]]:
    text = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return [line.split(" ") for line in text.splitlines()]


def describe(container: Container, pid: int, options: DumpOptions) -> Manifest:
    """Describe the checkpoint that is about to be made."""
    system = os.uname()
    return Manifest(
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        software=f"pymigrate {VERSION}",
        criu=criu.find().version,
        kernel=system.release,
        machine=system.machine,
        page_size=os.sysconf("SC_PAGE_SIZE"),
        cgroup=current_layout().kind,
        tcp=options.tcp,
        descriptors=tuple(_link(pid, number) for number in range(3)),
        record=container.record,
        spec=container.spec,
        members={},
        lazy=options.lazy,
        inside=options.inside,
    )


def _link(pid: int, number: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/{number}").readlink())
    except FileNotFoundError:
        return ""  # closed by the program


def _until_held(container: Container, session: criu.Session, images: Path) -> None:
    while True:
        event = session.next(rest=criu.REST)
        if isinstance(event, criu.Finished):
            raise _failed(container, "criu could not write it down", images, event)
        if event.fd is not None:
            os.close(event.fd)
        if event.script == HELD_AT:
            return
        session.vote(yes=True)


def _until_finished(session: criu.Session) -> criu.Finished:
    while True:
        event = session.next(ANSWER_SECONDS, criu.REST)
        if isinstance(event, criu.Finished):
            return event
        session.vote(yes=True)


def _failed(
    container: Container, what: str, images: Path, answer: criu.Finished | None
) -> DumpFailed:
    _keep_log(container, images)
    found = diagnosis.explain_file(images / DUMP_LOG)
    if not found.line and answer is not None:
        found = diagnosis.explain(answer.message)
    return DumpFailed(found.sentence(what), hint=found.remedy)


def _keep_log(container: Container, images: Path) -> None:
    kept = container.directory / KEPT_LOG
    with suppress(OSError):  # a full disk, say: the failure itself is what must be told
        kept.write_bytes((images / DUMP_LOG).read_bytes()[-diagnosis.MAX_LOG :])
        kept.chmod(0o600)
