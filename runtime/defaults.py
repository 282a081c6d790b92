"""The settings of a container about which nobody said anything, as podman chooses them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pymigrate.runtime import capabilities
from pymigrate.runtime.settings import (
    KINDS,
    Capabilities,
    Mount,
    Namespace,
    Process,
    Spec,
    User,
    check,
)
from pymigrate.runtime.values import replace

ROOT = User()

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
)

READONLY_PATHS = (
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

_SHM = ("nosuid", "noexec", "nodev", "mode=1777", "size=64000k")

MOUNTS = (
    Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount(
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    Mount("/dev/shm", "tmpfs", "shm", _SHM),  # noqa: S108 - not a temporary file of ours
    Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)
CGROUP_MOUNT = Mount(
    "/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")
)
"""The container's own cgroup, for programs that look how much they may use (JVMs, Go)."""


@cache
def _profile_text() -> str:
    return (Path(__file__).parent / "seccomp_default.json").read_text(encoding="utf-8")


def seccomp_profile() -> dict[str, Any]:
    """Return a fresh copy of the default profile, in the OCI and docker JSON format."""
    profile: dict[str, Any] = json.loads(_profile_text())
    return profile


def capability_sets(granted: Iterable[str], user: User = ROOT) -> Capabilities:
    """Return the five sets as podman makes them: root holds all granted, others can only gain."""
    bounding = frozenset(granted)
    held = bounding if user.uid == 0 else frozenset()
    return Capabilities(bounding=bounding, effective=held, permitted=held)


def default_process(args: Sequence[str], user: User = ROOT, **overrides: Any) -> Process:
    """Return a process with the default capabilities that this host can grant."""
    granted = capabilities.DEFAULT & capabilities.host_bounding()
    process = Process(args=tuple(args), user=user, capabilities=capability_sets(granted, user))
    return replace(process, **overrides)


def default_spec(args: Sequence[str], **overrides: Any) -> Spec:
    """Return settings for this command; ``overrides`` are fields of Spec.

    All namespaces but the user's are new ones, with podman's capabilities, masked paths, mounts and
    seccomp profile. With ``namespaces`` overridden, the default mounts follow: a shared IPC
    namespace shows the host's /dev/shm. UsageError when the settings contradict one another.
    """
    process = overrides.pop("process", None) or default_process(args)
    namespaces = overrides.pop(
        "namespaces", tuple(Namespace(kind) for kind in KINDS if kind != "user")
    )
    kinds = {each.kind for each in namespaces}
    own_mounts = any(each.kind == "mount" and each.path is None for each in namespaces)
    mounts: tuple[Mount, ...] = MOUNTS
    if "ipc" not in kinds:
        shared = Mount("/dev/shm", "bind", "/dev/shm", ("bind", "nosuid", "noexec", "nodev"))  # noqa: S108
        mounts = tuple(shared if each.destination == "/dev/shm" else each for each in MOUNTS)  # noqa: S108
    spec = Spec(
        process=process,
        namespaces=namespaces,
        mounts=mounts if own_mounts else (),
        masked_paths=MASKED_PATHS if own_mounts else (),
        readonly_paths=READONLY_PATHS if own_mounts else (),
        seccomp=seccomp_profile(),
    )
    spec = replace(spec, **overrides)
    check(spec)
    return spec
