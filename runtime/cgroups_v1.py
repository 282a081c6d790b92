"""One cgroup in one hierarchy of cgroup v1.

Kernel: Documentation/admin-guide/cgroup-v1/{memory,cpusets,devices,freezer-subsystem}.rst,
Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from pymigrate.runtime import cgroups_devices
from pymigrate.runtime import cgroups_files as files
from pymigrate.runtime.cgroups_files import Limit
from pymigrate.runtime.deadline import Deadline
from pymigrate.runtime.errors import MissingFeature

if TYPE_CHECKING:
    from pymigrate.runtime.spec import DeviceRule, Resources

CONTROLLERS = (
    *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids"),
)
SWAP_HINT = "boot the kernel with swapaccount=1, or leave --memory-swap out"

# A single-threaded process that writes "0" here moves itself without the lock that stops every
# fork and exit of the machine; cgroup.procs takes it and waits 5 ms for an RCU grace period.
JOIN_FILE = "tasks"
VERSION = 1


def shares(weight: int) -> int:
    """Convert a cpu.weight of cgroup v2 (1..10000, 100 is usual) to cpu.shares (1024 is usual).

    As the scheduler itself does (sched_weight_from_cgroup), so that two containers keep their
    proportion when they move between hosts with v1 and v2.
    """
    return min(max((weight * 1024 + 50) // 100, 2), 262144)


def limits(resources: Resources, *, memory_and_swap_now: int | None) -> tuple[Limit, ...]:
    """Return what to write, in the order in which the kernel accepts it."""
    plan: list[Limit] = []
    limit, swap = resources.memory_limit, resources.memory_swap
    memory = []
    if limit is not None:
        memory.append(Limit("memory limit", "memory", "memory.limit_in_bytes", str(limit)))
    if swap is not None:
        memory.append(
            Limit("memory and swap limit", "memory", "memory.memsw.limit_in_bytes", str(swap))
        )
    # Memory may never exceed memory and swap together: lower the first one first, raise it last.
    raises = swap is not None and (
        swap < 0 or (memory_and_swap_now is not None and swap > memory_and_swap_now)
    )
    plan += reversed(memory) if raises else memory
    if resources.memory_reservation is not None:
        value = str(resources.memory_reservation)
        plan.append(Limit("memory reservation", "memory", "memory.soft_limit_in_bytes", value))
    if resources.memory_swappiness is not None:
        value = str(resources.memory_swappiness)
        plan.append(Limit("swappiness", "memory", "memory.swappiness", value))
    if resources.oom_kill_disabled is not None:
        value = str(int(resources.oom_kill_disabled))
        plan.append(Limit("OOM killer's absence", "memory", "memory.oom_control", value))
    plan += _cpu(resources)
    if resources.cpuset_cpus:
        plan.append(Limit("set of cpus", "cpuset", "cpuset.cpus", resources.cpuset_cpus))
    if resources.cpuset_mems:
        plan.append(Limit("set of memory nodes", "cpuset", "cpuset.mems", resources.cpuset_mems))
    if resources.pids_limit is not None:
        most = str(resources.pids_limit) if resources.pids_limit > 0 else "max"
        plan.append(Limit("limit of processes", "pids", "pids.max", most))
    plan += _io(resources)
    plan += files.hugepage_limits(resources.hugepages, "limit_in_bytes", none="-1")
    plan += [_device(rule) for rule in resources.devices or cgroups_devices.DEFAULT]
    return tuple(plan)


_ONLY_HERE = (
    *("memory.swappiness", "memory.oom_control", "cpu.rt_period_us", "cpu.rt_runtime_us"),
)


def refuse_only_here(plan: Iterable[Limit], of_v1: Container[str]) -> None:
    """Raise MissingFeature for a limit that version 2 does not have, if its controller is there.

    A 0 is how it is there anyhow, but for swappiness.
    """
    for limit in plan:
        wanted = limit.value != "0" or limit.file == "memory.swappiness"
        if limit.file in _ONLY_HERE and wanted and limit.controller not in of_v1:
            raise MissingFeature(
                f"this host cannot enforce the {limit.what}: cgroup v2 has none",
                hint="leave it out",
            )


def _cpu(resources: Resources) -> list[Limit]:
    plan = []
    if resources.cpu_period_us is not None:
        plan.append(Limit("cpu period", "cpu", "cpu.cfs_period_us", str(resources.cpu_period_us)))
    quota = resources.cpu_quota_us
    plan += files.quota_and_burst(
        None
        if quota is None
        else Limit("cpu quota", "cpu", "cpu.cfs_quota_us", str(max(quota, -1))),
        "cpu.cfs_burst_us",
        resources.cpu_burst_us,
    )
    weight = resources.cpu_weight
    plan += files.weight_and_idle(
        None if weight is None else Limit("cpu weight", "cpu", "cpu.shares", str(shares(weight))),
        idle=resources.cpu_idle,
    )
    for what, file, value in (
        ("realtime period", "cpu.rt_period_us", resources.cpu_rt_period_us),
        ("realtime quota", "cpu.rt_runtime_us", resources.cpu_rt_runtime_us),
    ):
        if value is not None:
            plan.append(Limit(what, "cpu", file, str(value)))
    return plan


def _io(resources: Resources) -> list[Limit]:
    """Kernel: cgroup-v1/blkio-controller.rst, block/bfq-iosched.rst."""
    plan = []
    if resources.io_weight is not None:
        weight = str(resources.io_weight)
        other = ("blkio.bfq.weight", weight)
        plan.append(Limit(files.IO_WEIGHT, "blkio", "blkio.weight", weight, other))
    for what, file, rates in (
        ("limit of bytes read", "read_bps", resources.io_read_bps),
        ("limit of bytes written", "write_bps", resources.io_write_bps),
        ("limit of reads", "read_iops", resources.io_read_iops),
        ("limit of writes", "write_iops", resources.io_write_iops),
    ):
        for each in rates:
            value = f"{each.major}:{each.minor} {each.rate}"
            plan.append(Limit(what, "blkio", f"blkio.throttle.{file}_device", value))
    return plan


def cpu_quota(directory: str) -> tuple[int, int]:
    """Return the CPU time per period and the period, in microseconds; -1 is no limit."""
    return (
        int(files.read(directory, "cpu.cfs_quota_us")),
        int(files.read(directory, "cpu.cfs_period_us")),
    )


def cpu_quota_limit(quota_us: int, _period_us: int) -> Limit:
    """Return what sets the quota alone.

    The period stays: a shorter one, written before the quota, could ask for more than the parent.
    """
    return Limit("cpu quota", "cpu", "cpu.cfs_quota_us", str(quota_us))


def _device(rule: DeviceRule) -> Limit:
    file = "devices.allow" if rule.allow else "devices.deny"
    major = "*" if rule.major is None or rule.major < 0 else str(rule.major)
    minor = "*" if rule.minor is None or rule.minor < 0 else str(rule.minor)
    everything = rule.type == "a" and major == minor == "*"
    value = "a" if everything else f"{rule.type} {major}:{minor} {rule.access or 'rwm'}"
    return Limit("device rule", "devices", file, value)


def prepare(directory: str, controllers: frozenset[str]) -> None:
    """Make a new directory usable: a cpuset takes no process before it has cpus and memory."""
    if "cpuset" not in controllers:
        return
    parent = os.path.dirname(directory)  # noqa: PTH120 hot path
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not files.read(directory, file):
            files.write(directory, file, files.read(parent, file))


def memory_and_swap(directory: str) -> int | None:
    """Return the present memory and swap limit in bytes; None where swap is not accounted."""
    if not files.exists(directory, "memory.memsw.limit_in_bytes"):
        return None
    return int(files.read(directory, "memory.memsw.limit_in_bytes"))


def freeze(directory: str, deadline: Deadline) -> bool:
    """Freeze; return whether all tasks are frozen in time.

    The kernel notifies nobody when FREEZING becomes FROZEN, and only looks at the tasks when the
    state is read, so it is read again after a wait that starts at 0.1 ms. FROZEN is written each
    time: a task that was forked or moved in between is caught by the next write.
    """
    attempt = 0
    while True:
        files.write(directory, "freezer.state", "FROZEN")
        if files.read(directory, "freezer.state") == "FROZEN":
            return True
        if deadline.passed:
            return False
        deadline.back_off(attempt)
        attempt += 1


def thaw(directory: str) -> None:
    """Let the tasks run; the kernel has done it when the write returns."""
    files.write(directory, "freezer.state", "THAWED")


def frozen(directory: str) -> bool:
    """Tell whether all tasks are frozen because of this cgroup or one above it."""
    return files.read(directory, "freezer.state") == "FROZEN"


def frozen_by_us(directory: str) -> bool:
    """Tell whether this cgroup itself was asked to freeze, done or not."""
    if not files.exists(directory, "freezer.self_freezing"):
        return files.read(directory, "freezer.state") != "THAWED"
    return files.read(directory, "freezer.self_freezing") == "1"


def oom_kills(directory: str) -> int:
    """Return how many processes the kernel killed here for want of memory (Linux 4.13 on)."""
    return files.read_table(directory, "memory.oom_control").get("oom_kill", 0)


def figures(directory: str, controllers: frozenset[str]) -> dict[str, int]:
    """Return what is used: memory and its peak in bytes, cpu time in microseconds, processes."""
    wanted = {
        "memory": (("memory", "memory.usage_in_bytes"), ("peak", "memory.max_usage_in_bytes")),
        "cpuacct": (("cpu", "cpuacct.usage"),),
        "pids": (("processes", "pids.current"),),
    }
    found = {}
    for controller in controllers & wanted.keys():
        for name, file in wanted[controller]:
            try:
                value = int(files.read(directory, file))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
                continue
            found[name] = value // 1000 if name == "cpu" else value
    if "blkio" in controllers:
        found |= _block_bytes(directory)
    return found


_BLOCK_FILES = (
    "blkio.throttle.io_service_bytes_recursive",
    "blkio.bfq.io_service_bytes_recursive",
)


def _block_bytes(directory: str) -> dict[str, int]:
    """Return what was read from and written to block devices, of cgroups below too.

    Two count, each with its own disks: Linux 6.18 was seen to count by the first only on a disk
    that has a limit; BFQ counts on those that it schedules. Of a disk that both know, the greater.
    """
    found: dict[tuple[str, str], int] = {}
    there = [file for file in _BLOCK_FILES if files.exists(directory, file)]
    for file in there:
        for line in files.read(directory, file).splitlines():
            match line.split():
                case [disk, "Read" | "Write" as way, value]:
                    found[disk, way] = max(int(value), found.get((disk, way), 0))
    if not there:
        return {}
    return {
        name: sum(value for (_, each), value in found.items() if each == way)
        for name, way in (("read", "Read"), ("written", "Write"))
    }
