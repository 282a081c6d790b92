"""What the other host was sent of each page, as a hash of 128 bits: which pages need not go again.

Kernels without soft-dirty bits (arm64's, and many of clouds) do not say which pages were written.
So they are read again and compared by content: 16 bytes are kept for each page, and a page that was
written with what was in it before counts as the same. The hash is keyed by a number that nobody
else knows, so a program cannot choose pages that collide. They lie in a file without a name, so
that they need no memory where that is short (runtime/scratch.py).
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pymigrate.runtime.scratch import Scratch, Zeros

PAGE = 4096
BLOCK = 512
"""Pages in a block, the unit in which hashes are kept: 2 MiB of addresses."""
GROUP = 16
"""Pages that have a hash together: 64 KiB of addresses."""

Addresses = np.ndarray[tuple[int], np.dtype[np.uint64]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Hashes = np.ndarray[tuple[int, int], np.dtype[np.uint64]]
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
States = np.ndarray[tuple[int], np.dtype[np.uint8]]

_NONE: Indices = np.zeros(0, np.int64)
_UNKNOWN: States = np.zeros(BLOCK, np.uint8)
_ABSENT: Flags = np.zeros(BLOCK, np.bool_)


def expanded(begins: Addresses, counts: Addresses) -> Addresses:
    """Return the address of each page of runs, which are told by address and number of pages."""
    before = np.cumsum(counts) - counts  # pages of all runs before it
    firsts = np.repeat(begins - before * PAGE, counts.astype(np.int64))
    return np.asarray(firsts + np.arange(len(firsts), dtype=np.uint64) * PAGE)


def zero_pages(content: memoryview) -> Flags:
    """Say of each page whether it holds nothing but zeros."""
    words = np.frombuffer(content, np.uint64).reshape(-1, PAGE // 8)
    zeros = (words[:, 0] | words[:, PAGE // 16]) == 0
    maybe = np.flatnonzero(zeros)  # few, but for those that are
    zeros[maybe] = np.bitwise_or.reduce(words[maybe], axis=1) == 0
    return np.asarray(zeros)


class State(enum.IntEnum):
    """What is known of a page that was sent; all that need be looked at if it was not written."""

    UNKNOWN = 0
    CONTENT = 1
    ZEROS = 2


@dataclass(frozen=True)
class Compared:
    """Pages as they were looked at; ``unchanged`` are those that are no zeros."""

    zeros: Flags
    unchanged: Flags
    hashes: Hashes
    firsts: Indices  # of which page on a whole group is there
    groups: Hashes  # of each of these


@dataclass(frozen=True, slots=True)
class _Block:
    """What was sent of 2 MiB of addresses; zero is not known."""

    pages: Hashes
    groups: Hashes
    states: States


class _Blocks:
    """Makes blocks, many at a time: each array in a file has a mapping of its own."""

    ROWS = BLOCK + BLOCK // GROUP
    ONCE = 128

    def __init__(self, zeros: Zeros) -> None:
        self._zeros = zeros
        self._rows: Hashes = np.zeros((0, 2), np.uint64)

    def make(self) -> _Block:
        """Make one of which nothing is known."""
        if not len(self._rows):
            count = self.ONCE * self.ROWS
            self._rows = self._zeros(2 * count, np.dtype(np.uint64)).reshape(count, 2)
        block, self._rows = self._rows[: self.ROWS], self._rows[self.ROWS :]
        return _Block(block[:BLOCK], block[BLOCK:], np.zeros(BLOCK, np.uint8))


class KnownPages:
    """The hashes of what was sent, by process and address. For one thread.

    Where 16 pages in a row are there, they also have a hash together: so what has not changed, as
    most has not, is hashed once and compared once, and not page by page. Close it in the end.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Know nothing; large tables are on the disk of the directory, without one in memory."""
        self._scratch = None if directory is None else Scratch(directory)
        self._made = _Blocks(np.zeros if self._scratch is None else self._scratch.zeros)
        self._seed = secrets.randbits(64)
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._zero = self._digests(memoryview(bytes(PAGE)), [0], PAGE)[0]

    def close(self) -> None:
        """Close the file; who goes on with what is known makes another. May be repeated."""
        if self._scratch is not None:
            self._scratch.close()

    def __bool__(self) -> bool:
        """Say whether anything is known."""
        return bool(self._blocks)

    def _digests(self, content: memoryview, offsets: Sequence[int], size: int) -> Hashes:
        """Return the hashes of pieces of the content; none is zero in both halves."""
        digest, seed = xxhash.xxh3_128_digest, self._seed
        packed = b"".join([digest(content[at : at + size], seed) for at in offsets])
        found = np.frombuffer(packed, np.uint64).reshape(-1, 2).copy()
        found[:, 0] |= 1  # zero in both is "not known"
        return found

    def compare(self, inner: int, addresses: Addresses, content: memoryview) -> Compared:
        """Look at pages, whose addresses ascend, and say which are what was sent for them."""
        count = len(addresses)
        hashes = np.zeros((count, 2), np.uint64)
        unchanged = np.zeros(count, np.bool_)
        firsts = _whole_groups(addresses)
        groups = self._digests(content, (firsts * PAGE).tolist(), GROUP * PAGE)
        for block, which, slots in split(addresses[firsts]):
            known = self._blocks.get((inner, block))
            if known is not None:
                numbers = slots // GROUP
                same = (known.groups[numbers] == groups[which]).all(axis=1)
                places = (firsts[which][same][:, None] + np.arange(GROUP)).ravel()
                hashes[places] = known.pages.reshape(-1, GROUP, 2)[numbers[same]].reshape(-1, 2)
                unchanged[places] = True
        rest = np.flatnonzero(~unchanged)
        if len(rest):
            hashes[rest] = self._digests(content, (rest * PAGE).tolist(), PAGE)
            for block, which, slots in split(addresses[rest]):
                known = self._blocks.get((inner, block))
                if known is not None:
                    same = (known.pages[slots] == hashes[rest[which]]).all(axis=1)
                    unchanged[rest[which]] = same
        zeros = np.asarray((hashes == self._zero).all(axis=1))
        return Compared(zeros, unchanged & ~zeros, hashes, firsts, groups)

    def states(self, inner: int, blocks: Sequence[int]) -> States:
        """Return what is known of each page of some blocks, one behind the other: see `State`."""
        get = self._blocks.get
        known = (get((inner, block)) for block in blocks)
        return np.concatenate([_UNKNOWN if each is None else each.states for each in known])

    def processes(self) -> list[int]:
        """List the processes of which anything was known."""
        return sorted({inner for inner, _ in self._blocks})

    def forget(self, inner: int, addresses: Addresses) -> None:
        """Take back what was learned of pages: they may not have arrived."""
        for block, _, slots in split(addresses):
            known = self._blocks.get((inner, block))
            if known is not None:
                known.pages[slots] = 0
                known.states[slots] = State.UNKNOWN
                known.groups[slots // GROUP] = 0

    def forget_process(self, inner: int) -> None:
        """Take back all that was learned of a process."""
        for key in [key for key in self._blocks if key[0] == inner]:
            del self._blocks[key]

    def learn(self, inner: int, addresses: Addresses, seen: Compared) -> None:
        """Remember that all of this is sent, or was before; zeros need no sending."""
        states = np.where(seen.zeros, np.uint8(State.ZEROS), np.uint8(State.CONTENT))
        for block, which, slots in split(addresses):
            known = self._blocks.get((inner, block))
            if known is None:
                known = self._blocks[inner, block] = self._made.make()
            known.pages[slots] = seen.hashes[which]
            known.states[slots] = states[which]
            known.groups[slots // GROUP] = 0  # or it would still vouch for what was there before
        for block, which, slots in split(addresses[seen.firsts]):
            self._blocks[inner, block].groups[slots // GROUP] = seen.groups[which]


def _whole_groups(addresses: Addresses) -> Indices:
    """Return where groups begin of which every page is there; the addresses ascend."""
    numbers = addresses // PAGE
    firsts = np.flatnonzero(numbers[: 1 - GROUP] % GROUP == 0) if len(numbers) >= GROUP else _NONE
    whole = numbers[firsts + (GROUP - 1)] == numbers[firsts] + (GROUP - 1)
    return np.asarray(firsts[whole])


def split(addresses: Addresses) -> list[tuple[int, slice, Addresses]]:
    """Sort ascending addresses into blocks: the block, which of them, where in it."""
    numbers = addresses // PAGE
    blocks = numbers // BLOCK
    edges = np.flatnonzero(np.diff(blocks)) + 1
    begins = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(addresses)]
    return [
        (int(blocks[begin]), slice(begin, end), numbers[begin:end] % BLOCK)
        for begin, end in zip(begins, ends, strict=True)
        if begin < end
    ]


class PageSet:
    """A set of pages, by process and address. For one thread."""

    def __init__(self) -> None:
        """Begin empty."""
        self._blocks: dict[tuple[int, int], Flags] = {}

    def missing(self, inner: int, addresses: Addresses) -> Flags:
        """Say of each ascending address whether it is not in the set."""
        result = np.ones(len(addresses), np.bool_)
        for block, which, slots in split(addresses):
            known = self._blocks.get((inner, block))
            if known is not None:
                result[which] = ~known[slots]
        return result

    def add(self, inner: int, addresses: Addresses) -> None:
        """Put ascending addresses into the set."""
        for block, _, slots in split(addresses):
            self._blocks.setdefault((inner, block), np.zeros(BLOCK, np.bool_))[slots] = True

    def flags(self, inner: int, blocks: Sequence[int]) -> Flags:
        """Say of each page of some blocks, one behind the other, whether it is in the set."""
        get = self._blocks.get
        return np.concatenate([get((inner, block), _ABSENT) for block in blocks])

    def add_flags(self, inner: int, blocks: Sequence[int], flags: Flags) -> None:
        """Put those pages of some blocks into the set whose flag is set; as `flags` gives them."""
        for block, some in zip(blocks, flags.reshape(-1, BLOCK), strict=True):
            known = self._blocks.get((inner, block))
            if known is None:
                self._blocks[inner, block] = some.copy()
            else:
                known |= some
