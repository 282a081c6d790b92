"""What CRIU finds out about the running kernel, feature by feature.

Run as a program it asks CRIU in a mount namespace of its own, with a tmpfs on /run: CRIU keeps
what it knows of the kernel there if it is one, and 40 ms of probing are then paid for once only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pymigrate.checkpoint import criu, preload
from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import MissingFeature, PymigrateError
from pymigrate.runtime.features import Finding

SECONDS = 60.0
_CONFIGURATION = Path("/etc/criu/default.conf")


@dataclass(frozen=True)
class Feature:
    """A feature by CRIU's name for it (CRIU: criu/cr-check.c, feature_list)."""

    name: str
    purpose: str
    remedy: str
    required: bool = False


FEATURES = (
    Feature("", "checkpoint and restore at all", "see what `criu check` says", required=True),
    Feature("external_net_ns", "a network made before the restore", "Linux 4.20", required=True),
    Feature(
        "network_lock_nftables",
        "TCP connections that survive",
        "modprobe nf_tables; a kernel with CONFIG_NF_TABLES_INET",
        required=True,
    ),
    Feature(
        "seccomp_suspend", "the default seccomp filter", "CONFIG_SECCOMP_FILTER", required=True
    ),
    Feature(
        "seccomp_filters", "the default seccomp filter", "CONFIG_SECCOMP_FILTER", required=True
    ),
    Feature("get_rseq_conf", "programs with glibc 2.35 or newer", "Linux 5.13", required=True),
    Feature("tcp_half_closed", "half-closed TCP connections", "Linux 4.18"),
    Feature("sk_unix_file", "unix sockets whose file was moved", "Linux 5.4"),
    Feature("fdinfo_lock", "file locks", "Linux 4.1"),
    Feature("kcmp_epoll", "epoll of descriptors that were passed on", "Linux 4.13"),
    Feature("overlayfs_maps", "files of the image in memory maps", "Linux 6.8 or CRIU 4.0"),
    Feature("cgroupns", "containers that see only their own cgroup", "Linux 4.6"),
    Feature("timens", "uptime clocks that go on after a move", "Linux 5.6, CONFIG_TIME_NS"),
    Feature("clone3_set_tid", "PIDs restored without a race", "Linux 5.5"),
    Feature("move_mount_set_group", "shared mounts inside the container", "Linux 5.15"),
    Feature("sockopt_buf_lock", "sockets with fixed buffers", "Linux 5.15"),
    Feature("memfd_hugetlb", "huge pages in memfd", "Linux 4.16"),
    Feature("ipv6_freebind", "IPv6 sockets bound before their address", "Linux 4.15"),
    Feature("uffd", "lazy restore: memory follows later", "CONFIG_USERFAULTFD"),
    Feature("uffd-noncoop", "lazy restore of programs that fork", "Linux 4.11"),
    Feature("pagemap_scan", "finding written pages quickly", "Linux 6.7"),
    Feature(
        "mem_dirty_track",
        "pre-copy tracked by the kernel; without it we compare contents",
        "a kernel with CONFIG_MEM_SOFT_DIRTY",
    ),
)


def findings() -> list[Finding]:
    """Ask CRIU about every feature; takes about a second."""
    try:
        found = criu.find()
        criu.messages()
    except MissingFeature as error:
        return [
            Finding("criu", False, "checkpoint and restore", error.message, error.hint, True),
        ]
    return [
        Finding("criu", True, "checkpoint and restore", f"{found.version}, {found.path}"),
        _sockets(found),
        *_configuration(),
        *_other_users(),
        *(_finding(feature, said) for feature, said in zip(FEATURES, _ask(found), strict=True)),
    ]


def _sockets(found: criu.Criu) -> Finding:
    """Compare versions: `criu check` does not notice that TCP sockets cannot be dumped.

    Since Linux 6.16 they answer no SO_PASSCRED, which CRIU before 4.2 asks of every socket.
    """
    kernel = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return Finding(
        "criu: sockets",
        found.number >= (4, 2) or kernel < (6, 16),
        "containers with TCP sockets",
        f"CRIU {found.version}, Linux {os.uname().release}",
        "CRIU 4.2 or newer from Linux 6.16 on: run the set-up again",
        required=True,
    )


def _configuration() -> list[Finding]:
    if not _CONFIGURATION.exists():
        return []
    return [
        Finding(
            "criu configuration",
            True,
            "none: what we ask for is not changed by it",
            f"{_CONFIGURATION} is ignored",
        )
    ]


def _other_users() -> list[Finding]:
    if not preload.needed():
        return []
    return [
        Finding(
            "CAP_SYS_RESOURCE",
            preload.is_here(),
            "checkpoints of processes that are not root's",
            f"missing; {preload.LIBRARY} stands in" if preload.is_here() else "missing",
            "apt-get install tcc and run the set-up again, or give root CAP_SYS_RESOURCE",
        )
    ]


def _finding(feature: Feature, said: str) -> Finding:
    name = f"criu: {feature.name}" if feature.name else "criu check"
    return Finding(name, not said, feature.purpose, said, feature.remedy, feature.required)


def _ask(found: criu.Criu) -> list[str]:
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-m", "pymigrate.checkpoint.probe", found.path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
        said = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [f"could not be asked: {error}"] * len(FEATURES)
    return [str(each) for each in said]


def main(path: str) -> None:
    """Print, as JSON, what CRIU complains of, feature by feature; nothing means it is there."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("pymigrate", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV)
    said = [_check(path, feature.name) for feature in FEATURES]
    os.write(1, json.dumps(said).encode())


def _check(path: str, name: str) -> str:
    command = [path, "--no-default-config", "check", *([f"--feature={name}"] if name else [])]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[-1] if lines else f"criu ended with {done.returncode}"


def require() -> None:
    """Raise MissingFeature, naming the first that is required and missing."""
    for finding in findings():
        if finding.required and not finding.present:
            raise MissingFeature(f"{finding.name}: {finding.seen}", hint=finding.remedy)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except PymigrateError as error:
        sys.exit(error.message)
