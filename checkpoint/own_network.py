"""Whether CRIU may sit inside a container's network, and what it would leave out there.

What it finds in its own network it takes for its own, and neither writes it down nor restores it
(CRIU: walk_namespaces in criu/namespaces.c): that saves the time of a second process in there.
"""

from __future__ import annotations

from pathlib import Path

from pymigrate.checkpoint import criu
from pymigrate.checkpoint.requests import SKIPS_SINCE
from pymigrate.runtime.container import Container


def can_be_inside(container: Container) -> bool:
    """Say whether CRIU may sit in the container's network: it is ours, and needs no lock."""
    ours = container.record.network.is_own and not container.spec.private("user")
    return ours and criu.find().number >= SKIPS_SINCE


def network_of(pid: int) -> int:
    """Return the inode of a process's network."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def is_the_only_one(container: Container, init: int) -> bool:
    """Say whether a frozen container has no other network than its own, in use or kept."""
    ours = network_of(init)
    if any(network_of(pid) != ours for pid in container.cgroup.pids()):
        return False
    mounts = Path(f"/proc/{init}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return " - nsfs " not in mounts
