"""The options of ``run``, ``create`` and ``update`` that are limits, and what they decide."""

from __future__ import annotations

import argparse
import os
import re
import stat
from pathlib import Path
from typing import Any

from pymigrate.migrate.amounts import NOTHING, size
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import HugepageLimit, IoRate, Resources, Rlimit
from pymigrate.runtime.spec_resources import is_page_size
from pymigrate.runtime.values import replace

CPU_PERIOD_US = 100_000
_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_LIMITS = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile"),
    *("nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
LIMITS = {  # options of run and update, and the fields that they decide
    "memory": ("memory_limit",),
    "memory_swap": ("memory_swap",),
    "memory_reservation": ("memory_reservation",),
    "cpus": ("cpu_quota_us", "cpu_period_us"),
    "cpu_weight": ("cpu_weight",),
    "cpuset_cpus": ("cpuset_cpus",),
    "cpuset_mems": ("cpuset_mems",),
    "pids_limit": ("pids_limit",),
}
IO_RATES = {  # fields of Resources, and the options that fill them
    "io_read_bps": "device_read_bps",
    "io_write_bps": "device_write_bps",
    "io_read_iops": "device_read_iops",
    "io_write_iops": "device_write_iops",
}
_LOWEST_MEMORY = 512 * 1024
_MOST_MEMORY = 1 << 60  # far more than any machine has; what the kernel takes ends soon after
_MOST_CPUS = 1_000_000
_MOST_PROCESSES = 1 << 22  # PID_MAX_LIMIT of the kernel
_UNLIMITED = 2**64 - 1


def resources(
    *,
    memory: str | None,
    memory_swap: str | None,
    memory_reservation: str | None,
    cpus: str | None,
    cpu_weight: int | None,
    cpuset_cpus: str | None,
    cpuset_mems: str | None,
    pids_limit: int | None,
) -> Resources:
    """Read the limits; None and -1 (as podman has it) are no limit."""
    memory_limit = _most(memory, "--memory")
    total = _most(memory_swap, "--memory-swap")
    if total is not None and (memory_limit is None or total < memory_limit):
        raise UsageError(
            f"--memory-swap {memory_swap}: it is memory and swap together, at least as much as "
            f"--memory; {NOTHING}"
        )
    if memory_limit is not None and memory_limit < _LOWEST_MEMORY:
        raise UsageError(
            f"--memory {memory}: nothing can run in so little; {NOTHING}", hint="512k is the least"
        )
    if memory_limit is not None and memory_limit > _MOST_MEMORY:
        raise UsageError(
            f"--memory {memory}: no machine has so much; {NOTHING}", hint="without it: no limit"
        )
    if cpu_weight is not None and not 1 <= cpu_weight <= 10000:
        raise UsageError(f"--cpu-weight {cpu_weight}: not from 1 to 10000; {NOTHING}")
    for numbers, option in ((cpuset_cpus, "--cpuset-cpus"), (cpuset_mems, "--cpuset-mems")):
        if numbers is not None and not _NUMBERS.fullmatch(numbers):
            raise UsageError(
                f"{option} {numbers}: not a list of numbers; {NOTHING}", hint="such as 0-2,5"
            )
    if pids_limit is not None and not (pids_limit == -1 or 0 < pids_limit <= _MOST_PROCESSES):
        raise UsageError(
            f"--pids-limit {pids_limit}: not a number of processes; {NOTHING}",
            hint=f"1 to {_MOST_PROCESSES}; -1: no limit",
        )
    return Resources(
        memory_limit=memory_limit,
        memory_swap=total,
        memory_reservation=_most(memory_reservation, "--memory-reservation"),
        cpu_quota_us=_quota(cpus) if cpus is not None else None,
        cpu_period_us=CPU_PERIOD_US if cpus is not None else None,
        cpu_weight=cpu_weight,
        cpuset_cpus=cpuset_cpus,
        cpuset_mems=cpuset_mems,
        pids_limit=None if pids_limit == -1 else pids_limit,
    )


def chosen(given: argparse.Namespace) -> Resources:
    """Read all limits of a new container."""
    read = resources(**{name: getattr(given, name) for name in LIMITS})
    return replace(read, **_merged(read, listed(given)))


def listed(given: argparse.Namespace) -> dict[str, Any]:
    """Read ``--io-weight`` and what is given for each disk or size of page: fields of Resources.

    Where -1 was given, that one is without a limit: a rate of 0, huge pages of -1.
    """
    weight = given.io_weight
    if weight is not None and not 10 <= weight <= 1000:
        raise UsageError(f"--io-weight {weight}: not from 10 to 1000; {NOTHING}")
    found: dict[str, Any] = {} if weight is None else {"io_weight": weight}
    for field, name in IO_RATES.items():
        option = f"--{name.replace('_', '-')}"
        found[field] = tuple(_io_rate(text, option) for text in getattr(given, name))
    found["hugepages"] = tuple(_hugepages(text) for text in given.hugetlb)
    return {field: value for field, value in found.items() if value}


def _merged(old: Resources, new: dict[str, Any]) -> dict[str, Any]:
    """Return the fields as they are then: what was, but of each disk and size the newest."""
    merged = dict(new)
    for field in IO_RATES.keys() & new:
        rates = {(each.major, each.minor): each for each in (*getattr(old, field), *new[field])}
        merged[field] = tuple(each for each in rates.values() if each.rate)
    if "hugepages" in new:
        pages = {each.page_size: each for each in (*old.hugepages, *new["hugepages"])}
        merged["hugepages"] = tuple(each for each in pages.values() if each.limit >= 0)
    return merged


def _hugepages(text: str) -> HugepageLimit:
    page_size, colon, value = text.partition(":")
    if not colon or not is_page_size(page_size):
        raise UsageError(
            f"--hugetlb {text}: not SIZE:LIMIT; {NOTHING}",
            hint="2MB:64m; sizes as the kernel names them, 64KB, 2MB, 1GB",
        )
    return HugepageLimit(page_size, -1 if value == "-1" else size(value, "--hugetlb"))


def _io_rate(text: str, option: str) -> IoRate:
    path, colon, value = text.rpartition(":")
    if not colon or not path.startswith("/"):
        raise UsageError(f"{option} {text}: not DEVICE:RATE; {NOTHING}", hint="/dev/sda:1m")
    if value == "-1":
        rate = 0
    elif option.endswith("bps"):
        rate = size(value, option)
    elif value.isascii() and value.isdigit() and 0 < int(value) < 1 << 32:
        rate = int(value)
    else:
        raise UsageError(f"{option} {text}: {value!r} is no number of operations; {NOTHING}")
    return IoRate(*_block_device(path, f"{option} {text}"), rate)


def _block_device(path: str, said: str) -> tuple[int, int]:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UsageError(f"{said}: {path}: {error.strerror}; {NOTHING}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"{said}: {path} is no block device; {NOTHING}")
    return _whole_disk(os.major(status.st_rdev), os.minor(status.st_rdev))


def _whole_disk(major: int, minor: int) -> tuple[int, int]:
    """Return the disk that a device is a partition of: only disks have limits."""
    place = Path(f"/sys/dev/block/{major}:{minor}")
    if (place / "partition").exists():
        words = (place.resolve().parent / "dev").read_text(encoding="ascii").split(":")
        return int(words[0]), int(words[1])
    return major, minor


def _most(text: str | None, option: str) -> int | None:
    return None if text in (None, "-1") else size(text, option)


def changed_resources(old: Resources, arguments: argparse.Namespace) -> tuple[Resources, Resources]:
    """Return what ``update`` has to set, -1 for what is a limit no more, and the new whole."""
    given = {name: getattr(arguments, name) for name in LIMITS}
    if given["memory"] is None and given["memory_swap"] is not None and old.memory_limit:
        given["memory"] = str(old.memory_limit)  # the two are one question
    if given["memory"] is not None and given["memory_swap"] is None and old.memory_swap:
        unlimited = given["memory"] == "-1"
        given["memory_swap"] = "-1" if unlimited else str(old.memory_swap)
    unlimited_cpus = given["cpus"] == "-1"  # which says nothing to run
    read = resources(**{**given, "cpus": None if unlimited_cpus else given["cpus"]})
    fields = [field for name, value in given.items() if value is not None for field in LIMITS[name]]
    others = listed(arguments)
    if not fields and not others:
        raise UsageError(f"no limit was given; {NOTHING}", hint="such as --memory 512m")
    wanted: dict[str, Any] = {field: getattr(read, field) for field in fields}
    new = replace(old, **wanted, **_merged(old, others))
    if wanted.get("cpu_quota_us", 0) is None:
        del wanted["cpu_period_us"]  # no quota has no period
    to_set: dict[str, Any] = {
        name: -1 if value is None else value for name, value in wanted.items()
    }
    return Resources(**to_set, **others), new


def _quota(cpus: str) -> int:
    try:
        quota = int(float(cpus) * CPU_PERIOD_US)
    except (ValueError, OverflowError):
        quota = 0
    if not 1000 <= quota <= _MOST_CPUS * CPU_PERIOD_US:  # the kernel's least: 1 ms a period
        raise UsageError(
            f"--cpus {cpus}: not a number of CPUs; {NOTHING}", hint="such as 1.5; 0.01 is the least"
        )
    return quota


def ulimit(text: str) -> Rlimit:
    """Read ``TYPE=SOFT[:HARD]``, -1 or "unlimited" for none."""
    name, equals, values = text.partition("=")
    soft, _, hard = values.partition(":")
    try:
        low, high = _limit(soft), _limit(hard or soft)
    except ValueError:
        equals = ""
    if not equals or name not in _LIMITS or low > high:
        raise UsageError(
            f"--ulimit {text}: not TYPE=SOFT[:HARD]; {NOTHING}",
            hint="such as nofile=1024:4096; types: " + " ".join(_LIMITS),
        )
    return Rlimit(f"RLIMIT_{name.upper()}", low, high)


def _limit(text: str) -> int:
    number = _UNLIMITED if text in ("-1", "unlimited") else int(text)
    if not 0 <= number <= _UNLIMITED:
        raise ValueError(text)
    return number
