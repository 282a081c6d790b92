"""Files of pages as an archive has them: blocks, each with its digest, each a frame of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pymigrate.checkpoint import block_table
from pymigrate.checkpoint.in_order import in_order
from pymigrate.checkpoint.seekable import Frames, Stretch
from pymigrate.runtime.errors import HostError


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block that was just made: its plain size, its digest, and its frame."""

    size: int
    digest: bytes
    frame: bytes


@dataclass(frozen=True, slots=True)
class Spooled:
    """A block whose frame lies in a file."""

    size: int
    digest: bytes
    frame: Stretch


Block = Encoded | Spooled


class Encoder:
    """Makes blocks of plain bytes, and plain bytes of frames; for several threads."""

    def __init__(self, level: int | None) -> None:
        """Compress at a level of zstd; without one, not at all."""
        self._frames = Frames(level)

    def encode(self, plain: bytes | memoryview) -> Encoded:
        """Make a block."""
        return Encoded(len(plain), block_table.digest(plain), self._frames.encode(plain))

    def decode(self, frame: bytes, size: int) -> bytes:
        """Return the plain bytes of a frame that we have made."""
        return self._frames.decode(frame, size)


class Pages(Protocol):
    """A file of pages on its way into an archive."""

    @property
    def lengths(self) -> Sequence[int]:
        """The lengths of its blocks, in bytes."""

    def blocks(self, pool: ThreadPoolExecutor) -> Iterator[Block]:
        """Yield its blocks, made by several threads."""


class FilePages:
    """A file of pages that CRIU has written, and that does not change any more."""

    def __init__(self, path: Path, encoder: Encoder) -> None:
        """Look how long it is."""
        self._path = path
        self._encoder = encoder
        self.lengths = block_table.cut_evenly(path.stat().st_size)

    def blocks(self, pool: ThreadPoolExecutor) -> Iterator[Block]:
        """Read and encode the blocks."""
        with self._path.open("rb", buffering=0) as stream:
            both = zip(block_table.starts(self.lengths), self.lengths, strict=True)
            yield from in_order(pool, lambda each: self._block(stream.fileno(), *each), both)

    def _block(self, file: int, start: int, length: int) -> Block:
        plain = os.pread(file, length, start)
        if len(plain) != length:
            raise HostError(f"{self._path} became shorter while it was written to the archive")
        return self._encoder.encode(plain)
