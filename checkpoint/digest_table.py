"""Digests of 16 bytes and what goes with each, as numbers in arrays: some 30 bytes for each.

A dictionary takes 200. Rows are numbered as they come; where one is, is found by half of
its digest, which is as good as random (open addressing, many at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymigrate.runtime.scratch import Zeros

Digest = bytes
"""16 bytes."""

Digests = NDArray[np.uint64]
"""Many digests: an array of N rows, of two halves each."""

SIZE = 16
_FIRST = 1 << 10  # rows there is room for at first; a power of two
_TOGETHER = 1 << 15  # rows that find their slots at once
_SPARE = 2  # slots for each row


def joined(digests: Sequence[Digest]) -> Digests:
    """Make an array of digests."""
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


class DigestTable:
    """Rows by their digests. For one thread at a time; several may `find` while nobody adds."""

    def __init__(self, values: Any = None, zeros: Zeros = np.zeros) -> None:
        """Begin empty; ``values`` are what numpy makes a type of: that of what goes with each."""
        self._zeros = zeros
        self._values_kind = None if values is None else np.dtype(values)
        self._count = 0
        self._digests: Digests = np.zeros((0, 2), np.uint64)
        self._values: NDArray[Any] = np.zeros(0, self._values_kind or np.uint8)
        self._slots: NDArray[np.int32] = np.zeros(0, np.int32)
        self._grow(_FIRST)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    @property
    def bytes(self) -> int:
        """Bytes of the arrays."""
        return self._digests.nbytes + self._values.nbytes + self._slots.nbytes

    def find(self, digests: Digests) -> NDArray[np.int64]:
        """Return the row of each, -1 if there is none."""
        found = np.full(len(digests), -1, np.int64)
        if not self._count:
            return found
        left = np.arange(len(digests))
        slots = self._first_slots(digests)
        while len(left):
            rows = self._slots[slots].astype(np.int64) - 1
            is_there = rows >= 0
            left, slots, rows = left[is_there], slots[is_there], rows[is_there]
            same = (self._digests[rows] == digests[left]).all(axis=1)
            found[left[same]] = rows[same]
            left, slots = left[~same], (slots[~same] + 1) & (len(self._slots) - 1)
        return found

    def add(self, digests: Digests, values: NDArray[Any] | None = None) -> None:
        """Add digests that are not there, each once, with their values."""
        count = len(digests)
        room = len(self._digests)
        if self._count + count > room:
            while self._count + count > room:
                room *= 2
            self._grow(room)
        rows = np.arange(self._count, self._count + count)
        self._digests[rows] = digests
        if values is not None:
            self._values[rows] = values
        self._place(rows)
        self._count += count

    def add_new(self, digests: Digests, values: NDArray[Any]) -> None:
        """Add those of digests that are not there, and each once, with their values."""
        _, firsts = np.unique(digests, axis=0, return_index=True)
        firsts = firsts[self.find(digests[firsts]) < 0]
        self.add(digests[firsts], values[firsts])

    def values(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return what goes with some rows."""
        return self._values[rows]

    def _first_slots(self, digests: Digests) -> NDArray[np.int64]:
        return (digests[:, 0] & np.uint64(len(self._slots) - 1)).astype(np.int64)

    def _place(self, rows: NDArray[np.int64]) -> None:
        slots = self._first_slots(self._digests[rows])
        while len(rows):
            is_free = self._slots[slots] == 0
            # Of several for one slot one stays there, the others go on.
            self._slots[slots[is_free]] = rows[is_free] + 1
            left = self._slots[slots] != rows + 1
            rows, slots = rows[left], (slots[left] + 1) & (len(self._slots) - 1)

    def _grow(self, room: int) -> None:
        self._digests = self._larger(self._digests.reshape(-1), 2 * room).reshape(-1, 2)
        if self._values_kind is not None:
            self._values = self._larger(self._values, room)
        self._slots = self._zeros(_SPARE * room, np.dtype(np.int32))
        for start in range(0, self._count, _TOGETHER):
            self._place(np.arange(start, min(start + _TOGETHER, self._count)))

    def _larger(self, array: NDArray[Any], room: int) -> NDArray[Any]:
        found = self._zeros(room, array.dtype)
        found[: len(array)] = array
        return found
