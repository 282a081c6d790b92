"""Whether a container has only namespaces that we made, so that some can be left out of a dump.

What CRIU finds in its own network it takes for its own, and neither writes it down nor restores it
(CRIU: walk_namespaces in criu/namespaces.c): a CRIU that sits in the container's is done sooner.
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


def has_one(kind: str, container: Container, init: int) -> bool:
    """Say whether a frozen container has one namespace of this kind only, in use or kept."""
    ours = Path(f"/proc/{init}/ns/{kind}").readlink()
    if any(Path(f"/proc/{pid}/ns/{kind}").readlink() != ours for pid in container.cgroup.pids()):
        return False
    mounts = Path(f"/proc/{init}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return " - nsfs " not in mounts
