"""What a test leaves on the machine: compare it before and after."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tests.lab import registry

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/run/netns")
OURS = ("pymigrate", "criu", "crtools")  # how our temporary files are called, after any dots
OTHERS = (
    *(str(registry.REGISTRY), "/run/pymigrate-kernels"),  # of other runs of tests, beside this
    "/run/criu.kdat",  # what CRIU knows of this kernel, from its first run on
)


@dataclass(frozen=True)
class Snapshot:
    """What is there at one instant, each thing as the line by which it would be reported."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    interfaces: frozenset[str]
    processes: frozenset[str]
    descriptors: frozenset[str]
    temporary_files: frozenset[str]
    labs: frozenset[str]

    @classmethod
    def take(cls, cgroups: Sequence[Path]) -> Snapshot:
        """Look; of cgroups and processes only at those below `cgroups`, the test session's own."""
        directories = [path for top in cgroups for path in registry.subtree(top)]
        pids = registry.members(cgroups) | _children() - {os.getpid()}
        return cls(
            mounts=frozenset(_mounts()),
            cgroups=frozenset(map(str, directories)),
            interfaces=frozenset(name for _, name in socket.if_nameindex()),
            processes=frozenset(filter(None, map(_process, pids - {os.getpid()}))),
            descriptors=frozenset(_descriptors()),
            temporary_files=frozenset(_temporary_files()),
            labs=frozenset(path.name for path in registry.REGISTRY.glob(f"{os.getpid()}.*")),
        )

    def new_since(self, before: Snapshot) -> list[str]:
        """List what is there now and was not before."""
        found = []
        for field in fields(self):
            new = getattr(self, field.name) - getattr(before, field.name)
            found += [f"{field.name.replace('_', ' ')}: {thing}" for thing in sorted(new)]
        return found

    def gone_since(self, before: Snapshot) -> list[str]:
        """List the mounts that were there before and are not now."""
        return sorted(before.mounts - self.mounts)


def settle(take: Callable[[], Snapshot], before: Snapshot, patience: float) -> list[str]:
    """Return what is left behind once nothing is, or after `patience` seconds.

    The kernel takes interfaces and cgroups of the dead apart in its own time.
    """
    left: list[str] = []

    def clean() -> bool:
        left[:] = take().new_since(before)
        return not left

    registry.wait_for(clean, patience)
    return left


def _mounts() -> list[str]:
    """List the mounts of our namespace by source, type, root and place; numbers may change."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        found.append(f"{right.split()[0]} {' '.join(left.split()[3:5])}")
    return found


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def _process(pid: int) -> str | None:
    """Describe a process; None if it has gone meanwhile."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return f"{pid} {command.strip() or f'[{name}]'}"


def _descriptors() -> list[str]:
    """List our open files; the one by which the list is read is not there any more."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208  # names are numbers
        try:
            found.append(f"{descriptor} -> {os.readlink(f'/proc/self/fd/{descriptor}')}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found


def _temporary_files() -> list[str]:
    found = []
    for directory in TEMPORARY:
        try:
            names = [path.name for path in Path(directory).iterdir()]
        except FileNotFoundError:
            continue
        found += [f"{directory}/{name}" for name in names if name.lstrip(".").startswith(OURS)]
    return [path for path in found if path not in OTHERS]
