"""The limits of a container in config.json: linux.resources of config-linux.md."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pymigrate.runtime.document import Node, each_of, number_of, or_else, some
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import DeviceRule, HugepageLimit, IoRate, Resources


def _device_rule(node: Node) -> DeviceRule:
    access = or_else(node.get("access"), Node.text, "rwm")
    if set(access) - set("rwm"):
        raise node.need("access").wrong("letters of rwm")
    return DeviceRule(
        allow=node.need("allow").flag(),
        type=or_else(node.get("type"), lambda each: each.one_of(("a", "b", "c")), "a"),
        major=number_of(node, "major"),
        minor=number_of(node, "minor"),
        access=access,
    )


_IO_RATES = {
    "throttleReadBpsDevice": "io_read_bps",
    "throttleWriteBpsDevice": "io_write_bps",
    "throttleReadIOPSDevice": "io_read_iops",
    "throttleWriteIOPSDevice": "io_write_iops",
}


# What we enforce. A limit that the document names and we do not know is refused, never dropped.
_RESOURCES = {
    "devices": None,
    "memory": {"limit", "swap", "reservation", "swappiness", "disableOOMKiller"},
    "cpu": {
        *("quota", "period", "burst", "shares", "idle", "cpus", "mems"),
        *("realtimeRuntime", "realtimePeriod"),
    },
    "pids": {"limit"},
    "unified": None,
    "blockIO": {"weight", *_IO_RATES},
    "hugepageLimits": None,
}


def _refuse_unknown_limits(node: Node) -> None:
    assert isinstance(node.value, Mapping)  # noqa: S101 - the caller has read members of it
    for group in node.value:
        known = _RESOURCES.get(group, set())
        child = node.get(group)
        if known is None or child is None:
            continue
        members = child.value if isinstance(child.value, Mapping) else {}
        # Callers that send all members send these empty: {}, [], "", 0 and false.
        unknown = [name for name in members if name not in known and members[name]]
        if unknown or (group not in _RESOURCES and child.value):
            name = f".{unknown[0]}" if unknown and unknown[0] else ""
            raise UsageError(f"{child.path}{name}: this limit is not supported yet")


# A file of a controller; of the cgroup itself only what bounds it.
_UNIFIED = re.compile(r"(?!cgroup\.(?!max\.))[a-z0-9_]+(\.[A-Za-z0-9_]+)+")


def _unified(node: Node) -> tuple[tuple[str, str], ...]:
    found = node.dictionary()
    for name in found:
        if not _UNIFIED.fullmatch(name):
            raise node.wrong("files of cgroup v2 that are limits")
    # What is the same in both versions is one setting of ours.
    return tuple((name, value) for name, value in found.items() if name != "cpu.weight")


def _weight(node: Node) -> int:
    text = node.text()
    if not text.isdecimal() or not 1 <= int(text) <= 10000:
        raise node.wrong("a number from 1 to 10000")
    return int(text)


def _io_rate(node: Node) -> IoRate:
    return IoRate(
        major=node.need("major").number(0, 4095),
        minor=node.need("minor").number(0, (1 << 20) - 1),
        rate=node.need("rate").number(0),
    )


def is_page_size(text: str) -> bool:
    """Tell whether it is a size of huge pages as the kernel names them, such as 2MB."""
    number = text[:-2]
    return text[-2:] in ("KB", "MB", "GB") and number.isascii() and number.isdecimal()


def _hugepage_limit(node: Node) -> HugepageLimit:
    size = node.need("pageSize")
    if not is_page_size(size.text()):
        raise size.wrong("a size such as 2MB")
    return HugepageLimit(page_size=size.text(), limit=node.need("limit").number(0))


def weight_of_shares(shares: int) -> int:
    """Return cgroup v2's cpu.weight for v1's cpu.shares, as runc and crun convert it."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142


def parse_resources(node: Node, *, no_limit: int | None = None) -> Resources:
    """Read an object like ``linux.resources``; UsageError for what we do not enforce.

    What is below 0 is ``no_limit``: None for a new container, -1 to take a limit away. What is 0
    was not set, as runc has it: its callers send all members.
    """

    def most(group: Node, name: str) -> int | None:
        value = number_of(group, name)
        return no_limit if value is not None and value < 0 else value or None

    empty = Node({}, node.path)
    memory, cpu = node.get("memory") or empty, node.get("cpu") or empty
    pids, unified = node.get("pids") or empty, node.get("unified") or empty
    block = node.get("blockIO") or empty
    period = number_of(cpu, "period")
    idle = or_else(cpu.get("idle"), lambda each: each.number(0, 1), None)
    shares = number_of(cpu, "shares")
    of_shares = None if not shares else weight_of_shares(shares)
    read = Resources(
        memory_limit=most(memory, "limit"),
        memory_swap=most(memory, "swap"),
        memory_reservation=most(memory, "reservation"),
        memory_swappiness=or_else(memory.get("swappiness"), lambda each: each.number(0, 100), None),
        oom_kill_disabled=or_else(memory.get("disableOOMKiller"), Node.flag, None),
        cpu_quota_us=most(cpu, "quota"),
        cpu_period_us=period if period and period > 0 else None,
        cpu_burst_us=or_else(cpu.get("burst"), lambda each: each.number(0), None),
        cpu_idle=None if idle is None else bool(idle),
        cpu_rt_runtime_us=number_of(cpu, "realtimeRuntime"),
        cpu_rt_period_us=number_of(cpu, "realtimePeriod") or None,
        cpu_weight=or_else(unified.get("cpu.weight"), _weight, of_shares),
        cpuset_cpus=or_else(cpu.get("cpus"), Node.text, None),
        cpuset_mems=or_else(cpu.get("mems"), Node.text, None),
        pids_limit=most(pids, "limit"),
        devices=each_of(node.get("devices"), _device_rule),
        io_weight=or_else(block.get("weight"), lambda each: each.number(10, 1000), None),
        hugepages=each_of(node.get("hugepageLimits"), _hugepage_limit),
        **{field: each_of(block.get(name), _io_rate) for name, field in _IO_RATES.items()},
        unified=_unified(unified),
    )
    _refuse_unknown_limits(node)
    return read


def resources_document(given: Resources) -> dict[str, object]:
    """Return ``linux.resources``."""
    weight = given.cpu_weight
    return some(
        devices=[some(**vars(rule)) for rule in given.devices],
        memory=some(
            limit=given.memory_limit,
            swap=given.memory_swap,
            reservation=given.memory_reservation,
            swappiness=given.memory_swappiness,
            disableOOMKiller=given.oom_kill_disabled,
        ),
        cpu=some(
            quota=given.cpu_quota_us,
            period=given.cpu_period_us,
            burst=given.cpu_burst_us,
            idle=None if given.cpu_idle is None else int(given.cpu_idle),
            realtimeRuntime=given.cpu_rt_runtime_us,
            realtimePeriod=given.cpu_rt_period_us,
            cpus=given.cpuset_cpus,
            mems=given.cpuset_mems,
        ),
        unified=dict(given.unified) | ({} if weight is None else {"cpu.weight": str(weight)}),
        pids=some(limit=given.pids_limit),
        hugepageLimits=[
            {"pageSize": each.page_size, "limit": each.limit} for each in given.hugepages
        ],
        blockIO=some(
            weight=given.io_weight,
            **{
                name: [vars(each) for each in getattr(given, field)]
                for name, field in _IO_RATES.items()
            },
        ),
    )
