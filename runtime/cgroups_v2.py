"""One cgroup in the unified hierarchy, cgroup v2.

Kernel: Documentation/admin-guide/cgroup-v2.rst. It differs from v1 in three ways that matter
here. A controller works in a cgroup only when the parent's ``cgroup.subtree_control`` names it. A
cgroup with processes of its own cannot enable (most) controllers for its children, the root
excepted. And the kernel tells when a cgroup became frozen or empty, by POLLPRI on cgroup.events.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from pymigrate.runtime import cgroups_files as files
from pymigrate.runtime.cgroups_files import Limit
from pymigrate.runtime.deadline import Deadline
from pymigrate.runtime.errors import MissingFeature

if TYPE_CHECKING:
    from pymigrate.runtime.spec import Resources

CONTROLLERS = frozenset({"cpu", "cpuset", "hugetlb", "io", "memory", "pids"})
_DELEGATED = CONTROLLERS - {"hugetlb"}  # systemd hands this one on to nobody
SWAP_HINT = "this kernel has no swap accounting: leave --memory-swap out"
JOIN_FILE = "cgroup.procs"
VERSION = 2
_LOOK_SECONDS = 0.05


def limits(resources: Resources) -> tuple[Limit, ...]:
    """Return what to write; device rules are not written, but see cgroups_devices.py."""
    plan: list[Limit] = []
    if resources.memory_limit is not None:
        plan.append(Limit("memory limit", "memory", "memory.max", _most(resources.memory_limit)))
    if resources.memory_swap is not None:
        swap = _swap(resources.memory_limit, resources.memory_swap)
        plan.append(Limit("memory and swap limit", "memory", "memory.swap.max", swap))
    if resources.memory_reservation is not None:
        value = _most(resources.memory_reservation)
        plan.append(Limit("memory reservation", "memory", "memory.low", value))
    plan += _cpu(resources)
    if resources.cpuset_cpus:
        plan.append(Limit("set of cpus", "cpuset", "cpuset.cpus", resources.cpuset_cpus))
    if resources.cpuset_mems:
        plan.append(Limit("set of memory nodes", "cpuset", "cpuset.mems", resources.cpuset_mems))
    if resources.pids_limit is not None:
        most = _most(resources.pids_limit or -1)
        plan.append(Limit("limit of processes", "pids", "pids.max", most))
    return (*plan, *_io(resources), *files.hugepage_limits(resources.hugepages, "max", none="max"))


def _cpu(resources: Resources) -> list[Limit]:
    quota = None
    if resources.cpu_quota_us is not None or resources.cpu_period_us is not None:
        value = _most(resources.cpu_quota_us or -1)
        period = f" {resources.cpu_period_us}" if resources.cpu_period_us else ""
        quota = Limit("cpu quota", "cpu", "cpu.max", f"{value}{period}")
    weight = resources.cpu_weight
    return [
        *files.quota_and_burst(quota, "cpu.max.burst", resources.cpu_burst_us),
        *files.weight_and_idle(
            None if weight is None else Limit("cpu weight", "cpu", "cpu.weight", str(weight)),
            idle=resources.cpu_idle,
        ),
    ]


def as_written(unified: Iterable[tuple[str, str]], of_v1: Container[str] | None) -> list[Limit]:
    """Return limits that are asked for by their files' names, each line by itself.

    MissingFeature for one whose controller is of v1; None: all are.
    """
    plan = [
        Limit(file, file.partition(".")[0], file, line)
        for file, text in unified
        for line in text.splitlines()
    ]
    for limit in plan:
        if of_v1 is None or limit.controller in of_v1:
            raise MissingFeature(
                f"this host cannot enforce {limit.what}: its {limit.controller} controller is of "
                "cgroup v1",
                hint="say it by a setting that both versions have",
            )
    return plan


def io_weight(weight: int) -> int:
    """Convert OCI's weight of block io (10..1000) to io.weight (1..10000), as runc and crun do."""
    return 1 + (weight - 10) * 9999 // 990


def _io(resources: Resources) -> list[Limit]:
    plan = []
    if resources.io_weight is not None:
        # io.weight is there with the cost model; BFQ has a file of its own, on OCI's scale.
        bfq = ("io.bfq.weight", str(resources.io_weight))
        value = str(io_weight(resources.io_weight))
        plan.append(Limit(files.IO_WEIGHT, "io", "io.weight", value, bfq))
    for what, key, rates in (
        ("limit of bytes read", "rbps", resources.io_read_bps),
        ("limit of bytes written", "wbps", resources.io_write_bps),
        ("limit of reads", "riops", resources.io_read_iops),
        ("limit of writes", "wiops", resources.io_write_iops),
    ):
        for each in rates:
            value = f"{each.major}:{each.minor} {key}={each.rate or 'max'}"
            plan.append(Limit(what, "io", "io.max", value))
    return plan


def cpu_quota(directory: str) -> tuple[int, int]:
    """Return the CPU time per period and the period, in microseconds; -1 is no limit."""
    quota, period = files.read(directory, "cpu.max").split()
    return (-1 if quota == "max" else int(quota)), int(period)


def cpu_quota_limit(quota_us: int, period_us: int) -> Limit:
    """Return what sets the quota."""
    return Limit("cpu quota", "cpu", "cpu.max", f"{_most(quota_us)} {period_us}")


def _most(value: int) -> str:
    return "max" if value < 0 else str(value)


def _swap(memory: int | None, total: int) -> str:
    """Convert OCI's memory and swap together to the swap alone of memory.swap.max."""
    return "max" if total < 0 or memory is None else str(total - memory)


def nearest_parent(own: str, mount_point: str) -> str:
    """Return the directory under which containers of a caller in ``own`` can have controllers.

    That is the nearest one, upwards from the caller's own, that can hand on as many controllers
    as any of them can, and that either does so already, or has no processes, or is the root.
    Where there is none (all is full of processes, or no controller is in v2, as on many hybrid
    hosts), it is the caller's own: then containers can be frozen and killed, not limited.
    Huge pages are no reason to leave a place that was delegated with all the others.
    """
    worth = can_give(mount_point) & _DELEGATED or CONTROLLERS
    best, most = own, 0
    directory = own
    while True:
        given = len(can_give(directory) & worth)
        if given > most:
            best, most = directory, given
        if directory == mount_point or not directory.startswith(f"{mount_point}/"):
            return best
        directory = os.path.dirname(directory)  # noqa: PTH120 hot path


def can_give(directory: str) -> frozenset[str]:
    """Return the controllers that the children of a directory have or may get."""
    try:
        enabled = files.read_words(directory, "cgroup.subtree_control")
        # Only the true root has no cgroup.type; the root of a cgroup namespace has one.
        may_enable = not files.exists(directory, "cgroup.type") or not files.read(
            directory, "cgroup.procs"
        )
        offered = files.read_words(directory, "cgroup.controllers")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        return frozenset()  # a threaded cgroup, or one that has just been removed
    return CONTROLLERS & (offered if may_enable else enabled)


def enable(directory: str) -> None:
    """Hand the directory's controllers on to its children, each that the kernel allows.

    One by one, since a write of several fails as a whole. What stays off is noticed, and named,
    when a limit needs it.
    """
    offered = files.read_words(directory, "cgroup.controllers")
    enabled = files.read_words(directory, "cgroup.subtree_control")
    for controller in sorted(CONTROLLERS & offered - enabled):
        try:
            files.write(directory, "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            # Processes in it (EBUSY), realtime tasks for cpu (EINVAL), threaded (EOPNOTSUPP).
            if error.errno not in (errno.EBUSY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
                raise


def wait_for_event(directory: str, key: str, value: int, deadline: Deadline) -> bool:
    """Wait until a line of cgroup.events has this value; return False at the deadline."""
    descriptor = os.open(f"{directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLPRI)
        while True:
            # Reading arms the notification: a change after this read wakes the poll.
            text = os.pread(descriptor, 4096, 0).decode("ascii")
            if f"{key} {value}" in text.splitlines():
                return True
            if deadline.passed:
                return False
            # Two changes within 10 ms are told as one, by a timer (kernel/cgroup/cgroup.c,
            # cgroup_file_notify()); with the group's removal, as after a frozen one was killed, it
            # goes and tells nobody.
            poll.poll(min(deadline.left, _LOOK_SECONDS) * 1000 + 1)
    finally:
        os.close(descriptor)


def freeze(directory: str, deadline: Deadline) -> bool:
    """Freeze; return whether all tasks are frozen in time."""
    files.write(directory, "cgroup.freeze", "1")
    return wait_for_event(directory, "frozen", 1, deadline)


def thaw(directory: str) -> None:
    """Let the tasks run; they are woken when the write returns."""
    files.write(directory, "cgroup.freeze", "0")


def frozen(directory: str) -> bool:
    """Tell whether all tasks are frozen."""
    return files.read_table(directory, "cgroup.events").get("frozen") == 1


def frozen_by_us(directory: str) -> bool:
    """Tell whether this cgroup itself was asked to freeze, done or not."""
    return files.read(directory, "cgroup.freeze") == "1"


def kill(directory: str, deadline: Deadline) -> bool:
    """Kill all at once with cgroup.kill (Linux 5.14 on); return False where there is none."""
    if not files.exists(directory, "cgroup.kill"):
        return False
    files.write(directory, "cgroup.kill", "1")
    try:
        wait_for_event(directory, "populated", 0, deadline)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # removed: nobody was left in it
            raise
    return True


def oom_kills(directory: str) -> int:
    """Return how many processes the kernel killed here for want of memory."""
    return files.read_table(directory, "memory.events").get("oom_kill", 0)


def figures(directory: str) -> dict[str, int]:
    """Return what is used: memory and its peak in bytes, cpu time in microseconds, processes."""
    found = {}
    for name, file in (
        ("memory", "memory.current"),
        ("peak", "memory.peak"),
        ("processes", "pids.current"),
    ):
        if files.exists(directory, file):
            found[name] = int(files.read(directory, file))
    if files.exists(directory, "cpu.stat"):
        usage = files.read_table(directory, "cpu.stat").get("usage_usec")
        if usage is not None:
            found["cpu"] = usage
    if files.exists(directory, "io.stat"):
        words = files.read(directory, "io.stat").split()
        for name, key in (("read", "rbytes="), ("written", "wbytes=")):
            values = [word.removeprefix(key) for word in words if word.startswith(key)]
            found[name] = sum(map(int, values))
    return found
