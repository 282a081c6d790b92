"""Where each chunk of a repository is: the tables of all packs as one sorted array. Pure.

One GiB of pages is 262144 chunks, 36 bytes each here; they are looked up many at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint.packs import Column, Ids, Table

Places = NDArray[np.int64]
"""Numbers of rows of an index; -1 where a chunk is in no pack."""


@dataclass(frozen=True)
class Chunks:
    """Where chunks are: the numbers of packs, of blobs in these, and bytes in the blobs."""

    pack: Column
    blob: Column
    offset: Column
    length: Column

    def taken(self, rows: Places) -> Chunks:
        """Return some of them, in the order given."""
        return Chunks(self.pack[rows], self.blob[rows], self.offset[rows], self.length[rows])


@dataclass(frozen=True)
class Index(Chunks):
    """Rows in the order of the packs; a chunk that is in two has two rows: the first counts.

    ``high`` and ``low`` are the halves of their names. They are looked up by the first 32 bits,
    which nearly no two have in common: ``order`` are the rows by these, ``keys`` these in order.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    order: Places
    keys: NDArray[np.uint32]

    @classmethod
    def build(cls, tables: Sequence[Table]) -> Index:
        """Join tables; their numbers are the places in the sequence."""
        count = sum(len(table.ids) for table in tables)
        ids = np.empty((count, 16), np.uint8)
        columns = [np.empty(count, np.uint32) for _ in range(4)]
        start = 0
        for number, table in enumerate(tables):
            rows = slice(start, start + len(table.ids))
            ids[rows] = table.ids
            columns[0][rows] = number
            for column, values in zip(
                columns[1:], (table.blob, table.offset, table.length), strict=True
            ):
                column[rows] = values
            start = rows.stop
        high, low = _halves(ids)
        keys = _keys(high)
        order = _order(keys)
        pack, blob, offset, length = columns
        return cls(pack, blob, offset, length, high, low, order, keys[order])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.high)

    def name(self, row: int) -> bytes:
        """Return the name of the chunk of a row."""
        return int(self.high[row]).to_bytes(8, "little") + int(self.low[row]).to_bytes(8, "little")

    def find(self, ids: Ids) -> Places:
        """Return the first row of each chunk, or -1."""
        found = np.full(len(ids), -1, np.int64)
        if not len(self) or not len(ids):
            return found
        high, low = _halves(ids)
        keys = _keys(high)
        open_ = _order(keys)  # in order they are found in half of the time, sorting included
        place = np.searchsorted(self.keys, keys[open_]).astype(np.int64)
        while len(open_):
            # Rows with an equal key lie side by side: nearly always there is one.
            inside = place < len(self)
            open_, place = open_[inside], place[inside]
            equal = self.keys[place] == keys[open_]
            open_, place = open_[equal], place[equal]
            rows = self.order[place]
            same = (self.high[rows] == high[open_]) & (self.low[rows] == low[open_])
            found[open_[same]] = rows[same]
            open_, place = open_[~same], place[~same] + 1
        return found


def _halves(ids: Ids) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    both = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    return both[:, 0].astype(np.uint64), both[:, 1].astype(np.uint64)


def _keys(high: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return (high >> np.uint64(32)).astype(np.uint32)


def _order(keys: NDArray[np.uint32]) -> Places:
    """Sort, equal ones as they came: by 16 bits numpy counts, which takes a third of the time."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    return order[np.argsort((keys >> np.uint32(16)).astype(np.uint16)[order], kind="stable")]


@dataclass(frozen=True)
class Run:
    """Neighbours in a blob that are neighbours in what is put together; all in bytes."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Piece:
    """What is taken from one blob."""

    pack: int
    blob: int
    runs: tuple[Run, ...]


def pieces(chunks: Chunks, rows: Places) -> Iterator[Piece]:
    """Say which blobs to read, each once, to put these chunks one after another."""
    if not len(rows):
        return
    length = chunks.length[rows].astype(np.int64)
    target = np.cumsum(length) - length
    source = chunks.offset[rows].astype(np.int64)
    blob = (chunks.pack[rows].astype(np.int64) << 32) | chunks.blob[rows]
    order = np.lexsort((target, blob))
    blob, target, source, length = blob[order], target[order], source[order], length[order]
    joined = (
        (blob[1:] == blob[:-1])
        & (source[1:] == source[:-1] + length[:-1])
        & (target[1:] == target[:-1] + length[:-1])
    )
    first = np.concatenate(([True], ~joined))
    begins = np.nonzero(first)[0]
    sizes = np.add.reduceat(length, begins)
    columns = (blob[begins], source[begins], target[begins], sizes)
    runs: list[Run] = []
    current = int(blob[0])
    for where, start, goal, size in zip(*(column.tolist() for column in columns), strict=True):
        if where != current:
            yield Piece(current >> 32, current & 0xFFFFFFFF, tuple(runs))
            runs = []
            current = where
        runs.append(Run(start, goal, size))
    yield Piece(current >> 32, current & 0xFFFFFFFF, tuple(runs))
