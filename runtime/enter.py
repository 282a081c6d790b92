"""A further process in a running container: into its namespaces and cgroup, then as init does.

The two forks and what is said between them are drawn in birth.py.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from pymigrate.runtime import become, birth, init, namespaces, seccomp, syscalls, terminal
from pymigrate.runtime.errors import WrongState
from pymigrate.runtime.settings import Process, Spec
from pymigrate.runtime.stdio import Stdio
from pymigrate.runtime.values import dataclass


@dataclass(frozen=True)
class Entered:
    """The process, a child of the caller, and its terminal's master, the caller's to close."""

    pid: int
    terminal_master_fd: int | None


@dataclass(frozen=True)
class _Work:
    spec: Spec
    pidfd: int
    kinds: int
    cgroup: birth.Joinable | None
    confinement: become.Confinement
    stdio: Stdio
    kernel: init.Kernel
    preserved: int


def enter(
    container_pid: int,
    spec: Spec,
    process: Process,
    *,
    cgroup: birth.Joinable | None,
    stdio: Stdio,
    cache: Path | None = None,
    confined: bool = True,
    preserved: int = 0,
    kernel: init.Kernel = syscalls,
) -> Entered:
    """Run a process beside the container's init ``container_pid``, under the spec's seccomp filter.

    Returns when exec has succeeded; the process is a child of the caller, who must be
    single-threaded. ``process.capabilities`` are what it gets; ``confined`` False leaves out the
    seccomp filter (``--privileged``). ``process.terminal`` opens a terminal of the container's own
    and ``stdio`` is not used. The descriptors from 3 on go along, ``preserved`` of them. Raises as
    ``init.spawn_init`` does, and WrongState if init has ended.
    """
    with ExitStack() as undo:
        try:
            pidfd = os.pidfd_open(container_pid)
        except ProcessLookupError as error:
            raise WrongState("the container's first process has ended") from error
        undo.callback(os.close, pidfd)
        kinds = joined_kinds(
            namespaces.identities(container_pid), namespaces.identities(os.getpid())
        )
        profile = spec.seccomp if confined else None
        program = seccomp.program(profile, process.capabilities.bounding, cache)
        confinement = become.confinement(
            process, program, own_root=bool(kinds & syscalls.CLONE_NEWNS)
        )
        become.let_user_reopen(stdio, namespaces.host_id(spec.uid_mappings, process.user.uid))
        work = _Work(spec, pidfd, kinds, cgroup, confinement, stdio, kernel, preserved)
        born = birth.give_birth(
            lambda line: _enter_namespaces(work, line),
            lambda line: _run_command(work, line),
            cgroup=cgroup,
            kernel=kernel,
        )
    return Entered(born.pid, born.given.get("terminal"))


def joined_kinds(theirs: namespaces.Identities, ours: namespaces.Identities) -> int:
    """Return the CLONE_NEW flags of the kinds in which two processes differ.

    Compared rather than read from the spec: joining a user namespace that one is in already is an
    error, and the network namespace is made outside the spec.
    """
    return sum(
        namespaces.FLAGS[kind] for kind, identity in theirs.items() if ours.get(kind) != identity
    )


def _enter_namespaces(work: _Work, line: birth.Line) -> None:
    line.join(work.cgroup)
    become.hold_proc(work.confinement, line)
    # Before the container can see us: its root must not reach our memory or our descriptors.
    work.kernel.prctl(syscalls.PR_SET_DUMPABLE, 0)
    line.stage = "join the container's namespaces"
    if work.kinds:
        work.kernel.setns(work.pidfd, work.kinds)
    if work.kinds & syscalls.CLONE_NEWUSER:
        line.stage = "become root of the container's user namespace"
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _run_command(work: _Work, line: birth.Line) -> NoReturn:
    process = work.confinement.process
    os.setsid()
    slave = None
    if process.terminal:
        line.stage = "open a terminal in the container"
        master, slave = terminal.open_pair()
        os.fchown(slave, process.user.uid, -1)
        line.give("terminal", master)
    line.stage = "connect stdin, stdout and stderr"
    become.connect_stdio(work.stdio, slave=slave)
    if slave is not None:
        terminal.make_controlling(0)
    keep = range(3, 3 + work.preserved)
    become.become(work.confinement, line, work.kernel, keep=keep)
