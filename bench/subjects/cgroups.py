"""Cgroups for peers, which make theirs below the root of each hierarchy, beyond the lab."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.lab.registry import remove_cgroups

PARENT = f"/pymigrate-bench.{os.getpid()}"
"""What podman and runc are told: the parent of all they make, in every hierarchy."""


def hierarchies() -> list[Path]:
    """List where cgroup hierarchies are mounted."""
    kinds = ("cgroup", "cgroup2")
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [Path(words[4]) for words in mounts if words[words.index("-") + 1] in kinds]


def remove() -> None:
    """Remove what this run's peers made, and what runs that were killed have left."""
    for hierarchy in hierarchies():
        for directory in hierarchy.glob("pymigrate-bench.*"):
            owner = re.fullmatch(r"pymigrate-bench\.(\d+)", directory.name)
            if owner and (int(owner[1]) == os.getpid() or not Path(f"/proc/{owner[1]}").exists()):
                remove_cgroups([directory])
