"""What a file held when it was last sent, as a hash for each block, and what differs now.

16 KiB a block: a hash of 16 bytes costs 1 MiB of memory for 1 GiB of files, and a database's page
is that or half of it. xxh3 with a seed that nobody else knows: it must be as fast as reading, for
it is computed while the container stands still, and whoever may write into the files must not be
able to prepare two blocks that look the same.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import xxhash

BLOCK = 1 << 14
CHUNK = 1 << 20  # read and sent at a time; a multiple of BLOCK
_HASH = 16
_NO_HASH = bytes(_HASH)  # of a hole
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True)
class Blocks:
    """A file's size, and the hashes of its blocks in runs: where each begins, and its hashes.

    What is in no run is zeros.
    """

    size: int = 0
    starts: tuple[int, ...] = ()
    runs: tuple[bytes, ...] = ()

    def hashes(self, first: int, count: int) -> bytes:
        """Return the hashes of ``count`` blocks; zeros for a hole."""
        if len(self.starts) == 1 and self.starts[0] == 0:
            return self.runs[0][first * _HASH : (first + count) * _HASH].ljust(count * _HASH, b"\0")
        found = bytearray(count * _HASH)
        for start, length in self.parts(first, first + count):
            run, begin = self._at(start)
            inside = (start - begin) * _HASH
            at = (start - first) * _HASH
            found[at : at + length * _HASH] = run[inside : inside + length * _HASH]
        return bytes(found)

    def parts(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the pieces of runs, as first block and count, between two blocks."""
        for index in range(max(bisect_right(self.starts, first) - 1, 0), len(self.starts)):
            begin = max(self.starts[index], first)
            stop = min(self.starts[index] + len(self.runs[index]) // _HASH, end)
            if self.starts[index] >= end:
                return
            if begin < stop:
                yield begin, stop - begin

    def _at(self, block: int) -> tuple[bytes, int]:
        index = bisect_right(self.starts, block) - 1
        return self.runs[index], self.starts[index]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file; without ``data``, zeros."""

    offset: int
    length: int
    data: memoryview | None


@dataclass
class Scan:
    """Compare an open file with what it held; after `pieces`, `blocks` is what it holds now.

    If the file becomes shorter meanwhile, so does ``size``, and there are no pieces behind it.
    ``before`` is None for a file that was never sent. Without ``remember`` nothing is hashed that
    need not be compared, and `blocks` is of no use.
    """

    descriptor: int
    size: int
    seed: int
    before: Blocks | None
    remember: bool
    allocated: int
    """Bytes on the disk: fewer than the size means that there are holes."""
    _starts: list[int] = field(default_factory=list)
    _runs: list[bytearray] = field(default_factory=list)
    _next: int = 0  # the block after the newest run

    def pieces(self) -> Iterator[Piece]:
        """Yield what differs, in ascending order. A piece's data is good until the next."""
        buffer = bytearray(min(CHUNK, -(-self.size // BLOCK) * BLOCK))
        done = 0  # blocks
        for first, end in self._extents():
            yield from self._emptied(done, first)
            for start in range(first, end, CHUNK // BLOCK):
                length = min(CHUNK, self.size - start * BLOCK, (end - start) * BLOCK)
                view = memoryview(buffer)[: _read(self.descriptor, buffer, length, start * BLOCK)]
                yield from self._compared(view, start)
                if len(view) < length:
                    self.size = start * BLOCK + len(view)
                    return
            done = end
        yield from self._emptied(done, -(-self.size // BLOCK))

    @property
    def blocks(self) -> Blocks:
        """What the other side holds, when it has taken all pieces."""
        return Blocks(self.size, tuple(self._starts), tuple(map(bytes, self._runs)))

    def _extents(self) -> Iterator[tuple[int, int]]:
        """Yield the blocks with data, as first and end; neighbours are joined."""
        total = -(-self.size // BLOCK)
        if self.allocated >= self.size:
            if total:
                yield 0, total
            return
        first = end = 0
        for start, stop in _data(self.descriptor, self.size):
            block = start // BLOCK
            if block > end:
                if end > first:
                    yield first, end
                first = block
            end = max(end, -(-stop // BLOCK))
        if end > first:
            yield first, end

    def _emptied(self, first: int, end: int) -> Iterator[Piece]:
        """Yield as zeros what held data and is a hole now."""
        if self.before is None:
            return
        for start, count in self.before.parts(first, end):
            offset = start * BLOCK
            if offset < self.size:
                yield Piece(offset, min(count * BLOCK, self.size - offset), None)

    def _compared(self, view: memoryview, first: int) -> Iterator[Piece]:
        """Yield the blocks of a chunk that differ; neighbours are joined."""
        if not len(view):
            return
        if self.before is None and not self.remember:
            yield Piece(first * BLOCK, len(view), view)
            return
        digest, seed = xxhash.xxh3_128_digest, self.seed
        hashes = b"".join(
            [digest(view[at : at + BLOCK], seed) for at in range(0, len(view), BLOCK)]
        )
        if self.remember:
            self._remember(first, hashes)
        if self.before is None:
            yield Piece(first * BLOCK, len(view), view)
            return
        count = len(hashes) // _HASH
        old = self.before.hashes(first, count)
        if old == hashes:
            return
        begin: int | None = None
        for index in range(count + 1):
            at = index * _HASH
            differs = index < count and self._differs(
                old[at : at + _HASH], hashes[at : at + _HASH], view, index * BLOCK
            )
            if differs and begin is None:
                begin = index * BLOCK
            elif not differs and begin is not None:
                data = view[begin : index * BLOCK]
                yield Piece(first * BLOCK + begin, len(data), data)
                begin = None

    @staticmethod
    def _differs(old: bytes, new: bytes, view: memoryview, at: int) -> bool:
        if old == new:
            return False
        # Zeros where there was a hole are nothing new.
        return old != _NO_HASH or not _ZEROS.startswith(view[at : at + BLOCK])

    def _remember(self, first: int, hashes: bytes) -> None:
        if not self._runs or first != self._next:
            self._starts.append(first)
            self._runs.append(bytearray())
        self._runs[-1] += hashes
        self._next = first + len(hashes) // _HASH


def _read(descriptor: int, buffer: bytearray, length: int, offset: int) -> int:
    """Fill the buffer from a file; fewer bytes only where the file ends."""
    have = 0
    with memoryview(buffer) as view:
        while have < length:
            count = os.preadv(descriptor, [view[have:length]], offset + have)
            if not count:
                break
            have += count
    return have


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data, as its file system says, as start and end."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left, or it became shorter
                return
            raise
        if start >= end:
            return
        yield start, end
        position = end
