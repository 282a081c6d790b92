"""Where each chunk of a repository is: the tables of all packs as one sorted array. Pure.

One GiB of pages is 262144 chunks, 40 bytes each here, in arrays that need not be in memory (see
runtime/scratch.py); they are looked up many at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint.packs import Column, Ids, Table
from pymigrate.checkpoint.sealing import ID_BYTES
from pymigrate.runtime.scratch import Growing, Zeros

_PART = 1 << 18  # rows that are sorted at once

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

    ``ids`` are their names, as two halves. They are looked up by 32 bits, which nearly no two have
    in common: ``order`` are the rows by these, ``keys`` these in order.
    """

    ids: NDArray[np.uint64]
    order: NDArray[np.uint32]
    keys: NDArray[np.uint32]

    @classmethod
    def build(cls, tables: Iterable[Table]) -> Index:
        """Join tables; their numbers are the places in the sequence."""
        joining = Joining()
        for table in tables:
            joining.add(table)
        return joining.finish()[1]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def name(self, row: int) -> bytes:
        """Return the name of the chunk of a row."""
        return bytes(self.ids[row].tobytes())

    def find(self, ids: Ids) -> Places:
        """Return the first row of each chunk, or -1."""
        found = np.full(len(ids), -1, np.int64)
        if not len(self) or not len(ids):
            return found
        wanted = _halves(ids)
        keys = _keys(wanted)
        open_ = _order(keys)  # in order they are found in half of the time, sorting included
        place = np.searchsorted(self.keys, keys[open_]).astype(np.int64)
        while len(open_):
            # Rows with an equal key lie side by side: nearly always there is one.
            inside = place < len(self)
            open_, place = open_[inside], place[inside]
            equal = self.keys[place] == keys[open_]
            open_, place = open_[equal], place[equal]
            rows = self.order[place].astype(np.int64)
            same = (self.ids[rows] == wanted[open_]).all(axis=1)
            found[open_[same]] = rows[same]
            open_, place = open_[~same], place[~same] + 1
        return found


class Joining:
    """Tables of packs that become one index; what they say of chunks is there only once then."""

    def __init__(self, zeros: Zeros = np.zeros) -> None:
        """Begin with none; ``zeros`` makes the arrays."""
        self._zeros = zeros
        self._tables: list[Table] = []
        self._ids = Growing(np.dtype(np.uint64), zeros)  # two halves each
        self._columns = [Growing(np.dtype(np.uint32), zeros) for _ in range(4)]

    def add(self, table: Table) -> None:
        """Add the next one."""
        count = len(table.ids)
        number = np.full(count, len(self._tables), np.uint32)
        self._ids.extend(_halves(table.ids).reshape(-1))
        for column, values in zip(
            self._columns, (number, table.blob, table.offset, table.length), strict=True
        ):
            column.extend(values)
        none = np.zeros(0, np.uint32)
        # How many chunks it has, until there are all.
        ids = np.broadcast_to(np.uint8(0), (count, ID_BYTES))
        self._tables.append(replace(table, ids=ids, blob=none, offset=none, length=none))

    def finish(self) -> tuple[tuple[Table, ...], Index]:
        """Return the tables, which are views of the index, and that."""
        ids = self._ids.values.reshape(-1, 2)
        pack, blob, offset, length = (column.values for column in self._columns)
        order, keys = self._sorted(ids)
        tables = []
        start = 0
        for table in self._tables:
            rows = slice(start, start + len(table.ids))
            own = ids[rows].view(np.uint8).reshape(-1, ID_BYTES)
            tables.append(
                replace(table, ids=own, blob=blob[rows], offset=offset[rows], length=length[rows])
            )
            start = rows.stop
        return tuple(tables), Index(pack, blob, offset, length, ids, order, keys)

    def _sorted(self, ids: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Sort by keys, equal ones as they came: a part of all keys at a time."""
        order = self._zeros(len(ids), np.dtype(np.uint32))
        keys = self._zeros(len(ids), np.dtype(np.uint32))
        parts = len(ids) // _PART + 1
        done = 0
        for part in range(parts):
            least, behind = ((each << 32) // parts for each in (part, part + 1))
            found = [np.zeros(0, np.int64)]
            for start in range(0, len(ids), _PART):
                some = _keys(ids[start : start + _PART])
                found.append(np.flatnonzero((some >= least) & (some < behind)) + start)
            rows = np.concatenate(found)
            own = _keys(ids[rows])
            by_key = _order(own)
            place = slice(done, done + len(rows))
            order[place], keys[place] = rows[by_key], own[by_key]
            done = place.stop
        return order, keys


def _halves(ids: Ids) -> NDArray[np.uint64]:
    return np.ascontiguousarray(ids).view(np.uint64).reshape(-1, 2)


def _keys(ids: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return (ids[:, 0] >> np.uint64(32)).astype(np.uint32)


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
