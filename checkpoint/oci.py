"""Checkpoint and restore of the OCI command line's containers, as runc's callers expect them.

The images are CRIU's own, in a directory that the caller names, with ``descriptors.json`` beside
them as runc has it. Files and network are the caller's: podman puts them back before it restores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pymigrate.checkpoint import criu, diagnosis, preload, scan, scan_sockets
from pymigrate.checkpoint.requests import (
    DUMP_LOG,
    RESTORE_LOG,
    DumpOptions,
    Inherited,
    RestoreOptions,
    Subject,
    dump_fields,
    restore_fields,
)
from pymigrate.checkpoint.sight import Scene
from pymigrate.runtime import children, labels, mounts, syscalls
from pymigrate.runtime.cgroups import Cgroup
from pymigrate.runtime.errors import DumpFailed, RestoreFailed, UsageError, WrongState
from pymigrate.runtime.oci_container import OciContainer
from pymigrate.runtime.settings import Spec

SKIP = "pymigrate.skip"
"""The annotation that names findings to be skipped, for callers who cannot say ``--skip``."""

_DESCRIPTORS = "descriptors.json"


@dataclass(frozen=True)
class Choices:
    """What runc's callers may choose; ``tcp`` is established, skip, or None: there must be none."""

    tcp: str | None = None
    leave_running: bool = False
    shell_job: bool = False
    skip: tuple[str, ...] = ()  # findings in spite of which it is written down


def _binds(settings: Spec, cgroup: Cgroup) -> dict[str, str]:
    """Return what of the host is mounted where: CRIU is told, for it cannot make it."""
    plan = mounts.plan(settings, cgroup.places)
    return {each.destination: each.source for each in plan if isinstance(each, mounts.Bind)}


def dump(container: OciContainer, images: Path, work: Path | None, choices: Choices) -> None:
    """Write a running container down; it has ended then, unless it is to be left running.

    Raises:
        WrongState: it does not run.
        DumpFailed: CRIU could not, or a look at it says so, and nothing was touched. It runs on.

    """
    status = container.status()
    if status != "running" or container.init is None:
        raise WrongState(f"cannot checkpoint container {container.id}: it is {status}")
    settings = container.spec
    _refuse_own_users(settings)
    pid = container.init.pid
    binds = _binds(settings, container.cgroup)
    scan.refuse_at(
        Scene(
            container.id,
            pid,
            container.cgroup,
            settings,
            tuple(binds),
            own_network=settings.private("network"),
        ),
        choices.tcp or scan_sockets.NONE,
        (*choices.skip, *_skipped(container)),
        f"--skip CHECK, or an annotation {SKIP}=CHECK,CHECK of the container, goes on in spite of "
        "one",
    )
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    links = [_link(pid, number) for number in range(3)]
    (images / _DESCRIPTORS).write_text(json.dumps(links))
    subject = Subject(
        pid=pid,
        network_inode=Path(f"/proc/{pid}/ns/net").stat().st_ino
        if settings.private("network")
        else None,
        mounts=tuple(binds),
        freezer=container.cgroup.freezer_path,
    )
    options = DumpOptions(leave_running=choices.leave_running)
    with ExitStack() as stack:
        fields = dump_fields(subject, _opened(images, stack), options)
        fields |= _tcp(choices.tcp) | {"shell_job": choices.shell_job}
        if work is not None:
            fields["work_dir_fd"] = _opened(work, stack)
        session = stack.enter_context(
            criu.Session.start(lambda argv, fds: children.spawn(preload.wrapped(argv), fds, _no))
        )
        try:
            session.ask("DUMP", fields)
            answer = _until_finished(session, rest=criu.REST)
        except criu.HungUp as error:
            raise DumpFailed(str(error)) from error
        finally:
            session.end()
            os.waitpid(session.pid, 0)
    if not answer.success:
        found = diagnosis.explain_file((work or images) / DUMP_LOG)
        raise DumpFailed(found.sentence("criu could not write it down"), hint=found.remedy)


def restorer(
    images: Path, work: Path | None, choices: Choices, inherited: Mapping[str, int]
) -> Callable[[Spec, Path, Cgroup, int | None], tuple[int | None, int]]:
    """Return what gives birth to a container from its images; see oci_container.create.

    ``inherited`` are our own streams by name.
    """

    def restore(
        settings: Spec, rootfs: Path, cgroup: Cgroup, network: int | None
    ) -> tuple[int | None, int]:
        _refuse_own_users(settings)
        labels.chosen(settings.process)
        try:
            links = json.loads((images / _DESCRIPTORS).read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{images}: not a checkpoint: {error}") from error
        if not isinstance(links, list) or not all(isinstance(each, str) for each in links):
            raise UsageError(f"{images}: not a checkpoint: {_DESCRIPTORS} is damaged")
        # CRIU takes a mount point for the root, and nothing of it may stay on the host.
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        syscalls.mount(rootfs, rootfs, None, syscalls.MS_BIND | syscalls.MS_REC)

        def join() -> None:
            cgroup.join()
            if settings.private("cgroup"):
                syscalls.unshare(syscalls.CLONE_NEWCGROUP)

        streams = {} if settings.process.terminal else dict(inherited)
        passed = [*([] if network is None else [network]), *streams.values()]
        first = criu.Session.INHERITED_FROM
        numbers = dict(zip(streams, range(first + (network is not None), first + 9), strict=False))
        options = RestoreOptions(
            network=network is not None,
            descriptors=tuple(links),
            mounts=tuple(_binds(settings, cgroup).items()),
        )
        with ExitStack() as stack:
            fields = restore_fields(
                os.fspath(rootfs),
                _opened(images, stack),
                _opened(work or images, stack),
                Inherited(None if network is None else first, numbers),
                options,
            )
            fields |= _tcp(choices.tcp) | {"shell_job": choices.shell_job}
            session = stack.enter_context(
                criu.Session.start(lambda argv, fds: children.spawn(argv, fds, join), passed)
            )
            terminal: list[int] = []
            try:
                session.ask("RESTORE", fields)
                answer = _until_finished(session, terminal)
            except criu.HungUp as error:
                raise RestoreFailed(str(error)) from error
            finally:
                session.end()
                os.waitpid(session.pid, 0)
        if not answer.success or answer.pid is None:
            found = diagnosis.explain_file((work or images) / RESTORE_LOG)
            raise RestoreFailed(found.sentence("criu could not restore it"), hint=found.remedy)
        return (terminal[0] if terminal else None), answer.pid

    return restore


def _refuse_own_users(settings: Spec) -> None:
    if settings.private("user"):
        raise UsageError("a container with users of its own: only `pymigrate checkpoint` can")


def _tcp(choice: str | None) -> dict[str, object]:
    return {
        "tcp_established": choice is not None,
        **({"tcp_skip_in_flight": True} if choice == "skip" else {}),
    }


def _skipped(container: OciContainer) -> tuple[str, ...]:
    return tuple(name for name in container.annotations.get(SKIP, "").split(",") if name)


def _until_finished(
    session: criu.Session, terminal: list[int] | None = None, rest: float | None = None
) -> criu.Finished:
    while True:
        event = session.next(rest=rest)
        if isinstance(event, criu.Finished):
            return event
        if event.fd is not None and terminal is not None:
            terminal.append(event.fd)
        elif event.fd is not None:
            os.close(event.fd)
        session.vote(yes=True)


def _no() -> None:
    """Do nothing before a program is run."""


def _link(pid: int, number: int) -> str:
    try:
        return os.fspath(Path(f"/proc/{pid}/fd/{number}").readlink())
    except FileNotFoundError:
        return ""  # closed by the program


def _opened(directory: Path, stack: ExitStack) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor
