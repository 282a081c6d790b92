"""Capabilities: their names, what this host can grant, and limiting a process to five sets.

Source: capabilities(7), include/uapi/linux/capability.h.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from itertools import count
from typing import Protocol

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import MissingFeature
from pymigrate.runtime.settings import Capabilities

# In the order of their numbers.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

# What podman grants root in a container.
DEFAULT = frozenset(
    (
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    )
)


class Kernel(Protocol):
    """The calls that limiting takes; see runtime/syscalls.py."""

    def prctl(self, option: int, *arguments: int) -> int:
        """See prctl(2)."""

    def capset(self, effective: int, permitted: int, inheritable: int) -> None:
        """See capset(2)."""


def mask(names: Iterable[str]) -> int:
    """Return the bit mask of these capabilities."""
    return sum(1 << NAMES.index(name) for name in set(names))


def of_mask(bits: int) -> frozenset[str]:
    """Return the names in a bit mask; numbers newer than this list are left out."""
    return frozenset(name for number, name in enumerate(NAMES) if bits >> number & 1)


def host_bounding(kernel: Kernel = syscalls) -> frozenset[str]:
    """Return what the calling process may ever grant: its bounding set."""
    held = set()
    for number, name in enumerate(NAMES):
        try:
            if kernel.prctl(syscalls.PR_CAPBSET_READ, number):
                held.add(name)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a number that this kernel does not know
                raise
    return frozenset(held)


def require(wanted: Capabilities, held: frozenset[str]) -> None:
    """Refuse sets that ask for what the host cannot grant: MissingFeature names them."""
    asked = wanted.bounding | wanted.permitted | wanted.inheritable
    lacking = sorted(asked - held)
    if lacking:
        raise MissingFeature(
            f"this host cannot grant {', '.join(lacking)}",
            hint="take them out of the container's capabilities",
        )


def drop_bounding(keep: frozenset[str], kernel: Kernel = syscalls) -> None:
    """Drop all others from the bounding set; must come first, for it needs CAP_SETPCAP."""
    for number in count():
        if number < len(NAMES) and NAMES[number] in keep:
            continue
        try:
            kernel.prctl(syscalls.PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the last that this kernel knows
                return
            raise


def apply(sets: Capabilities, kernel: Kernel = syscalls) -> None:
    """Set the other four; the bounding set must have been dropped and the user changed before."""
    kernel.capset(mask(sets.effective), mask(sets.permitted), mask(sets.inheritable))
    kernel.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for name in sorted(sets.ambient):
        number = NAMES.index(name)
        kernel.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
