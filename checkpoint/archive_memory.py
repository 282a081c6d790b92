"""The memory of a running container on its way into an archive; how it is read: memory_looks.py.

While it runs, each block is compressed and spooled: as it will lie in the archive, if no page of it
changes until the freeze. Of what changed, pages are laid aside as they are; such blocks are put
together and compressed when the container runs again, or is about to end. No page is written to a
file as it is but where more than SPARE changed.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pymigrate.checkpoint.images import PAGE
from pymigrate.checkpoint.in_order import in_order
from pymigrate.checkpoint.laid_aside import Aside, Digest
from pymigrate.checkpoint.memory_looks import Taken
from pymigrate.checkpoint.page_blocks import Block, Encoder, Spooled
from pymigrate.checkpoint.page_layout import Batch, Layout
from pymigrate.checkpoint.spool import Place, Spool

SPARE = 64 << 20
"""Bytes that are laid aside in memory under the freeze: the command stays small."""

THREADS = min(8, len(os.sched_getaffinity(0)))
"""That compress: each takes some MiB."""

MUCH = 64 << 20
"""Bytes of new blocks in one look after which another one pays: it took long."""

_NAME = 16  # bytes of a Digest


@dataclass(frozen=True, slots=True)
class _Seen:
    """A block in the spool: the digests of its segments, joined, and how many pages each has."""

    place: Place
    segments: bytes
    pages: bytes
    digest: bytes

    @property
    def size(self) -> int:
        """Bytes of the plain block."""
        return sum(self.pages) * PAGE


class ArchiveMemory:
    """Keeps memory in a spool, as the `Store` of a look. Close it in the end."""

    def __init__(self, spool: Spool, encoder: Encoder) -> None:
        """Take where frames go, and what makes them."""
        self._spool = spool
        self._encoder = encoder
        self._blocks: dict[bytes, _Seen] = {}  # by the digests of their segments, joined
        self._having: dict[Digest, _Seen] = {}  # a block that has this segment
        self._aside = Aside()
        self._new = 0
        self._lock = threading.Lock()

    # While it runs, and under the freeze

    def batches(self, layout: Layout) -> Iterator[Batch]:
        """Take the segments of a block together."""
        return layout.blocks()

    def see(self, batch: Batch, content: memoryview, digests: Sequence[Digest]) -> None:
        """Compress and spool a block, if there is none like it."""
        name = b"".join(digests)
        if not digests or name in self._blocks:
            return
        edges = batch.edges[: len(digests) + 1]
        size = (edges[-1] - edges[0]) * PAGE
        block = self._encoder.encode(content[:size])
        place = self._spool.append(block.frame)
        pages = bytes(last - first for first, last in itertools.pairwise(edges))
        spooled = _Seen(place, name, pages, block.digest)
        with self._lock:
            self._new += size
            self._blocks[name] = spooled
            self._having.update(dict.fromkeys(digests, spooled))

    def settle(self) -> bool:
        """Say whether much was spooled."""
        much = self._new >= MUCH
        if much:
            self._new = 0
        return much

    def still(self, stage: Path) -> None:
        """Lay aside in memory what fits, and then in a file."""
        self._aside.limit(SPARE, stage)

    def keep(self, digest: Digest, segment: memoryview) -> None:
        """Lay aside what was not spooled."""
        if digest not in self._having:
            self._aside.put(digest, segment)

    # Afterwards

    def blocks(self, taken: Taken, pool: ThreadPoolExecutor) -> Iterator[Block]:
        """Yield the blocks of a file of pages."""
        digests = iter(taken.digests)
        named = (
            (batch, [*itertools.islice(digests, len(batch.edges) - 1)])
            for batch in taken.layout.blocks()
        )
        return in_order(pool, lambda both: self._block(*both), named)

    def _block(self, batch: Batch, digests: Sequence[Digest]) -> Block:
        spooled = self._blocks.get(b"".join(digests))
        if spooled is not None:
            return Spooled(batch.size, spooled.digest, self._spool.stretch(spooled.place))
        opened: dict[Place, bytes] = {}
        plain = b"".join(self._segment(digest, opened) for digest in digests)
        if len(plain) != batch.size:
            raise AssertionError(f"a block of {batch.size} bytes is put together of {len(plain)}")
        return self._encoder.encode(plain)

    def _segment(self, digest: Digest, opened: dict[Place, bytes]) -> bytes:
        """Return a segment; ``opened`` are the plain blocks that were needed for others."""
        spooled = self._having.get(digest)
        if spooled is None:
            return self._aside.get(digest)
        plain = opened.get(spooled.place)
        if plain is None:
            frame = self._spool.read(spooled.place)
            plain = opened[spooled.place] = self._encoder.decode(frame, spooled.size)
        number = _names(spooled.segments).index(digest)
        begin = sum(spooled.pages[:number]) * PAGE
        return plain[begin : begin + spooled.pages[number] * PAGE]

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


def _names(joined: bytes) -> list[Digest]:
    return [joined[at : at + _NAME] for at in range(0, len(joined), _NAME)]
