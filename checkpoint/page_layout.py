"""The pages of one process in the order of its file of pages, and where each is to be read.

A lazy dump leaves private memory in its process: CRIU's file of pages has only the others. The
layout is that of the complete file, as CRIU writes it where a dump is not lazy.
"""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint.images import PAGE, Entry
from pymigrate.checkpoint.memory_map import BLOCK
from pymigrate.runtime.memory import Area, Memory, Range, Regions

WINDOW = 64 << 10
"""Bytes of addresses whose pages are one segment: a page that appears moves no other's."""

BATCH = 512  # pages that are read together: 2 MiB, which stay in the cache until they are hashed

LITTLE = 16  # pages below which a block goes on in the next window


@dataclass(frozen=True)
class Batch:
    """Segments that are read together: numbers of pages, each segment's first and one behind."""

    edges: Sequence[int]

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.edges[-1] - self.edges[0]) * PAGE

    def segments(self, content: memoryview) -> Iterator[memoryview]:
        """Cut what was read; a segment of which a part is missing is left out."""
        for first, last in zip(self.edges, self.edges[1:], strict=False):
            begin, end = ((edge - self.edges[0]) * PAGE for edge in (first, last))
            if end > len(content):
                return
            yield content[begin:end]


@dataclass(frozen=True)
class Layout:
    """The pages of one process; ``places`` are bytes in CRIU's own file, or -1: in the process."""

    addresses: NDArray[np.uint64]
    places: NDArray[np.int64]

    @classmethod
    def of_entries(cls, entries: Sequence[Entry]) -> Layout:
        """Lay out what CRIU's pagemap of a dump says."""
        addresses = _pages((entry.address, entry.pages) for entry in entries)
        counts = [entry.pages for entry in entries]
        here = np.repeat(np.array([entry.present for entry in entries], np.bool_), counts)
        places = np.where(here, (np.cumsum(here) - 1) * PAGE, -1)
        return cls(addresses, places)

    @classmethod
    def of_areas(cls, memory: Memory, areas: Iterable[Area]) -> Layout:
        """Lay out the pages that are in some mappings of a process, which may run, just now."""
        ranges = [each for area in areas for each in memory.pages(area)]
        addresses = _pages((each.start, each.length // PAGE) for each in ranges)
        return cls(addresses, np.broadcast_to(np.int64(-1), len(addresses)))

    @property
    def size(self) -> int:
        """Bytes of all pages."""
        return len(self.addresses) * PAGE

    @functools.cached_property
    def edges(self) -> NDArray[np.int64]:
        """Number the first page of each segment, the pages of a window, and the one behind all."""
        if not len(self.addresses):
            return np.zeros(1, np.int64)
        windows = self.addresses // np.uint64(WINDOW)
        inner = np.flatnonzero(windows[1:] != windows[:-1]) + 1
        return np.concatenate(([0], inner, [len(windows)])).astype(np.int64)

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self.edges) - 1

    def names(self) -> list[int]:
        """Return a number for each segment that says which pages it has; -1 if a file has some.

        Segments of two layouts of one process have the same pages if they have the same number.
        """
        if not len(self.addresses):
            return []
        starts = self.edges[:-1]
        window = np.uint64(WINDOW // PAGE)
        bits = self.addresses // np.uint64(PAGE)  # in its own place: there are many
        np.remainder(bits, window, out=bits)
        np.left_shift(np.uint64(1), bits, out=bits)
        which = np.bitwise_or.reduceat(bits, starts)
        windows = self.addresses[starts] // np.uint64(WINDOW)
        found = (windows << window | which).astype(np.int64)
        found[np.maximum.reduceat(self.places, starts) >= 0] = -1
        return [*map(int, found.tolist())]

    def lies_in(self, regions: Regions) -> list[bool]:
        """Say of each segment whether all of it lies in regions, which are in order."""
        if not len(self.addresses):
            return []
        found: list[bool] = np.logical_and.reduceat(self._inside(regions), self.edges[:-1]).tolist()
        return found

    def touches(self, regions: Regions) -> list[bool]:
        """Say of each segment whether some of it lies in regions, which are in order."""
        if not len(self.addresses):
            return []
        found: list[bool] = np.logical_or.reduceat(self._inside(regions), self.edges[:-1]).tolist()
        return found

    def _inside(self, regions: Regions) -> NDArray[np.bool_]:
        """Say of each page whether it lies in one; at their edges its number of them changes."""
        edges = np.zeros(len(self.addresses) + 1, np.int8)
        np.add.at(edges, np.searchsorted(self.addresses, regions[:, 0]), 1)
        np.add.at(edges, np.searchsorted(self.addresses, regions[:, 1]), -1)
        return np.cumsum(edges[:-1], dtype=np.int8) > 0

    def only(self, wanted: Sequence[bool]) -> Layout:
        """Return the layout of some of the segments."""
        rows = np.repeat(np.array(wanted, np.bool_), np.diff(self.edges))
        return Layout(self.addresses[rows], self.places[rows])

    def batches(self) -> Iterator[Batch]:
        """Take segments together."""
        edges = self.edges.tolist()
        at = 0
        while edges[at] < len(self.addresses):
            behind = bisect.bisect_right(edges, edges[at] + BATCH) - 1
            yield Batch(edges[at : behind + 1])
            at = behind

    def blocks(self) -> Iterator[Batch]:
        """Take segments together that are a block of an archive: what lies in a window of BLOCK.

        Where there is little, windows that follow one another are one block. So a page that appears
        changes one block; and what comes behind many pages begins a block as before.
        """
        edges = self.edges.tolist()
        windows = self.addresses[self.edges[:-1]] // np.uint64(BLOCK)
        firsts = [*(np.flatnonzero(np.diff(windows)) + 1).tolist(), self.segments]
        begin = first = 0
        for last in firsts:
            held, both = edges[first] - edges[begin], edges[last] - edges[begin]
            if held >= LITTLE or (held and both * PAGE > BLOCK):
                yield Batch(edges[begin : first + 1])
                begin = first
            first = last
        if begin < first:
            yield Batch(edges[begin : first + 1])

    def read(self, batch: Batch, memory: Memory | None, file: int, into: memoryview) -> int:
        """Read a batch; returns the bytes that came before one was gone.

        ``memory`` is that of the process, ``file`` a descriptor of CRIU's own file of pages.
        """
        done = 0
        for in_file, pieces in self._pieces(batch):
            if in_file:
                (piece,) = pieces
                got = os.preadv(file, [into[done : done + piece.length]], piece.start)
            else:
                wanted = sum(piece.length for piece in pieces)
                got = memory.read(pieces, into[done : done + wanted]) if memory else 0
            done += got
            if got < sum(piece.length for piece in pieces):
                break
        return done

    def _pieces(self, batch: Batch) -> Iterator[tuple[bool, list[Range]]]:
        """Join neighbours: a run of a file by itself, runs of memory up to the next one."""
        rows = slice(batch.edges[0], batch.edges[-1])
        places = self.places[rows]
        in_file = places >= 0
        starts = np.where(in_file, places, self.addresses[rows].astype(np.int64))
        breaks = (np.diff(starts) != PAGE) | np.diff(in_file)
        firsts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
        lasts = [*firsts[1:], len(starts)]
        waiting: list[Range] = []
        for first, last in zip(firsts, lasts, strict=True):
            start = int(starts[first])
            piece = Range(start, start + (last - first) * PAGE)
            if not in_file[first]:
                waiting.append(piece)
                continue
            if waiting:
                yield False, waiting
                waiting = []
            yield True, [piece]
        if waiting:
            yield False, waiting


def _pages(runs: Iterable[tuple[int, int]]) -> NDArray[np.uint64]:
    """Return the address of each page of some runs, each an address and a number of pages."""
    both = np.array(list(runs), np.uint64).reshape(-1, 2)
    starts, counts = both[:, 0], both[:, 1]
    before = np.cumsum(counts) - counts
    found: NDArray[np.uint64] = np.repeat(
        starts - before * np.uint64(PAGE), counts.astype(np.int64)
    )
    found += np.arange(0, len(found) * PAGE, PAGE, dtype=np.uint64)
    return found
