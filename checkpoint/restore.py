"""Bring a container back, and hold it: restored, frozen, unplugged, with nothing having run.

CRIU's last notification before it lets go of the tasks is ``pre-resume``: they are complete, their
restorer code is gone, and ptrace holds each of them. The cgroup is frozen there. So when CRIU
detaches, the tasks go from ptrace's hands into the freezer's, and no process of ours is needed any
more to hold them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pymigrate.checkpoint import criu, diagnosis, tmpfs_contents
from pymigrate.checkpoint.own_namespaces import can_be_inside
from pymigrate.checkpoint.requests import (
    RESTORE_LOG,
    SKIPS_SINCE,
    Inherited,
    RestoreOptions,
    restore_fields,
)
from pymigrate.runtime import labels, namespaces
from pymigrate.runtime.beside import Beside
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import RestoreFailed
from pymigrate.runtime.namespaces import host_id
from pymigrate.runtime.settings import Spec
from pymigrate.runtime.supervision import Supervision
from pymigrate.runtime.values import replace

HELD_AT = "pre-resume"
KEPT_REQUEST = "restore.json"  # with --debug, beside the log: what CRIU was asked for
NAMESPACES_MADE = "setup-namespaces"  # and empty; no task has been restored yet


class PreparedRestore(criu.Prepared):
    """A CRIU that sits in the container's cgroup and waits for its request; `hold` uses it up."""

    def __init__(self, session: criu.Session, inherited: Inherited) -> None:
        """Take a session and what its CRIU has inherited; use `prepare`."""
        super().__init__(session)
        self.inherited = inherited


def prepare(container: Container, *, inside: bool = False) -> PreparedRestore:
    """Do what needs neither images nor files: start CRIU where the container is to run.

    With ``inside`` it is started in the container's network too, for what was dumped from there.
    Whether it is there is looked at, and not believed: from the host's network it would restore
    the container into that.
    """
    with ExitStack() as stack:
        supervision = stack.enter_context(container.supervision())
        passed: list[int] = []

        def inherit(fd: int) -> int:
            stack.callback(os.close, fd)
            passed.append(fd)
            return criu.Session.INHERITED_FROM + len(passed) - 1

        netns = supervision.netns() if container.record.network.is_own else None
        network = inherit(netns) if netns is not None else None
        stdio = {name: inherit(fd) for name, fd in supervision.stdio().items()}
        inside = inside and can_be_inside(container)
        session = criu.Session.start(
            lambda argv, fds: supervision.spawn(argv, fds, in_cgroup=True, in_network=inside),
            passed,
        )
        supervision.expect_restore()  # while that CRIU starts
        inside = (
            inside
            and netns is not None
            and namespaces.is_in_network(session.pid, os.fstat(netns).st_ino)
        )
    cut_off = network is not None and criu.find().number >= SKIPS_SINCE
    return PreparedRestore(session, Inherited(network, stdio, cut_off, inside))


def hold(
    container: Container,
    images: Path,
    options: RestoreOptions,
    prepared: PreparedRestore | None = None,
) -> int:
    """Restore a prepared, unplugged container; returns the PID of its init, which is held.

    From then on nothing depends on the caller: ``plug`` and ``thaw`` let it run, ``remove`` ends
    it. Raises RestoreFailed with the first cause in CRIU's log; nothing runs then.
    """
    # CRIU would restore it without its labels where the host does not know these.
    labels.chosen(container.spec.process)
    with ExitStack() as stack:
        supervision = stack.enter_context(container.supervision())
        supervision.mount()
        if prepared is not None and prepared.inherited.inside != options.inside:
            prepared.close()
            prepared = None
        prepared = prepared or prepare(container, inside=options.inside)
        if options.inside and not prepared.inherited.inside:
            prepared.close()
            raise RestoreFailed(
                "it was written down inside its network, and criu cannot be started in there"
            )
        session = stack.enter_context(prepared.take())
        _give(images, container.spec)
        work = container.directory / "criu"
        if not options.lazy:
            _empty(work)
        fields = restore_fields(
            str(container.rootfs),
            _opened(images, stack),
            _opened(work, stack),
            prepared.inherited,
            replace(
                options, mounts=(*options.mounts, *_lend(supervision, container, images, options))
            ),
        )
        if options.debug:
            criu.keep_request(work / KEPT_REQUEST, "RESTORE", fields)
        try:
            session.ask("RESTORE", fields)
            pid = _converse(session, supervision, container, work)
        except criu.HungUp as error:
            raise _failed(str(error), work, None) from error
        supervision.adopt(pid)
    return pid


def _lend(
    supervision: Supervision, container: Container, images: Path, options: RestoreOptions
) -> Sequence[tuple[str, str]]:
    """Make the tmpfs that we carried, in the supervisor's mounts; return where CRIU finds each."""
    if not options.tmpfs:
        return ()
    try:
        with tmpfs_contents.made_anew(options.tmpfs, images) as trees:
            supervision.lend(trees)
    except OSError as error:
        raise RestoreFailed(f"the container's tmpfs could not be made: {error}") from error
    places = (container.lent / str(number) for number in range(len(options.tmpfs)))
    return [(each.place, str(place)) for each, place in zip(options.tmpfs, places, strict=True)]


def _converse(
    session: criu.Session, supervision: Supervision, container: Container, work: Path
) -> int:
    leaving: Beside[None] | None = None
    try:
        while True:
            event = session.next()
            if isinstance(event, criu.Finished):
                if event.success and event.pid is not None:
                    return event.pid
                raise _failed("criu could not restore it", work, event)
            if event.fd is not None:
                try:
                    supervision.terminal(event.fd)
                finally:
                    os.close(event.fd)
            if event.script == NAMESPACES_MADE and container.spec.private("user"):
                supervision.move_network(event.pid)
            if event.script == HELD_AT:
                if leaving is not None:
                    leaving.result()
                else:
                    container.cgroup.evict(session.pid)
                container.freeze()
            session.vote(yes=True)
            if event.script == NAMESPACES_MADE:
                # CRIU sits in the cgroup that its children must inherit; it must not freeze itself.
                # The first child is there, and has the others. To leave takes 6 to 18 ms, in which
                # CRIU goes on: it says more meanwhile, and waits for our votes.
                leaving = Beside(partial(container.cgroup.evict, session.pid), "evict")
    finally:
        if leaving is not None:
            leaving.wait()


def _give(images: Path, spec: Spec) -> None:
    """Let the container's root read the images too: CRIU's tasks first are the host's, then it."""
    if not spec.private("user"):
        return
    group = host_id(spec.gid_mappings, 0)
    for path in (images, *images.iterdir()):
        os.chown(path, 0, group)
        path.chmod(0o750 if path is images else 0o640)


def work_directory(container: Container) -> Path:
    """Make CRIU's work directory anew, for a pager to listen in before a lazy restore."""
    return _empty(container.directory / "criu")


def _empty(directory: Path) -> Path:
    if directory.exists():
        import shutil  # with bz2 and lzma; most have never been restored here

        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    return directory


def _opened(directory: Path, stack: ExitStack) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, descriptor)
    return descriptor


def _failed(what: str, work: Path, answer: criu.Finished | None) -> RestoreFailed:
    found = diagnosis.explain_file(work / RESTORE_LOG)
    if not found.line and answer is not None:
        found = diagnosis.explain(answer.message)
    return RestoreFailed(found.sentence(what), hint=found.remedy)
