"""Where to cut what is stored, so that what did not change is found again. Pure.

Memory is cut at pages: in CRIU's ``pages-N.img`` each page starts at a multiple of 4 KiB, and a
program changes pages here and there. Everything else is cut by content: a chunk ends where a hash
of the last 32 bytes happens to have 14 zero bits, so an insertion moves only the cuts beside it.
The hash is Gear (Xia et al., FastCDC, USENIX ATC 2016), computed for all positions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
"""Bytes; larger pages of a kernel are cut too: a chunk is never larger than what changes."""

SEGMENT = 16 * PAGE
"""Bytes of memory that are looked at as one first."""

SEGMENTS = 64 * SEGMENT  # that are read together
SMALLEST = 4 << 10
LARGEST = 64 << 10
BUFFER = 1 << 20  # bytes that are looked at together
_BITS = 14
_WINDOW = 32
_MASK = np.uint32(((1 << _BITS) - 1) << (32 - _BITS))  # the high bits know the whole window

Gear = NDArray[np.uint32]


class Cut(StrEnum):
    """How a member is cut."""

    PAGES = "pages"
    CONTENT = "content"

    @classmethod
    def of_member(cls, name: str) -> Cut:
        """Choose by the name of a member: ``checkpoint/pages-1.img`` holds pages."""
        return cls.PAGES if name.rpartition("/")[2].startswith("pages-") else cls.CONTENT


def gear(seed: bytes) -> Gear:
    """Make the table that the cuts by content depend on; it is secret where the seed is."""
    import hashlib

    raw = hashlib.shake_256(seed).digest(256 * 4)
    return np.frombuffer(raw, dtype="<u4").astype(np.uint32)


def cuts(data: memoryview, table: Gear, *, last: bool) -> list[int]:
    """Return the ends of the chunks in ``data``, which begins where a chunk begins.

    What follows the last end belongs with data still to come; there is none if ``last``.
    """
    size = len(data)
    candidates = _candidates(data, table)
    ends: list[int] = []
    start = 0
    place = 0
    while size - start > SMALLEST:
        while place < len(candidates) and candidates[place] < start + SMALLEST:
            place += 1
        end = start + LARGEST
        if place < len(candidates):
            end = min(end, candidates[place])
        if end > size:
            break
        ends.append(end)
        start = end
    if last and start < size:
        ends.append(size)
    return ends


def _candidates(data: memoryview, table: Gear) -> list[int]:
    """Return the positions after which the hash of the last 32 bytes asks for a cut."""
    found = table[np.frombuffer(data, dtype=np.uint8)]
    width = 1
    while width < _WINDOW:
        # The hash of 2w bytes is that of the later w plus that of the earlier w, shifted.
        found[width:] += found[:-width].copy() << np.uint32(width)
        width *= 2
    return [int(place) + 1 for place in np.nonzero((found & _MASK) == 0)[0]]


def by_content(read: Callable[[int], bytes], table: Gear) -> Iterator[memoryview]:
    """Cut a stream by content; ``read`` returns no more than asked for, and nothing at the end."""
    rest = b""
    while True:
        piece = read(BUFFER)
        data = memoryview(rest + piece if rest else piece)
        start = 0
        for end in cuts(data, table, last=not piece):
            yield data[start:end]
            start = end
        if not piece:
            return
        rest = bytes(data[start:])


def by_segment(read: Callable[[int], bytes]) -> Iterator[list[memoryview]]:
    """Cut a stream at multiples of 64 KiB; many segments at a time, all but the last one full."""
    rest = b""
    while piece := read(SEGMENTS):
        data = memoryview(rest + piece if rest else piece)
        whole = len(data) - len(data) % SEGMENT
        yield [data[start : start + SEGMENT] for start in range(0, whole, SEGMENT)]
        rest = bytes(data[whole:])
    if rest:
        yield [memoryview(rest)]


def pages(segment: memoryview) -> list[memoryview]:
    """Cut a segment at multiples of 4 KiB."""
    return [segment[start : start + PAGE] for start in range(0, len(segment), PAGE)]
