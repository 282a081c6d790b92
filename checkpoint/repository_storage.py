"""What a repository asks of where it lies: a directory here, or one of another host.

Whatever implements this promises what repository_disk.py says of files: they appear whole or not at
all, and what is published or removed stays so over a crash. Paths are such as ``packs/NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pymigrate.checkpoint.sealing import Damaged

FOLDERS = ("packs", "snapshots", "locks", "tmp")
PATIENCE_SECONDS = 600.0
"""How long one waits for a lock that excludes the own one."""


@dataclass(frozen=True)
class Ends:
    """The size of a file in bytes, and what stands at its beginning and at its end."""

    size: int
    head: bytes
    tail: bytes


class Lock(Protocol):
    """A lock that is held."""

    @property
    def owner(self) -> str:
        """What the drafts of its holder are named by."""
        ...

    def confirm(self) -> None:
        """Make sure that nobody held us for dead meanwhile; raises WrongState."""
        ...


class Draft(Protocol):
    """A file that appears when it is published, or not at all."""

    def write(self, data: bytes) -> None:
        """Write all of it at the end."""
        ...

    def publish(self, place: str) -> None:
        """Put it in its place, complete and on the disk."""
        ...


class Storage(Protocol):
    """The files of one repository. Reading raises Damaged, changing NoSpace or HostError."""

    @property
    def where(self) -> str:
        """Where it is, for people."""
        ...

    @property
    def exists(self) -> bool:
        """Whether there is a repository."""
        ...

    @property
    def foreign(self) -> bool:
        """Whether something else lies there."""
        ...

    def make(self) -> None:
        """Make the directories; may be repeated."""
        ...

    def names(self, folder: str) -> list[str]:
        """List a folder in order."""
        ...

    def size(self, place: str) -> int:
        """Return the size of a file in bytes."""
        ...

    def ends(self, places: Sequence[str], head: int, tail: int) -> list[Ends | Damaged]:
        """Return the first and last bytes of files, so many where there are; one for each place."""
        ...

    def read(self, place: str, limit: int) -> bytes:
        """Return a whole file; raises Damaged if it is larger than the limit."""
        ...

    def read_at(self, place: str, offset: int, length: int) -> bytes:
        """Return a part of a file; it is shorter where the file ends."""
        ...

    def publish(self, place: str, data: bytes, owner: str) -> None:
        """Make a small file appear."""
        ...

    def publish_first(self, place: str, data: bytes) -> bool:
        """Make a file appear unless it is there already; of two at once one wins."""
        ...

    def remove(self, *places: str) -> None:
        """Remove files, for good; those that are gone already are well."""
        ...

    def draft(self, owner: str) -> AbstractContextManager[Draft]:
        """Begin a file for the holder of a lock; it is discarded unless it was published."""
        ...

    def held(
        self, *, exclusive: bool = False, patience: float = PATIENCE_SECONDS
    ) -> AbstractContextManager[Lock]:
        """Hold a lock for the block, waiting for up to ``patience`` seconds; raises WrongState."""
        ...

    def sweep(self) -> None:
        """Remove the drafts of those who died."""
        ...
