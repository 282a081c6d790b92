"""A container's first process: from the supervisor's fork to the exec of its command.

The two forks and what is said between them are drawn in birth.py. In the middle process the cgroup
and the namespaces are entered; in the newborn, which is pid 1 where the PID namespace is new, the
mounts are made, the root is changed and privileges are dropped.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn, Protocol

from pymigrate.runtime import (
    become,
    birth,
    mounting,
    mounts,
    namespaces,
    seccomp,
    syscalls,
    terminal,
    userns,
)
from pymigrate.runtime import rootfs as roots
from pymigrate.runtime.mount_options import options
from pymigrate.runtime.settings import Spec
from pymigrate.runtime.stdio import Stdio
from pymigrate.runtime.values import dataclass, replace


class Kernel(birth.Kernel, become.Kernel, namespaces.Kernel, roots.Kernel, Protocol):
    """The calls that starting a container takes; see runtime/syscalls.py."""

    def sethostname(self, name: str) -> None:
        """See sethostname(2)."""


@dataclass(frozen=True)
class Started:
    """The init, a child of the caller, and the master of its terminal, the caller's to close."""

    pid: int
    terminal_master_fd: int | None


class Ceremony(Protocol):
    """What an OCI `create` adds to a birth; see oci_birth.py."""

    def answer(self, name: str, pid: int) -> Mapping[str, object]:
        """Do the caller's part when the surroundings are ready, before the root is changed."""

    def surrounded(self, line: birth.Line) -> None:
        """Do the newborn's part of the same, in the container's namespaces and the host's root."""

    def about_to_run(self, line: birth.Line) -> None:
        """Wait for `start`, in the container."""

    def kept(self) -> Collection[int]:
        """Return the descriptors that about_to_run needs, and those for the command."""


@dataclass(frozen=True)
class _Work:
    """All that the children need, gathered before the fork."""

    spec: Spec
    plan: namespaces.Plan
    joined: tuple[tuple[str, int], ...]
    network: int | None
    users: int | None
    cgroup: birth.Joinable | None
    operations: tuple[mounts.Operation, ...]
    trees: dict[int, int]  # index of the operation -> its detached mount
    root: int | None  # the root's detached mount; None: the caller's root stays
    confinement: become.Confinement
    stdio: Stdio
    kernel: Kernel
    ceremony: Ceremony | None = None


def spawn_init(
    spec: Spec,
    *,
    rootfs: str,
    netns_fd: int | None,
    cgroup: birth.Joinable | None,
    stdio: Stdio,
    users_fd: int | None = None,
    cache: Path | None = None,
    cgroup_places: Mapping[str, str] | None = None,
    ceremony: Ceremony | None = None,
    kernel: Kernel = syscalls,
) -> Started:
    """Start the container's command in ``rootfs`` (a directory; "/" is the caller's own root).

    ``users_fd`` is the container's user namespace where it was made before, with the network.
    ``cache`` is a directory of root's for compiled seccomp profiles: 25 ms less at each start.
    ``cgroup_places`` is what a mount of cgroups shows (Cgroup.places). With ``ceremony`` it returns
    when the command only waits to be run.
    Returns when exec has succeeded; the init is a child of the caller. The caller must be
    single-threaded and keeps its ends of ``stdio``. On failure nothing is left: CannotRun (126) or
    CommandNotFound (127) for the command, HostError for the rest, UsageError for settings.
    """
    with ExitStack() as undo:
        try:
            if users_fd is None and spec.private("user"):
                users_fd = userns.make(spec, network=False, kernel=kernel).users
                undo.callback(os.close, users_fd)
            work = _prepare(
                spec, rootfs, netns_fd, users_fd, cgroup, stdio, cache, cgroup_places, kernel, undo
            )
            work = replace(work, ceremony=ceremony)
        except OSError as error:
            raise birth.translate(error, "prepare the container's mounts") from error
        born = birth.give_birth(
            lambda line: _enter_namespaces(work, line),
            lambda line: _run_command(work, line),
            cgroup=cgroup,
            kernel=kernel,
            answer=None if ceremony is None else ceremony.answer,
        )
    return Started(born.pid, born.given.get("terminal"))


def _prepare(
    spec: Spec,
    rootfs_path: str,
    network: int | None,
    users: int | None,
    cgroup: birth.Joinable | None,
    stdio: Stdio,
    cache: Path | None,
    cgroup_places: Mapping[str, str] | None,
    kernel: Kernel,
    undo: ExitStack,
) -> _Work:
    plan = namespaces.plan(spec, network_given=network is not None)
    joined = namespaces.open_joined(plan, undo)
    own_root = spec.private("mount") and posixpath.normpath(rootfs_path) != "/"
    program = seccomp.program(spec.seccomp, spec.process.capabilities.bounding, cache)
    confinement = become.confinement(spec.process, program, own_root=own_root)
    become.let_user_reopen(stdio, namespaces.host_id(spec.uid_mappings, spec.process.user.uid))
    operations = mounts.plan(spec, cgroup_places)
    root = None
    if own_root:
        from_host = (spec.rootfs_propagation or "").endswith("slave")
        root = roots.open_root(rootfs_path, kernel, slave=from_host)
        undo.callback(os.close, root)
        if users is not None:
            host_root = namespaces.host_id(spec.uid_mappings, 0)
            roots.shift_root(root, rootfs_path, users, host_root, kernel)
    trees = {}
    for index, operation in enumerate(operations):
        # Sources are the host's paths: opened with the caller's rights, whatever user namespace
        # comes, and so that a missing one is found before anything has started.
        if isinstance(operation, mounts.Bind):
            trees[index] = mounting.make_tree(operation, kernel)
            undo.callback(os.close, trees[index])
    return _Work(
        spec, plan, joined, network, users, cgroup, operations, trees, root, confinement, stdio,
        kernel,
    )  # fmt: skip


def _enter_namespaces(work: _Work, line: birth.Line) -> None:
    spec, kernel = work.spec, work.kernel
    become.hold_proc(work.confinement, line)
    if spec.process.oom_score_adj is not None:
        line.stage = "set the OOM score"
        namespaces.write_file("/proc/self/oom_score_adj", str(spec.process.oom_score_adj))
    line.join(work.cgroup)
    line.stage = "join namespaces"
    if work.network is not None:
        kernel.setns(work.network, syscalls.CLONE_NEWNET)
    namespaces.join(work.joined, kernel)
    if work.users is not None:
        _enter_user_namespace(work, work.users, line)
    line.stage = f"make namespaces ({work.plan.describe()})"
    kernel.unshare(work.plan.unshare)
    if spec.time_offsets:
        # Only before the first process is in it, which is the next fork.
        line.stage = "set the clocks"
        text = namespaces.time_offsets(spec.time_offsets)
        namespaces.write_file("/proc/self/timens_offsets", text)
    # From here on no process of a shared or joined PID namespace may look into ours.
    kernel.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _enter_user_namespace(work: _Work, users: int, line: birth.Line) -> None:
    kernel = work.kernel
    for index, operation in enumerate(work.operations):
        # sysfs belongs to the network namespace: where that is not the container's own user
        # namespace's, only the host's root may mount it.
        if isinstance(operation, mounts.Filesystem) and operation.type == "sysfs":
            line.stage = mounts.describe(operation)
            work.trees[index] = mounting.make_tree(operation, kernel)
    line.stage = "join the user namespace"
    kernel.setns(users, syscalls.CLONE_NEWUSER)
    line.stage = "become root of the user namespace"
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # The change of user took it away, and with it the right to write our own files in /proc.
    kernel.prctl(syscalls.PR_SET_DUMPABLE, 1)


def _run_command(work: _Work, line: birth.Line) -> NoReturn:
    spec, kernel, process = work.spec, work.kernel, work.spec.process
    os.setsid()
    if spec.hostname:
        line.stage = "set the hostname"
        kernel.sethostname(spec.hostname)
    if spec.private("mount"):
        _change_root(work, line)
    elif work.ceremony is not None:
        work.ceremony.surrounded(line)
    slave = None
    if process.terminal:
        line.stage = "open a terminal"
        slave = _open_terminal(work, line)
    line.stage = "connect stdin, stdout and stderr"
    become.connect_stdio(work.stdio, slave=slave)
    if slave is not None:
        terminal.make_controlling(0)
    ceremony = work.ceremony
    if ceremony is None:
        become.become(work.confinement, line, kernel)
    become.become(
        work.confinement,
        line,
        kernel,
        keep=ceremony.kept(),
        before_exec=lambda: ceremony.about_to_run(line),
    )


def _change_root(work: _Work, line: birth.Line) -> None:
    kernel = work.kernel
    # Modes of nodes and directories are meant as written.
    os.umask(0)
    line.stage = "cut the mounts off from the host's"
    kernel.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    if work.root is None:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        line.stage = "mount the container's root"
        root = work.root
        roots.cover(root, kernel)
    for index, operation in enumerate(work.operations):
        line.stage = mounts.describe(operation)
        mounting.execute(operation, root, work.trees.get(index), kernel)
    if work.ceremony is not None:
        work.ceremony.surrounded(line)
    if work.root is not None:
        line.stage = "change the root"
        roots.pivot(root, kernel)
        propagation = work.spec.rootfs_propagation
        if propagation is not None and not propagation.endswith(("slave", "private")):
            line.stage = f"make the root {propagation}"
            kernel.mount(None, "/", None, options((propagation,)).propagation_flags)


def _open_terminal(work: _Work, line: birth.Line) -> int:
    master, slave = terminal.open_pair()
    os.fchown(slave, work.spec.process.user.uid, -1)
    if work.root is not None:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        terminal.bind_console(master, root, work.kernel)
    line.give("terminal", master)
    return slave
