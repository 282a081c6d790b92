"""What a command that restores and its filler say to each other; it costs neither much to load.

By a socket: the command sends `BEGIN` with descriptors, and a line of JSON, the plan. The filler
answers in lines of JSON, a word and what else there is to say: it listens for CRIU, all processes
are there, or what failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pymigrate.checkpoint.memory_map import PageFile

BEGIN = b"\n"
"""What comes before the plan, with the descriptors."""
MAX_DESCRIPTORS = 4
READY, ATTACHED, FAILED = "ready", "attached", "failed"

Plan = Mapping[str, object]
"""What a filler is told: the container's ``directory`` and what its `Pages` need."""


class Pages(Protocol):
    """Where the memory of a checkpoint is read from; used by several threads."""

    @property
    def files(self) -> Sequence[PageFile]:
        """The files of pages."""

    def block(self, file: PageFile, number: int) -> bytes:
        """Return a block of a file, verified. Raises BadArchive, or what hinders the reading."""
