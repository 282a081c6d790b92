"""What the other host was sent of each page, as a hash of 128 bits: which pages need not go again.

Kernels without soft-dirty bits (arm64's, and many of clouds) do not say which pages were written.
So they are read again and compared by content: 16 bytes are kept for each page, and a page that was
written with what was in it before counts as the same. The hash is keyed by a number that nobody
else knows, so a program cannot choose pages that collide.
"""

from __future__ import annotations

import secrets

import numpy as np
import xxhash

PAGE = 4096
BLOCK = 512
"""Pages in a block, the unit in which hashes are kept: 2 MiB of addresses."""

Addresses = np.ndarray[tuple[int], np.dtype[np.uint64]]
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Hashes = np.ndarray[tuple[int, int], np.dtype[np.uint64]]


def zero_pages(content: memoryview) -> Flags:
    """Say of each page whether it holds nothing but zeros."""
    words = np.frombuffer(content, np.uint64).reshape(-1, PAGE // 8)
    return np.asarray(~words.any(axis=1))


class KnownPages:
    """The hashes of what was sent, by process and address. For one thread."""

    def __init__(self) -> None:
        """Know nothing."""
        self._seed = secrets.randbits(64)
        self._blocks: dict[tuple[int, int], Hashes] = {}
        self._zero = self.hashes(memoryview(bytes(PAGE)))[0]

    def __bool__(self) -> bool:
        """Say whether anything is known."""
        return bool(self._blocks)

    def hashes(self, content: memoryview) -> Hashes:
        """Return the hash of each page; none is zero in both halves."""
        digest, seed = xxhash.xxh3_128_digest, self._seed
        packed = b"".join(
            [digest(content[at : at + PAGE], seed) for at in range(0, len(content), PAGE)]
        )
        found = np.frombuffer(packed, np.uint64).reshape(-1, 2).copy()
        found[:, 0] |= 1  # zero in both is "not known"
        return found

    def zeros(self, hashes: Hashes) -> Flags:
        """Say of each hash whether it is that of a page of zeros."""
        return np.asarray((hashes == self._zero).all(axis=1))

    def unchanged(self, inner: int, addresses: Addresses, hashes: Hashes) -> Flags:
        """Say of each page whether it is what was sent for it."""
        result = np.zeros(len(addresses), np.bool_)
        for block, which, slots in _split(addresses):
            known = self._blocks.get((inner, block))
            if known is not None:
                result[which] = (known[slots] == hashes[which]).all(axis=1)
        return result

    def processes(self) -> list[int]:
        """List the processes of which anything was known."""
        return sorted({inner for inner, _ in self._blocks})

    def forget(self, inner: int, addresses: Addresses) -> None:
        """Take back what was learned of pages: they may not have arrived."""
        for block, _, slots in _split(addresses):
            known = self._blocks.get((inner, block))
            if known is not None:
                known[slots] = 0

    def forget_process(self, inner: int) -> None:
        """Take back all that was learned of a process."""
        for key in [key for key in self._blocks if key[0] == inner]:
            del self._blocks[key]

    def learn(self, inner: int, addresses: Addresses, hashes: Hashes) -> None:
        """Remember what was sent."""
        for block, which, slots in _split(addresses):
            key = (inner, block)
            if key not in self._blocks:
                self._blocks[key] = np.zeros((BLOCK, 2), np.uint64)
            self._blocks[key][slots] = hashes[which]


def _split(addresses: Addresses) -> list[tuple[int, slice, Addresses]]:
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
        for block, which, slots in _split(addresses):
            known = self._blocks.get((inner, block))
            if known is not None:
                result[which] = ~known[slots]
        return result

    def add(self, inner: int, addresses: Addresses) -> None:
        """Put ascending addresses into the set."""
        for block, _, slots in _split(addresses):
            self._blocks.setdefault((inner, block), np.zeros(BLOCK, np.bool_))[slots] = True

    def discard(self, inner: int, addresses: Addresses) -> None:
        """Take ascending addresses out of the set."""
        for block, _, slots in _split(addresses):
            known = self._blocks.get((inner, block))
            if known is not None:
                known[slots] = False
