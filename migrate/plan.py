"""Decide, before anything is touched, whether a container can move from one host to another.

Pure: facts in, findings and a plan out. Facts are gathered in ``facts.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from pymigrate.checkpoint import scan
from pymigrate.checkpoint.findings import Obstacle
from pymigrate.migrate import cpu
from pymigrate.migrate.modes import Mode
from pymigrate.runtime.errors import IncompatibleHosts, UsageError

INSIDE = "criu-inside-network"
"""The feature of a target that restores by a CRIU in the container's own network namespace. An
older one would do it by a CRIU in the host's, and put the container there."""

AHEAD = "memory-ahead"
"""The feature of a target that takes the frozen memory before it has processes for it. An older
one would put pages where nothing is registered yet, and so lose them."""

CARRIED = "tmpfs-carried"
"""The feature of a target that makes what we carried of tmpfs; an older one leaves them to CRIU."""

MIB = 1 << 20
SPARE_BYTES = 64 * MIB
"""What a target must have left beyond what the container brings."""

MAX_SKEW = 5.0
"""Seconds by which two hosts' clocks may differ before it is worth a person's word. Frozen programs
see such a jump anyway; what breaks beyond are leases, certificates and databases' clocks."""

_SHIFTS_LAYERS = (
    5,
    19,
)  # the Linux whose overlays take layers that are mounted with shifted owners


@dataclass(frozen=True)
class HostFacts:
    """What one host is and has; sizes in bytes.

    Among its features are the capabilities that its root can have, such as CAP_NET_RAW, the
    controllers of its cgroups, such as controller:memory, its security module (lsm:apparmor,
    lsm:selinux or lsm:none), and what profiles that has, such as profile:docker-default.
    """

    host_id: str
    hostname: str
    kernel: str
    machine: str
    criu_version: str
    cgroup: str
    cpu_features: frozenset[str]
    features: frozenset[str]
    memory_available: int
    disk_available: int
    page_size: int
    clock_ahead: float = 0.0  # seconds that its clock shows more than this host's


@dataclass(frozen=True)
class ContainerFacts:
    """What one container needs of the host it runs on; sizes in bytes."""

    name: str
    memory: int
    files: int
    namespaces: frozenset[str]
    network_mode: str
    capabilities: frozenset[str]
    cpu_baseline: str | None = None
    controllers: frozenset[str] = frozenset()  # that its limits need
    limited_disks: tuple[str, ...] = ()  # by number, as 8:0
    devices: tuple[str, ...] = ()  # that it may use beside the usual ones, by path
    labels: frozenset[str] = frozenset()  # the profiles that a security module holds it to


@dataclass(frozen=True)
class Finding:
    """One reason against the move: the name to skip it by, what was seen, and what to do."""

    check: str
    seen: str
    remedy: str


@dataclass(frozen=True)
class Plan:
    """A move that nothing speaks against."""

    migration_id: str
    name: str
    source: str
    target: str
    mode: Mode
    memory: int
    files: int
    lazy: bool = True  # memory is filled in after the restore, page by page; else CRIU reads files
    skipped: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    scan_seconds: float = 0.0
    inside: bool = False  # the target can restore what was written down inside its network
    ahead: bool = False  # it takes the frozen memory before it has processes for it
    carried: bool = False  # it makes the tmpfs whose contents we carry

    def to_document(self) -> dict[str, object]:
        """Return the plan as JSON, for ``--dry-run --json`` and the journal."""
        return {**asdict(self), "mode": self.mode.value}


@dataclass(frozen=True)
class Refusal:
    """A move that must not begin."""

    name: str
    target: str
    findings: tuple[Finding, ...]

    def error(self) -> IncompatibleHosts:
        """Return the error to raise; it names every finding."""
        reasons = "; ".join(f"{finding.seen} [{finding.check}]" for finding in self.findings)
        remedies = "; ".join(dict.fromkeys(finding.remedy for finding in self.findings))
        return IncompatibleHosts(
            f"{self.name} cannot move to {self.target}: {reasons}; nothing was touched",
            hint=remedies,
        )


def make_plan(
    migration_id: str,
    source: HostFacts,
    target: HostFacts,
    container: ContainerFacts,
    *,
    mode: str = "auto",
    skip: Collection[str] = (),
    obstacles: Sequence[Obstacle] = (),
    scan_seconds: float = 0.0,
) -> Plan | Refusal:
    """Weigh every finding; those whose check is skipped by name do not count.

    ``obstacles`` were seen in the container, in ``scan_seconds``.

    Raises UsageError for a name in `skip` that is no check.
    """
    unknown = sorted(set(skip) - {*CHECKS, *scan.CHECKS})
    if unknown:
        raise UsageError(
            f"no such check to skip: {', '.join(unknown)}",
            hint=f"the checks are: {', '.join(sorted({*CHECKS, *scan.CHECKS}))}",
        )
    findings = [
        *examine(source, target, container, mode=mode),
        *(Finding(each.check, each.seen, each.remedy) for each in obstacles if each.fatal),
    ]
    against = tuple(finding for finding in findings if finding.check not in skip)
    if against:
        return Refusal(container.name, target.hostname, against)
    chosen = chosen_mode(mode, target, container)
    return Plan(
        migration_id=migration_id,
        name=container.name,
        source=source.hostname,
        target=target.hostname,
        mode=chosen,
        memory=container.memory,
        files=container.files,
        lazy=chosen is not Mode.STOP,
        skipped=tuple(findings),
        notes=tuple(each.seen for each in obstacles if not each.fatal),
        scan_seconds=scan_seconds,
        inside=INSIDE in target.features,
        ahead=AHEAD in target.features,
        carried=CARRIED in target.features,
    )


def chosen_mode(wanted: str, target: HostFacts, container: ContainerFacts) -> Mode:
    """Return the mode that is meant: auto is the one with the shortest pause that is possible."""
    if wanted != "auto":
        return Mode(wanted)
    return Mode.STOP if why_not_lazy(target, container) else Mode.HYBRID


def why_not_lazy(target: HostFacts, container: ContainerFacts) -> str:
    """Say why memory cannot be filled in while the container is restored; "" if it can."""
    if "lazy-memory" not in target.features:
        return f"the kernel of {target.hostname} has no userfaultfd that hears of forks and unmaps"
    if "user" in container.namespaces:
        return f"the users of {container.name} may not use userfaultfd"
    return ""


def examine(
    source: HostFacts, target: HostFacts, container: ContainerFacts, *, mode: str = "auto"
) -> Sequence[Finding]:
    """All reasons against the move, worst first."""
    findings: list[Finding] = []
    why_not = why_not_lazy(target, container)
    if why_not and mode not in ("auto", Mode.STOP.value):
        findings.append(Finding("mode", f"{why_not}, which --mode {mode} needs", "use --mode stop"))
    if source.host_id == target.host_id:
        findings.append(
            Finding(
                "same-host",
                f"{target.hostname} is this very host (host id {target.host_id})",
                "name another host, or another --remote-root",
            )
        )
    if source.machine != target.machine or source.page_size != target.page_size:
        findings.append(
            Finding(
                "architecture",
                f"{target.hostname} is {target.machine} with pages of {target.page_size} bytes, "
                f"this host is {source.machine} with {source.page_size}",
                "choose a target of the same architecture",
            )
        )
    if not target.criu_version:
        findings.append(
            Finding(
                "criu",
                f"{target.hostname} has no CRIU that works on its kernel {target.kernel}",
                f"on {target.hostname}: pymigrate check says what to install",
            )
        )
    elif release(target.criu_version) < release(source.criu_version):
        findings.append(
            Finding(
                "criu",
                f"CRIU {target.criu_version} at {target.hostname} is older than "
                f"{source.criu_version} here and may not read its images",
                f"use CRIU {source.criu_version} or newer at {target.hostname} (PYMIGRATE_CRIU "
                "names one), or --skip criu to try",
            )
        )
    findings.extend(_unfit_kernels(source, target))
    findings.extend(_cpu(source, target, container))
    if "time" in container.namespaces and "time-namespaces" not in target.features:
        findings.append(
            Finding(
                "time",
                f"{target.hostname} has no time namespaces, so the container's clocks would jump",
                "use a kernel from 5.6 on at the target, or --skip time",
            )
        )
    if "user" in container.namespaces and release(target.kernel) < _SHIFTS_LAYERS:
        findings.append(
            Finding(
                "users",
                f"the kernel of {target.hostname}, {target.kernel}, cannot show an image's files "
                "as those of the container's own users",
                "use a kernel from 5.19 on at the target, or --skip users if its has the change",
            )
        )
    findings.extend(_ungranted(target, container))
    findings.extend(_unlimited(target, container))
    findings.extend(_unlabelled(source, target, container))
    if abs(target.clock_ahead) > MAX_SKEW:
        way = "ahead of" if target.clock_ahead > 0 else "behind"
        findings.append(
            Finding(
                "clock",
                f"the clock of {target.hostname} is {abs(target.clock_ahead):.0f} s {way} this "
                "host's: programs would see time jump",
                "set the clocks by NTP (chronyc tracking, timedatectl), or --skip clock",
            )
        )
    findings.extend(_disks(target, container))
    findings.extend(_devices(target, container))
    findings.extend(_room(target, container))
    return findings


def _unfit_kernels(source: HostFacts, target: HostFacts) -> Sequence[Finding]:
    """Say on which of the hosts the CRIU is known to fail on the kernel; see docs/kernels.md."""
    findings: list[Finding] = []
    for host in (source, target):
        if not host.criu_version:
            continue
        wanted = ""
        if release(host.criu_version) < (4, 1) and release(host.kernel) >= (6, 13):
            wanted, why = "4.1", "cannot read the vDSO of kernels from 6.13 on"
        elif release(host.criu_version) < (4, 2) and "udp-lite" not in host.features:
            wanted, why = "4.2", "cannot dump a network namespace of a kernel without UDP-Lite"
        if wanted:
            findings.append(
                Finding(
                    "kernel",
                    f"CRIU {host.criu_version} at {host.hostname} {why}, and that one is "
                    f"{host.kernel}",
                    f"use CRIU {wanted} or newer at {host.hostname}",
                )
            )
    return findings


def _cpu(source: HostFacts, target: HostFacts, container: ContainerFacts) -> Sequence[Finding]:
    """Say what programs of the container may use that the target's CPU has not."""
    if baseline := cpu.BASELINES.get(container.cpu_baseline or ""):
        # CRIU restores registers by XSAVE if it read them by XSAVE, whatever the programs use.
        needed = baseline.features | source.cpu_features & {"xsave"}
        whose = f"belong to {container.name}'s baseline {baseline.name}, or to CRIU's needs"
        remedy = "choose a target with these features"
    else:
        needed, whose = source.cpu_features, "programs here may already use"
        remedy = "choose a target with this CPU's features"
        high = cpu.highest(source.cpu_features & target.cpu_features)
        if high and "xsave" not in source.cpu_features - target.cpu_features:
            remedy += f", or start the container anew with --cpu-baseline {high.name}"
    lacking = sorted(needed - target.cpu_features)
    if not lacking:
        return ()
    return (
        Finding(
            "cpu",
            f"the CPU of {target.hostname} lacks {', '.join(lacking[:6])}"
            + (f" and {len(lacking) - 6} more" if len(lacking) > 6 else "")
            + f", which {whose}",
            f"{remedy}, or --skip cpu if its programs do not use them",
        ),
    )


def _ungranted(target: HostFacts, container: ContainerFacts) -> Sequence[Finding]:
    """Say which capabilities the container has that root at the target has not."""
    granted = {name for name in target.features if name.startswith("CAP_")}
    lacking = sorted(container.capabilities - granted)
    if not lacking:
        return ()
    return (
        Finding(
            "capabilities",
            f"{container.name} may use {', '.join(lacking)}, which root at {target.hostname} "
            "has not",
            "choose a target whose root has them, or run the container with --cap-drop "
            + ",".join(name.removeprefix("CAP_") for name in lacking),
        ),
    )


def _unlimited(target: HostFacts, container: ContainerFacts) -> Sequence[Finding]:
    """Say which limits of the container the target has no controller for."""
    prefix = "controller:"
    there = {name for name in target.features if name.startswith(prefix)}
    lacking = sorted(each for each in container.controllers if f"{prefix}{each}" not in there)
    if not lacking or not there:  # an older agent does not say what it has
        return ()
    return (
        Finding(
            "controllers",
            f"{container.name} has limits that {target.hostname} cannot enforce: its cgroups lack "
            f"the controllers {', '.join(lacking)}",
            "enable them there (cgroup v1: mount them; v2: cgroup.subtree_control), or choose "
            "another target",
        ),
    )


def _unlabelled(
    source: HostFacts, target: HostFacts, container: ContainerFacts
) -> Sequence[Finding]:
    """Say which profiles of AppArmor or SELinux CRIU would have to set at the target and cannot."""
    ours, theirs = ({f for f in host.features if f.startswith("lsm:")} for host in (source, target))
    if not container.labels or not theirs:  # an older agent does not say what it has
        return ()
    profiles = {f.removeprefix("profile:") for f in target.features if f.startswith("profile:")}
    lacking = sorted(container.labels)
    what = f"has another security module ({', '.join(sorted(theirs)).replace('lsm:', '')})"
    if ours == theirs:
        lacking = sorted(container.labels - profiles) if profiles else []  # else it may not list
        what = "has not loaded that"
    if not lacking:
        return ()
    return (
        Finding(
            "lsm",
            f"{container.name} is held to {', '.join(lacking)}, and {target.hostname} {what}",
            "load the profile there (apparmor_parser), or run pymigrate and the container "
            "unconfined here",
        ),
    )


def _disks(target: HostFacts, container: ContainerFacts) -> Sequence[Finding]:
    """Say which disks the container's limits name: by numbers, which another host gives anew."""
    if not container.limited_disks:
        return ()
    return (
        Finding(
            "disks",
            f"{container.name} has limits of this host's disks "
            f"{', '.join(container.limited_disks)}, numbers that are other disks at "
            f"{target.hostname}, or none",
            "--skip disks if these are the same there, or run the container without its "
            "--device-read-* and --device-write-*",
        ),
    )


def _devices(target: HostFacts, container: ContainerFacts) -> Sequence[Finding]:
    """Say which devices it was given, whose numbers may be other devices elsewhere."""
    if not container.devices:
        return ()
    return (
        Finding(
            "devices",
            f"{container.name} may use this host's {', '.join(container.devices)}, whose numbers "
            f"may be other devices at {target.hostname}, or none",
            "--skip devices if they are the same there, or run the container without --device",
        ),
    )


def _room(target: HostFacts, container: ContainerFacts) -> Sequence[Finding]:
    findings: list[Finding] = []
    # The images wait in files until they are restored, so memory counts on the disk too.
    disk = container.files + container.memory + SPARE_BYTES
    if container.memory + SPARE_BYTES > target.memory_available:
        findings.append(
            Finding(
                "memory",
                f"{container.name} uses {container.memory // MIB} MiB of memory and "
                f"{target.hostname} has {target.memory_available // MIB} MiB available",
                "free memory at the target",
            )
        )
    if disk > target.disk_available:
        findings.append(
            Finding(
                "disk",
                f"{container.name} needs {disk // MIB} MiB on the target's disk and "
                f"{target.hostname} has {target.disk_available // MIB} MiB available",
                "free space there, or give another --remote-root",
            )
        )
    return findings


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, comparable; (0, 0) where there is none."""
    numbers = re.findall(r"\d+", version)[:2]
    return tuple(int(number) for number in numbers) if len(numbers) == 2 else (0, 0)


CHECKS = (
    "same-host",
    "architecture",
    "criu",
    "kernel",
    "cpu",
    "time",
    "users",
    "capabilities",
    "controllers",
    "lsm",
    "clock",
    "disks",
    "devices",
    "memory",
    "disk",
)
"""Every check by the name that ``--skip`` takes. Another ``mode`` is not had by skipping."""
