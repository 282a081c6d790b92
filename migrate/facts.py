"""Gather what planning needs to know of this host and of a container on it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from pymigrate.checkpoint import tmpfs
from pymigrate.migrate.plan import AHEAD, CARRIED, INSIDE, ContainerFacts, HostFacts
from pymigrate.runtime import cgroups_v2, userfault
from pymigrate.runtime.capabilities import NAMES
from pymigrate.runtime.cgroups_layout import Layout
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import MissingFeature
from pymigrate.runtime.host import Host

_X86_FLAGS = """
    3dnow abm adx aes amx_bf16 amx_int8 amx_tile avx avx2 avx512_bf16 avx512_bitalg avx512_fp16
    avx512_vbmi2 avx512_vnni avx512_vpopcntdq avx512bw avx512cd avx512dq avx512f avx512ifma
    avx512vbmi avx512vl avx_vnni bmi1 bmi2 cx16 erms f16c fma fsgsbase fsrm gfni lahf_lm lzcnt mmx
    movbe movdir64b movdiri pclmulqdq pku popcnt rdpid rdrand rdseed sha_ni sse sse2 sse4_1 sse4_2
    sse4a ssse3 vaes vpclmulqdq xsave xsavec xsaveopt xsaves"""
_ARM_FLAGS = """
    asimd asimddp atomics bf16 crc32 fp i8mm jscvt lrcpc pmull sha1 sha2 sha3 sha512 sve sve2"""
PROGRAM_VISIBLE = frozenset(_X86_FLAGS.split() + _ARM_FLAGS.split())
"""Of the flags in /proc/cpuinfo, those that a program may have found and now relies on. Others are
the kernel's own (xtopology) and differ between kernels on the same machine."""


def host_facts(host: Host) -> HostFacts:
    """Look at this host; a missing CRIU is a fact, not an error."""
    from pymigrate.checkpoint import criu  # pycriu and protobuf are slow to load
    from pymigrate.runtime import cgroups

    try:
        criu_version = criu.find().version
    except MissingFeature:
        criu_version = ""
    system = os.uname()
    layout = cgroups.current_layout()
    disk = os.statvfs(host.root)
    return HostFacts(
        host_id=host.id,
        hostname=system.nodename,
        kernel=system.release,
        machine=system.machine,
        criu_version=str(criu_version),
        cgroup=layout.kind,
        cpu_features=cpu_features(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        features=_features() | controllers(layout) | security_module(Path("/sys")),
        memory_available=memory_available(Path("/proc/meminfo").read_text(encoding="ascii")),
        disk_available=disk.f_bavail * disk.f_frsize,
        page_size=os.sysconf("SC_PAGE_SIZE"),
    )


def container_facts(container: Container) -> ContainerFacts:
    """Look at a running container."""
    limits = container.spec.resources
    rates = (
        *limits.io_read_bps,
        *limits.io_write_bps,
        *limits.io_read_iops,
        *limits.io_write_iops,
    )
    return ContainerFacts(
        name=container.name,
        memory=sum(resident_bytes(pid) for pid in container.cgroup.pids()) + tmpfs_bytes(container),
        files=tree_bytes(container.upper),
        namespaces=frozenset(namespace.kind for namespace in container.spec.namespaces),
        network_mode=container.record.network.mode,
        capabilities=container.spec.process.capabilities.bounding,
        cpu_baseline=container.record.cpu_baseline,
        controllers=frozenset(limit.controller for limit in cgroups_v2.limits(limits)),
        labels=frozenset(
            label for pid in container.cgroup.pids() if (label := label_of(Path(f"/proc/{pid}")))
        ),
        devices=tuple(each.path for each in container.spec.devices),
        limited_disks=tuple(dict.fromkeys(f"{each.major}:{each.minor}" for each in rates)),
    )


def cpu_features(cpuinfo: str) -> frozenset[str]:
    """Read the flags of the first processor out of proc_cpuinfo(5)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return PROGRAM_VISIBLE.intersection(value.split())
    return frozenset()


def memory_available(meminfo: str) -> int:
    """Read MemAvailable out of proc_meminfo(5), in bytes."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def resident_bytes(pid: int) -> int:
    """Return a process's own memory that a dump would hold: anonymous and shared-memory pages.

    Zero for a process that is gone.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kilobytes = [
        int(line.split()[1])
        for line in status.splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    ]
    return sum(kilobytes) * 1024


def tmpfs_bytes(container: Container) -> int:
    """Return what the container's file systems in memory hold, which goes along under the freeze.

    What a process has mapped of it counts twice: as the process's too.
    """
    init = container.state().init
    if init is None or not container.spec.private("mount"):
        return 0
    volumes = [volume.destination for volume in container.record.volumes]
    total = 0
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        mountinfo = Path(f"/proc/{init.pid}/mountinfo").read_text("utf-8", "surrogateescape")
        for found in tmpfs.find(mountinfo, volumes):
            held = os.statvfs(f"/proc/{init.pid}/root{found.tmpfs.place}")
            total += (held.f_blocks - held.f_bfree) * held.f_frsize
    return total


def tree_bytes(root: Path) -> int:
    """Return how much disk a directory takes, in bytes, holes not counted."""
    total = 0
    for directory, _, files in os.walk(root):
        for name in files:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118
            except FileNotFoundError:
                continue  # removed by the container while we look
    return total


def capabilities(status: str) -> frozenset[str]:
    """Read the names of the bounding set out of /proc/PID/status: what root can be granted."""
    for line in status.splitlines():
        if line.startswith("CapBnd:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for bit, name in enumerate(NAMES) if bits >> bit & 1)
    return frozenset()


def _features() -> frozenset[str]:
    found = set(capabilities(Path("/proc/self/status").read_text(encoding="ascii")))
    if Path("/proc/self/ns/time").exists():
        found.add("time-namespaces")
    if userfault.is_here():
        found.add("lazy-memory")
    if _has_udp_lite():
        found.add("udp-lite")
    found |= {INSIDE, AHEAD, CARRIED}
    return frozenset(found)


def controllers(layout: Layout) -> frozenset[str]:
    """Name the controllers of all hierarchies as features."""
    found = {name for each in layout.hierarchies for name in each.controllers}
    if layout.unified is not None:
        offered = Path(layout.unified.mount_point, "cgroup.controllers")
        found.update(offered.read_text(encoding="ascii").split())
    return frozenset(f"controller:{name}" for name in found)


def security_module(sys: Path) -> frozenset[str]:
    """Name the module that labels processes, as CRIU sees it, and what profiles are loaded."""
    profiles = sys / "kernel/security/apparmor/profiles"
    if profiles.parent.exists():
        try:
            lines = profiles.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # a namespace of AppArmor's that may not list them
            lines = []
        return frozenset({"lsm:apparmor", *(f"profile:{_profile(line)}" for line in lines)})
    return frozenset({"lsm:selinux" if (sys / "fs/selinux").exists() else "lsm:none"})


def label_of(process: Path) -> str:
    """Return the profile that a process is held to; "" if to none, or if it is gone."""
    try:
        label = (process / "attr/current").read_text(encoding="utf-8", errors="replace")
    except OSError:  # EINVAL without such a module
        return ""
    profile = _profile(label)
    return "" if profile == "unconfined" or ":unconfined_t:" in profile else profile


def _profile(line: str) -> str:
    """Leave out the mode: "docker-default (enforce)"."""
    return line.strip("\0\n").rpartition(" (")[0] or line.strip("\0\n")


def _has_udp_lite() -> bool:
    """Say whether the kernel still has UDP-Lite, which was removed in the 7.x series."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE).close()
    except OSError:
        return False
    return True
