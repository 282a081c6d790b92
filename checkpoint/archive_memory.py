"""The memory of a running container on its way into an archive; how it is read: memory_looks.py.

While it runs, each block is compressed and spooled: as it will lie in the archive, if no page of it
changes until the freeze. Of what changed, pages are laid aside as they are; such blocks are put
together and compressed when the container runs again, or is about to end. No page is written to a
file as it is but where more than SPARE changed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pymigrate.checkpoint import block_table
from pymigrate.checkpoint.digest_table import Digests, DigestTable
from pymigrate.checkpoint.images import PAGE
from pymigrate.checkpoint.in_order import in_order
from pymigrate.checkpoint.laid_aside import Aside
from pymigrate.checkpoint.memory_looks import Taken
from pymigrate.checkpoint.page_blocks import Block, Encoder, Spooled
from pymigrate.checkpoint.page_layout import Batch, Layout
from pymigrate.checkpoint.spool import Place, Spool
from pymigrate.runtime.scratch import Growing, Zeros

SPARE = 64 << 20
"""Bytes that are laid aside in memory under the freeze: the command stays small."""

THREADS = min(8, len(os.sched_getaffinity(0)))
"""That compress: each takes some MiB."""

MUCH = 64 << 20
"""Bytes of new blocks in one look after which another one pays: it took long."""

_BLOCK = np.dtype(
    [("offset", "=i8"), ("length", "=i4"), ("pages", "=i4"), ("digest", f"V{block_table.DIGEST}")]
)
_PART = np.dtype([("block", "=i4"), ("first", "u1"), ("pages", "u1")])


class ArchiveMemory:
    """Keeps memory in a spool, as the `Store` of a look. Close it in the end."""

    def __init__(self, spool: Spool, encoder: Encoder, zeros: Zeros = np.zeros) -> None:
        """Take where frames go, what makes them, and what makes tables."""
        self._spool = spool
        self._encoder = encoder
        self._blocks: dict[bytes, int] = {}  # by the hash of the digests of their segments
        self._spooled = Growing(_BLOCK, zeros)
        self._parts = DigestTable(_PART, zeros)  # by the digest of a segment: which block has it
        self._fresh: list[tuple[Digests, NDArray[np.void]]] = []  # parts that are not there yet
        self._aside = Aside(zeros)
        self._new = 0
        self._lock = threading.Lock()

    # While it runs, and under the freeze

    def batches(self, layout: Layout) -> Iterator[Batch]:
        """Take the segments of a block together."""
        return layout.blocks()

    def see(self, batch: Batch, content: memoryview, digests: Digests) -> None:
        """Compress and spool a block, if there is none like it."""
        if not len(digests):
            return
        name = _name(digests)
        if name in self._blocks:
            return
        edges = np.array(batch.edges[: len(digests) + 1]) - batch.edges[0]
        block = self._encoder.encode(content[: int(edges[-1]) * PAGE])
        place = self._spool.append(block.frame)
        spooled = np.array([(place.offset, place.length, edges[-1], block.digest)], _BLOCK)
        parts = np.zeros(len(digests), _PART)
        parts["first"], parts["pages"] = edges[:-1], np.diff(edges)
        with self._lock:
            self._new += block.size
            if name not in self._blocks:  # else another thread has seen the same
                parts["block"] = self._blocks[name] = len(self._spooled)
                self._spooled.extend(spooled)
                self._fresh.append((digests, parts))

    def settle(self) -> bool:
        """Note where each segment is to be found; say whether much was spooled."""
        if self._fresh:
            digests, parts = (np.concatenate(each) for each in zip(*self._fresh, strict=True))
            self._fresh.clear()
            self._parts.add_new(digests, parts)
        much = self._new >= MUCH
        if much:
            self._new = 0
        return much

    def still(self, stage: Path) -> None:
        """Lay aside in memory what fits, and then in a file."""
        self._aside.limit(SPARE, stage)

    def keep(self, batch: Batch, content: memoryview, digests: Digests) -> None:
        """Lay aside what was not spooled."""
        self._aside.put_all(batch, content, digests, self._parts.find(digests) < 0)

    # Afterwards

    def blocks(self, taken: Taken, pool: ThreadPoolExecutor) -> Iterator[Block]:
        """Yield the blocks of a file of pages."""
        return in_order(pool, lambda batch: self._block(batch, taken), taken.layout.blocks())

    def _block(self, batch: Batch, taken: Taken) -> Block:
        digests = taken.digests[batch.first : batch.first + batch.segments]
        number = self._blocks.get(_name(digests))
        if number is not None:
            place, digest = self._place(number)
            return Spooled(batch.size, digest, self._spool.stretch(place))
        opened: dict[int, bytes] = {}
        plain = b"".join(self._segment(digests[at : at + 1], opened) for at in range(len(digests)))
        if len(plain) != batch.size:
            raise AssertionError(f"a block of {batch.size} bytes is put together of {len(plain)}")
        return self._encoder.encode(plain)

    def _place(self, number: int) -> tuple[Place, bytes]:
        block = self._spooled.values[number]
        return Place(int(block["offset"]), int(block["length"])), block["digest"].tobytes()

    def _segment(self, digest: Digests, opened: dict[int, bytes]) -> bytes:
        """Return a segment; ``opened`` are the plain blocks that were needed for others."""
        (row,) = self._parts.find(digest)
        if row < 0:
            return self._aside.get(digest.tobytes())
        number, first, pages = self._parts.values(np.array([row]))[0].tolist()
        plain = opened.get(number)
        if plain is None:
            frame = self._spool.read(self._place(number)[0])
            size = int(self._spooled.values[number]["pages"]) * PAGE
            plain = opened[number] = self._encoder.decode(frame, size)
        return plain[first * PAGE : (first + pages) * PAGE]

    def close(self) -> None:
        """Forget everything; may be repeated."""
        self._aside.close()
        self._spool.close()


class TakenPages:
    """A file of pages that was taken, as it goes into an archive."""

    def __init__(self, memory: ArchiveMemory, taken: Taken) -> None:
        """Take what keeps it."""
        self._memory = memory
        self._taken = taken
        self.lengths = [batch.size for batch in taken.layout.blocks()]

    def blocks(self, pool: ThreadPoolExecutor) -> Iterator[Block]:
        """Yield its blocks; most are spooled already."""
        return self._memory.blocks(self._taken, pool)


def _name(digests: Digests) -> bytes:
    """Name a block by the digests of its segments, which nobody else can foresee."""
    return xxhash.xxh3_128_digest(digests.tobytes())
