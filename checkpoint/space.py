"""The memory of one restored process, and where its source's pages belong in it by now. Pure.

Nothing can be put in place until the kernel's messages of all changes were read. But each thread
tells of its own changes, once it has let go of the lock of the memory: if two of them move mappings
to where the other's were, and one is kept from running just between, the later is heard first, and
that cannot be seen. What one thread does is in order.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from operator import itemgetter

from pymigrate.runtime.values import dataclass, field

EVERYWHERE = 1 << 64

Piece = tuple[int, int, int]
"""Where it belongs, where it was at the source, how many bytes."""

_address = itemgetter(0)
_origin = itemgetter(1)


class Layout:
    """Which address has which page of the source; at all others, the holes, there are zeros.

    In the beginning each page has its own. Every change returns whether it was one.
    """

    def __init__(self, pieces: Iterable[Piece] = ((0, 0, EVERYWHERE),)) -> None:
        """Begin with these, none of which overlap, here or at the source."""
        self._here = sorted(pieces)
        self._there = sorted(self._here, key=_origin)
        self._vacated: dict[int, int] = {}  # from where to where there is nothing after a move

    @property
    def pieces(self) -> list[Piece]:
        """All of them, by address."""
        return list(self._here)

    def places(self, origin: int, length: int) -> list[tuple[int, int, int]]:
        """Say where a range of the source belongs now: offset in the range, address, bytes."""
        found = []
        first = max(bisect.bisect_right(self._there, origin, key=_origin) - 1, 0)
        behind = bisect.bisect_left(self._there, origin + length, key=_origin)
        for address, start, size in self._there[first:behind]:
            begin, end = max(start, origin), min(start + size, origin + length)
            if begin < end:
                found.append((begin - origin, address + begin - start, end - begin))
        return found

    def origin(self, address: int) -> int | None:
        """Say which address of the source a page has come from; None in a hole."""
        at = bisect.bisect_right(self._here, address, key=_address) - 1
        if at >= 0:
            start, origin, size = self._here[at]
            if address < start + size:
                return origin + address - start
        return None

    def hole(self, address: int, begin: int, end: int) -> tuple[int, int]:
        """Return from where to where the hole at an address reaches, within these two.

        Nothing, which is from and to that address, if there is none.
        """
        if self.origin(address) is not None:
            return address, address
        at = bisect.bisect_right(self._here, address, key=_address)
        if at:
            begin = max(begin, self._here[at - 1][0] + self._here[at - 1][2])
        if at < len(self._here):
            end = min(end, self._here[at][0])
        return begin, end

    def remove(self, start: int, end: int) -> bool:
        """Have zeros there: its process has given the memory back, and kept the mapping."""
        return bool(self._take(start, end))

    def unmap(self, start: int, end: int) -> bool:
        """Have zeros there: the mapping is gone, and another that grows may come there."""
        if end <= self._vacated.get(start, 0):
            # A move tells first that it moved, and when that was read, that nothing is left where
            # it was. By then another thread may have moved something there: that stays.
            del self._vacated[start]
            return True
        for vacated, until in [*self._vacated.items()]:
            if vacated < end and start < until:
                del self._vacated[vacated]  # by a move that leaves the mapping where it was
        return self.remove(start, end)

    def move(self, start: int, to: int, length: int) -> bool:
        """Have what belongs to a range belong to another, and zeros where it was."""
        for at, origin, size in self._take(start, start + length):
            # Not all of the range: a kernel that shrinks a mapping as it moves it may tell of as
            # much as it was before. What there was it has unmapped, if it was of ours.
            self._take(at + to - start, at + to - start + size)
            self._add((at + to - start, origin, size))
        self._vacated[start] = start + length
        return True

    def forked(self) -> Layout:
        """Return that of a child, of which nothing is told that has happened to its parent."""
        return Layout(self._here)

    # Both lists.

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        """Return which pieces, by their numbers, have something between two addresses."""
        first = bisect.bisect_right(self._here, start, key=_address)
        if first and self._here[first - 1][0] + self._here[first - 1][2] > start:
            first -= 1
        return first, max(first, bisect.bisect_left(self._here, end, key=_address))

    def _at(self, start: int, end: int) -> list[Piece]:
        """Return what of pieces is between two addresses."""
        found = []
        for at, origin, size in self._here[slice(*self._overlapping(start, end))]:
            begin, stop = max(at, start), min(at + size, end)
            found.append((begin, origin + begin - at, stop - begin))
        return found

    def _take(self, start: int, end: int) -> list[Piece]:
        """Take out what of pieces is between two addresses, and return it."""
        first, behind = self._overlapping(start, end)
        whole = self._here[first:behind]
        taken = self._at(start, end)
        del self._here[first:behind]
        for piece in whole:
            del self._there[bisect.bisect_left(self._there, piece[1], key=_origin)]
        for at, origin, size in whole:
            if at < start:
                self._add((at, origin, start - at))
            if at + size > end:
                self._add((end, origin + end - at, at + size - end))
        return taken

    def _add(self, piece: Piece) -> None:
        bisect.insort(self._here, piece, key=_address)
        bisect.insort(self._there, piece, key=_origin)


@dataclass()
class Space:
    """The memory of one process: whose memory it is made from, and what was changed in it since."""

    name: str
    fd: int
    inner: int
    layout: Layout = field(default_factory=Layout)
    gone: bool = False
