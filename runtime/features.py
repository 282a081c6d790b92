"""What the kernel and this host offer to containers: findings, read from /proc; the rest is pure.

What only CRIU can find out is in checkpoint/probe.py.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime import cgroups, cgroups_v2

PIPE_BYTES = 4 << 20
"""CRIU joins page pipes of this size when it dumps lazily (CRIU: criu/page-pipe.c)."""

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
CONTROLLERS = ("cpu", "memory", "pids", "devices", "cpuset")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``present`` tells whether it is as it should be; if not, ``remedy`` says what to do. Without
    what is ``required`` neither a checkpoint nor a restore can work.
    """

    name: str
    present: bool
    purpose: str
    seen: str = ""
    remedy: str = ""
    required: bool = False


def findings(read: Callable[[str], str | None] | None = None) -> list[Finding]:
    """Look at the running kernel; ``read`` returns a file's text, or None if there is none."""
    read = read or _read
    return [
        Finding("root", os.geteuid() == 0, "everything", remedy="sudo", required=True),
        *(_namespace(kind) for kind in NAMESPACES),
        _overlay(read),
        *_cgroup_findings(),
        _seccomp(read),
        _ptrace(read),
        _pipe_size(read),
        _soft_limits(read),
    ]


def _namespace(kind: str) -> Finding:
    needed = kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    purpose = "uptime clocks that go on after a move" if kind == "time" else "isolation"
    return Finding(
        f"namespace: {kind}",
        Path(f"/proc/self/ns/{kind}").exists(),
        purpose,
        remedy=f"a kernel with CONFIG_{kind.upper().replace('MNT', 'NAMESPACES')}"
        f"{'' if kind == 'mnt' else '_NS'}, or run with --share {kind}",
        required=needed,
    )


def _overlay(read: Callable[[str], str | None]) -> Finding:
    systems = (read("/proc/filesystems") or "").split()
    module = Path(f"/lib/modules/{platform.release()}/kernel/fs/overlayfs").exists()
    return Finding(
        "overlayfs",
        "overlay" in systems or module,
        "roots that share their image",
        remedy="modprobe overlay, or a kernel with CONFIG_OVERLAY_FS",
        required=True,
    )


def _cgroup_findings() -> list[Finding]:
    try:
        layout = cgroups.current_layout()
        held = cgroups.Cgroup.named("check/check", layout)
        version, kind = held.freezer_version, layout.kind
    except (OSError, LookupError) as error:
        return [
            Finding(
                "cgroups",
                False,
                "limits, and the freezer that every move needs",
                str(error),
                "mount -t cgroup2 none /sys/fs/cgroup",
                required=True,
            )
        ]
    present = {name for member in held.members for name in member.controllers}
    for member in held.members:
        if member.version == 2:
            present |= cgroups_v2.can_give(member.base)
    return [
        Finding("cgroups", True, "limits", kind, required=True),
        Finding("freezer", True, "the one instant of a checkpoint", f"v{version}", required=True),
        *(
            Finding(
                f"controller: {name}",
                name in present or (name == "devices" and version == 2),
                f"limits of {name}",
                remedy=f"boot without cgroup_disable={name}, or delegate it to this cgroup",
            )
            for name in CONTROLLERS
        ),
    ]


def _seccomp(read: Callable[[str], str | None]) -> Finding:
    actions = read("/proc/sys/kernel/seccomp/actions_avail")
    return Finding(
        "seccomp",
        actions is not None,
        "the default filter of system calls",
        remedy="a kernel with CONFIG_SECCOMP_FILTER, or --security-opt seccomp=unconfined",
    )


def _ptrace(read: Callable[[str], str | None]) -> Finding:
    scope = (read("/proc/sys/kernel/yama/ptrace_scope") or "0").strip()
    return Finding(
        "ptrace",
        scope != "3",
        "CRIU stops and reads processes by it",
        f"yama.ptrace_scope={scope}",
        "kernel.yama.ptrace_scope=3 can only be undone by a reboot: remove it from sysctl.d",
        required=True,
    )


def _pipe_size(read: Callable[[str], str | None]) -> Finding:
    size = int((read("/proc/sys/fs/pipe-max-size") or "0").strip())
    return Finding(
        "fs.pipe-max-size",
        size >= PIPE_BYTES,
        "lazy migration (memory follows later)",
        str(size),
        f"sysctl fs.pipe-max-size={PIPE_BYTES}",
    )


def _soft_limits(read: Callable[[str], str | None]) -> Finding:
    limits = read("/proc/self/limits") or ""
    line = next((line for line in limits.splitlines() if line.startswith("Max open files")), "")
    hard = line.split()[4] if len(line.split()) > 4 else "0"
    return Finding(
        "open files",
        hard == "unlimited" or int(hard) >= 1024,
        "CRIU opens every file of a container at once",
        f"at most {hard}",
        "ulimit -Hn 1048576",
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
