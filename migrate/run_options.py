"""The options of ``run`` and ``create``: what each value must look like."""

from __future__ import annotations

import argparse
import os
import re
import stat
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pymigrate.runtime import log, restarting
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.health import Health
from pymigrate.runtime.spec import KINDS, IdMapping, IoRate, Mount, Namespace, Resources, Rlimit
from pymigrate.runtime.state import BRIDGE, NetworkSettings, Port, Volume
from pymigrate.runtime.values import replace

NOTHING = "nothing was made"
USERS = "100000:100000:65536"
_NO_ID = 0xFFFFFFFF  # (uid_t) -1 is nobody's
CPU_PERIOD_US = 100_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_VARIABLE = re.compile(r"[^\s=\0][^=\0]*")
_SYSCTL = re.compile(r"[a-z][a-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_SHORT_KINDS = {"mnt": "mount", "net": "network"}
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
_RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg]bit)", re.IGNORECASE)
_RATES = {"kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_TIMES = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_MOST_SECONDS = 86400
_LEAST_RATE, _MOST_RATE = 64_000, 100 * 1000**3
_UNLIMITED = 2**64 - 1


def size(text: str, option: str) -> int:
    """Read a number of bytes such as ``512m`` or ``1.5g``."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text}: not a size; {NOTHING}", hint="such as 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def resources(
    *,
    memory: str | None,
    memory_swap: str | None,
    memory_reservation: str | None,
    cpus: str | None,
    cpu_weight: int | None,
    cpuset_cpus: str | None,
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
    if cpuset_cpus is not None and not _CPUS.fullmatch(cpuset_cpus):
        raise UsageError(
            f"--cpuset-cpus {cpuset_cpus}: not a list of CPUs; {NOTHING}", hint="such as 0-2,5"
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
        pids_limit=None if pids_limit == -1 else pids_limit,
    )


def io_limits(given: argparse.Namespace) -> dict[str, Any]:
    """Read ``--io-weight`` and the limits of block devices: fields of Resources."""
    weight = given.io_weight
    if weight is not None and not 10 <= weight <= 1000:
        raise UsageError(f"--io-weight {weight}: not from 10 to 1000; {NOTHING}")
    found: dict[str, Any] = {} if weight is None else {"io_weight": weight}
    for field, name in IO_RATES.items():
        option = f"--{name.replace('_', '-')}"
        found[field] = tuple(_io_rate(text, option) for text in getattr(given, name))
    return found


def _io_rate(text: str, option: str) -> IoRate:
    path, colon, value = text.rpartition(":")
    if not colon or not path.startswith("/"):
        raise UsageError(f"{option} {text}: not DEVICE:RATE; {NOTHING}", hint="/dev/sda:1m")
    if option.endswith("bps"):
        rate = size(value, option)
    elif value.isascii() and value.isdigit() and 0 < int(value) < 1 << 32:
        rate = int(value)
    else:
        raise UsageError(f"{option} {text}: {value!r} is no number of operations; {NOTHING}")
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UsageError(f"{option} {text}: {path}: {error.strerror}; {NOTHING}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"{option} {text}: {path} is no block device; {NOTHING}")
    return IoRate(*_whole_disk(os.major(status.st_rdev), os.minor(status.st_rdev)), rate)


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
    if not fields:
        raise UsageError(f"no limit was given; {NOTHING}", hint="such as --memory 512m")
    wanted: dict[str, Any] = {field: getattr(read, field) for field in fields}
    new = replace(old, **wanted)
    if wanted.get("cpu_quota_us", 0) is None:
        del wanted["cpu_period_us"]  # no quota has no period
    to_set: dict[str, Any] = {
        name: -1 if value is None else value for name, value in wanted.items()
    }
    return Resources(**to_set), new


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


def environment(
    given: Sequence[str], files: Sequence[str], host: Mapping[str, str]
) -> dict[str, str]:
    """Read ``-e`` and ``--env-file``; a name without a value takes the host's."""
    found: dict[str, str] = {}
    for path in files:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--env-file {path}: {error}; {NOTHING}") from error
        for line in text.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                _add_variable(found, line.strip(), f"--env-file {path}", host)
    for word in given:
        _add_variable(found, word, "-e", host)
    return found


def _add_variable(found: dict[str, str], word: str, option: str, host: Mapping[str, str]) -> None:
    name, equals, value = word.partition("=")
    if not _VARIABLE.fullmatch(name) or "\0" in value:
        raise UsageError(f"{option} {word!r}: not NAME=VALUE; {NOTHING}", hint="such as -e LEVEL=3")
    if equals:
        found[name] = value
    elif name in host:
        found[name] = host[name]


def volume(text: str) -> Volume:
    """Read ``SRC:DST[:ro,local]``; a directory of the host that must exist."""
    source, colon, rest = text.partition(":")
    destination, _, words = rest.partition(":")
    options = words.split(",") if words else []
    unknown = [word for word in options if word not in ("ro", "rw", "local")]
    if not colon or not source.startswith("/") or not destination.startswith("/") or unknown:
        raise UsageError(
            f"-v {text}: not SRC:DST[:ro,local]; {NOTHING}",
            hint="two absolute paths, such as -v /srv/data:/data:ro",
        )
    _check_destination(destination, f"-v {text}")
    if not os.path.exists(source):  # noqa: PTH110 - a text, which is kept as it was given
        raise UsageError(f"-v {text}: there is no {source} on this host; {NOTHING}")
    return Volume(source, destination, readonly="ro" in options, local="local" in options)


def bind(given: Volume) -> Mount:
    """Return the mount that a volume is in a container that starts."""
    access = "ro" if given.readonly else "rw"
    return Mount(given.destination, "bind", given.source, ("rbind", "rprivate", access))


def tmpfs(text: str) -> Mount:
    """Read ``DST[:OPTIONS]`` into a mount."""
    destination, _, words = text.partition(":")
    if not destination.startswith("/"):
        raise UsageError(
            f"--tmpfs {text}: not DST[:OPTIONS]; {NOTHING}", hint="such as /tmp:size=64m"
        )
    _check_destination(destination, f"--tmpfs {text}")
    options = tuple(word for word in words.split(",") if word)
    return Mount(destination, "tmpfs", "tmpfs", ("nosuid", "nodev", *options))


def _check_destination(path: str, option: str) -> None:
    if path.rstrip("/") == "" or ".." in path.split("/"):
        raise UsageError(f"{option}: cannot mount at {path}; {NOTHING}")


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


def sysctls(texts: Sequence[str]) -> dict[str, str]:
    """Read each ``NAME=VALUE``; whether a namespace of the container has it is for spec.check."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _SYSCTL.fullmatch(name) or not value.isascii() or "\n" in value:
            raise UsageError(
                f"--sysctl {text}: not NAME=VALUE; {NOTHING}",
                hint="such as net.core.somaxconn=1024",
            )
        found[name] = value
    return found


def _limit(text: str) -> int:
    number = _UNLIMITED if text in ("-1", "unlimited") else int(text)
    if not 0 <= number <= _UNLIMITED:
        raise ValueError(text)
    return number


def hostname(text: str) -> str:
    """Check a name for sethostname(2)."""
    if not _HOSTNAME.fullmatch(text):
        raise UsageError(
            f"--hostname {text}: not a name for a host; {NOTHING}",
            hint="letters, digits, '-' and '.', at most 64",
        )
    return text


def port(text: str) -> Port:
    """Read ``[IP:]HOST:CTR[/tcp|udp]``."""
    numbers, _, protocol = text.partition("/")
    host_ip, _, rest = numbers.rpartition(":")[0].rpartition(":")
    words = (rest, numbers.rpartition(":")[2])
    found = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 6]
    host_ip = host_ip.removeprefix("[").removesuffix("]")
    try:
        address = str(ip_address(host_ip)) if host_ip else None
    except ValueError:
        found = []
    if (
        len(found) != 2
        or not all(0 < number < 65536 for number in found)
        or protocol not in ("", "tcp", "udp")
    ):
        raise UsageError(
            f"-p {text}: not [IP:]HOST:CTR[/tcp|udp]; {NOTHING}",
            hint="such as 8080:80 or 127.0.0.1:5353:53/udp",
        )
    return Port(found[0], found[1], protocol or "tcp", address)


def ports(texts: Sequence[str]) -> tuple[Port, ...]:
    """Read every ``-p``."""
    found = tuple(port(text) for text in texts)
    places = [(each.host_ip, each.host, each.protocol) for each in found]
    if len(set(places)) < len(places):
        raise UsageError(f"-p: one port of the host is given twice; {NOTHING}")
    return found


def bandwidth(text: str) -> int:
    """Read bits a second as tc(8) writes them: ``10mbit``, ``1.5gbit``, ``800kbit``."""
    match = _RATE.fullmatch(text)
    rate = int(float(match[1]) * _RATES[match[2].lower()]) if match else 0
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        raise UsageError(
            f"--bandwidth {text}: not a rate from 64kbit to 100gbit; {NOTHING}",
            hint="bits a second, such as 10mbit or 1.5gbit",
        )
    return rate


def log_size(texts: Sequence[str]) -> int | None:
    """Read ``--log-opt max-size=SIZE``."""
    found = None
    for text in texts:
        name, _, value = text.partition("=")
        if name != "max-size":
            raise UsageError(f"--log-opt {text}: unknown; {NOTHING}", hint="max-size=SIZE")
        found = size(value, "--log-opt max-size")
        if found < log.LEAST_SIZE:
            raise UsageError(
                f"--log-opt {text}: too little; {NOTHING}", hint=f"{log.LEAST_SIZE} is the least"
            )
    return found


def restart(text: str, *, removed: bool) -> str:
    """Read ``--restart``; what is removed when it has ended cannot be run again."""
    try:
        policy = restarting.Policy.parse(text)
    except ValueError as error:
        raise UsageError(f"--restart {error}; {NOTHING}") from error
    if removed and policy.when != restarting.NEVER:
        raise UsageError(f"--restart and --rm do not go together; {NOTHING}")
    return text


def health(given: argparse.Namespace) -> Health | None:
    """Read ``--health-cmd`` and how often it is to be run."""
    rest = (given.health_interval, given.health_retries, given.health_timeout)
    if given.health_cmd is None:
        if rest != (None, None, None):
            raise UsageError(f"--health-…: there is no --health-cmd; {NOTHING}")
        return None
    usual = Health(("/bin/sh", "-c", given.health_cmd))
    interval, retries, timeout = rest
    if retries is not None and not 0 < retries < 1 << 31:
        raise UsageError(f"--health-retries {retries}: not a number from 1 on; {NOTHING}")
    return replace(
        usual,
        interval=usual.interval if interval is None else _seconds(interval, "--health-interval"),
        retries=usual.retries if retries is None else retries,
        timeout=usual.timeout if timeout is None else _seconds(timeout, "--health-timeout"),
    )


def _seconds(text: str, option: str) -> float:
    match = _TIME.fullmatch(text)
    found = float(match[1]) * _TIMES[match[2]] if match else 0.0
    if not 1 <= found <= _MOST_SECONDS:
        raise UsageError(
            f"{option} {text}: not a time from 1s to 24h; {NOTHING}", hint="such as 30s or 5m"
        )
    return found


def network(
    mode: str,
    bridge: str | None,
    ip: str | None,
    mac: str | None,
    *,
    ip6: str | None = None,
    published: Sequence[str] = (),
    rate: str | None = None,
) -> NetworkSettings:
    """Read how it is connected; the address is still without what the bridge gives."""
    if mode not in ("bridge", "none", "host") and not (mode.startswith("ns:/")):
        raise UsageError(
            f"--net {mode}: unknown; {NOTHING}",
            hint="bridge, none, host, or ns:PATH with an absolute path",
        )
    if mode != "bridge" and (ip or ip6 or mac):
        raise UsageError(f"--ip, --ip6 and --mac go with --net bridge only; {NOTHING}")
    if mode != "bridge" and (published or rate):
        raise UsageError(f"-p and --bandwidth go with --net bridge only; {NOTHING}")
    if mac is not None:
        from pymigrate.runtime.addresses import check_mac

        mac = check_mac(mac)
    return NetworkSettings(
        mode=mode,
        bridge=bridge or BRIDGE,
        address=ip,
        address6=ip6,
        mac=mac,
        ports=ports(published),
        bandwidth=bandwidth(rate) if rate is not None else None,
    )


def network_asked(arguments: argparse.Namespace, mode: str) -> NetworkSettings:
    """Read how it is connected from run's options, but for ``--net``, which is `mode`."""
    return network(
        mode,
        arguments.bridge,
        arguments.ip,
        arguments.mac,
        ip6=arguments.ip6,
        published=arguments.publish,
        rate=arguments.bandwidth,
    )


def namespaces(share: Sequence[str], join: Sequence[str], mode: str) -> tuple[Namespace, ...]:
    """Decide every namespace: a new one, another's, or (left out) the host's."""
    shared = {_kind(word, "--share") for words in share for word in words.split(",")}
    joined: dict[str, str] = {}
    for text in join:
        name, colon, path = text.partition(":")
        kind = _kind(name, "--join")
        if not colon or not path.startswith("/"):
            raise UsageError(
                f"--join {text}: not NS:PATH; {NOTHING}", hint="such as --join ipc:/proc/123/ns/ipc"
            )
        joined[kind] = path
    if mode == "host":
        shared.add("network")
    both = shared & set(joined)
    if both:
        raise UsageError(f"{', '.join(both)}: both shared and joined; {NOTHING}")
    return tuple(
        Namespace(kind, joined.get(kind))
        for kind in KINDS
        if kind not in shared and (kind != "user" or kind in joined)
    )


def _kind(word: str, option: str) -> str:
    kind = _SHORT_KINDS.get(word, word)
    if kind not in KINDS:
        raise UsageError(
            f"{option} {word}: no such namespace; {NOTHING}", hint="one of " + ", ".join(KINDS)
        )
    return kind


def capability(word: str, option: str, known: Sequence[str]) -> frozenset[str]:
    """Read the name of a capability, with or without CAP_, or ``all``."""
    upper = word.upper()
    if upper == "ALL":
        return frozenset(known)
    name = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if name not in known:
        raise UsageError(
            f"{option} {word}: no such capability; {NOTHING}", hint="see capabilities(7)"
        )
    return frozenset({name})


def users(text: str | None) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Read ``UID:GID:SIZE`` or "auto": the maps of users and of groups, () without any."""
    if text is None:
        return (), ()
    fields = (USERS if text == "auto" else text).split(":")
    if len(fields) == 3 and all(field.isascii() and field.isdigit() for field in fields):
        uid, gid, count = map(int, fields)
        if count > 0 and max(uid, gid) + count <= _NO_ID:
            return (IdMapping(0, uid, count),), (IdMapping(0, gid, count),)
    raise UsageError(
        f"--userns {text}: not UID:GID:SIZE; {NOTHING}", hint=f"such as {USERS}, which auto means"
    )


def absolute(path: str) -> str:
    """Check a working directory."""
    if not path.startswith("/"):
        raise UsageError(f"-w {path}: not an absolute path; {NOTHING}")
    return path
