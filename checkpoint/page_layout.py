"""The pages of one process in the order of its file of pages, and where each is to be read.

A lazy dump leaves private memory in its process: CRIU's file of pages has only the others. The
layout is that of the complete file, as CRIU writes it where a dump is not lazy.

It is a table of pieces, of up to 16 pages each: a byte for a page, where memory is not scattered.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint.images import PAGE, Entry
from pymigrate.checkpoint.memory_map import BLOCK
from pymigrate.runtime.memory import Area, Memory, Range, Regions, regions_of

WINDOW = 64 << 10
"""Bytes of addresses whose pages are one segment: a page that appears moves no other's."""

BATCH = 512  # pages that are read together: 2 MiB, which stay in the cache until they are hashed

LITTLE = 16  # pages below which a block goes on in the next window

_SOME = 1 << 14  # segments that are compared at once

Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]

_RUN = np.dtype([("address", "=i8"), ("pages", "=i8"), ("present", "=?")])


@dataclass(frozen=True)
class Batch:
    """Segments that are read together, from ``first`` on.

    ``edges`` are numbers of pages, each segment's first and one behind.
    """

    first: int
    edges: Sequence[int]

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self.edges) - 1

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.edges[-1] - self.edges[0]) * PAGE

    def cut(self, content: memoryview) -> Iterator[memoryview]:
        """Cut what was read into segments; one of which a part is missing is left out."""
        for first, last in zip(self.edges, self.edges[1:], strict=False):
            begin, end = ((edge - self.edges[0]) * PAGE for edge in (first, last))
            if end > len(content):
                return
            yield content[begin:end]


@dataclass(frozen=True)
class Layout:
    """The pages of one process, as pieces that follow one another within a window each.

    ``addresses`` are where pieces begin, ``counts`` their pages, and ``places`` where they lie in
    CRIU's own file, in bytes, or -1: in the process.
    """

    addresses: Numbers
    counts: NDArray[np.uint8]
    places: Numbers

    @classmethod
    def of_entries(cls, entries: Sequence[Entry]) -> Layout:
        """Lay out what CRIU's pagemap of a dump says."""
        runs = np.fromiter(
            ((entry.address, entry.pages, entry.present) for entry in entries), _RUN, len(entries)
        )
        here = np.where(runs["present"], runs["pages"], 0)
        places = np.where(runs["present"], (np.cumsum(here) - here) * PAGE, -1)
        return cls._cut(runs["address"], runs["pages"] * PAGE, places)

    @classmethod
    def of_areas(cls, memory: Memory, areas: Iterable[Area]) -> Layout:
        """Lay out the pages that are in some mappings of a process, which may run, just now."""
        found = regions_of(each for area in areas for each in memory.pages(area)).astype(np.int64)
        starts, ends = found[:, 0], found[:, 1]
        return cls._cut(starts, ends - starts, np.full(len(starts), -1))

    @classmethod
    def _cut(cls, starts: Numbers, lengths: Numbers, places: Numbers) -> Layout:
        """Cut runs of pages, in bytes, at the ends of windows."""
        ends = starts + lengths
        windows = starts // WINDOW
        counts = -(-ends // WINDOW) - windows
        # In place: these are as long as the layout.
        begins = np.repeat(windows - np.cumsum(counts) + counts, counts)
        begins += np.arange(len(begins))
        begins *= WINDOW
        pages = np.repeat(ends, counts)
        np.minimum(pages, begins + WINDOW, out=pages)
        firsts = np.repeat(starts, counts)
        np.maximum(begins, firsts, out=begins)
        pages -= begins
        pages //= PAGE
        found = np.repeat(places, counts)
        np.add(found, begins - firsts, out=found, where=found >= 0)
        return cls(begins, pages.astype(np.uint8), found)

    @property
    def size(self) -> int:
        """Bytes of all pages."""
        return int(self.edges[-1]) * PAGE

    @property
    def segments(self) -> int:
        """How many there are: each is the pages of a window."""
        return len(self._firsts) - 1

    @functools.cached_property
    def _firsts(self) -> Numbers:
        """Number the first piece of each segment, and the one behind all."""
        windows = self.addresses // WINDOW
        inner = np.flatnonzero(windows[1:] != windows[:-1]) + 1
        return np.concatenate(([0], inner, [len(windows)])) if len(windows) else np.zeros(1, int)

    @functools.cached_property
    def edges(self) -> Numbers:
        """Number the first page of each segment, and the one behind all."""
        return np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64)))[self._firsts]

    def names(self) -> Numbers:
        """Return a number for each segment that says which pages it has; -1 if a file has some.

        Segments of two layouts of one process have the same pages if they have the same number.
        They ascend, but for these.
        """
        if not self.segments:
            return np.zeros(0, np.int64)
        starts = self._firsts[:-1]
        bits = self.addresses % WINDOW
        bits //= PAGE
        np.left_shift((1 << self.counts.astype(np.int64)) - 1, bits, out=bits)
        found = (self.addresses[starts] // WINDOW) << (WINDOW // PAGE)
        found |= np.bitwise_or.reduceat(bits, starts)
        found[np.maximum.reduceat(self.places, starts) >= 0] = -1
        return found

    def lies_in(self, regions: Regions) -> Flags:
        """Say of each segment whether all of it lies in regions, which are in order."""
        found: Flags = self._inside(regions) == np.diff(self.edges) * PAGE
        return found

    def touches(self, regions: Regions) -> Flags:
        """Say of each segment whether some of it lies in regions, which are in order."""
        return self._inside(regions) > 0

    def _inside(self, regions: Regions) -> Numbers:
        """Say of each segment how many bytes of it lie in regions."""
        if not len(regions) or not self.segments:
            return np.zeros(self.segments, np.int64)
        starts, ends = (regions[:, column].astype(np.int64) for column in (0, 1))
        before = np.concatenate(([0], np.cumsum(ends - starts)))

        def below(addresses: Numbers) -> Numbers:
            number = np.searchsorted(starts, addresses, "right")
            above = np.maximum(ends[number - 1] - addresses, 0)  # of the last that has begun
            return before[number] - np.where(number > 0, above, 0)

        found = np.zeros(self.segments, np.int64)
        for first in range(0, self.segments, _SOME):
            edges = self._firsts[first : first + _SOME + 1]
            some = slice(int(edges[0]), int(edges[-1]))
            behind = self.addresses[some] + self.counts[some].astype(np.int64) * PAGE
            inside = below(behind) - below(self.addresses[some])
            found[first : first + _SOME] = np.add.reduceat(inside, edges[:-1] - edges[0])
        return found

    def only(self, wanted: Flags) -> Layout:
        """Return the layout of some of the segments."""
        rows = np.repeat(wanted, np.diff(self._firsts))
        return Layout(self.addresses[rows], self.counts[rows], self.places[rows])

    def batches(self) -> Iterator[Batch]:
        """Take segments together."""
        edges = self.edges
        first = 0
        while first < self.segments:
            behind = int(np.searchsorted(edges, edges[first] + BATCH, "right"))
            yield self._batch(first, behind - 1)
            first = behind - 1

    def _batch(self, first: int, behind: int) -> Batch:
        return Batch(first, self.edges[first : behind + 1].tolist())

    def blocks(self) -> Iterator[Batch]:
        """Take segments together that are a block of an archive: what lies in a window of BLOCK.

        Where there is little, windows that follow one another are one block. So a page that appears
        changes one block; and what comes behind many pages begins a block as before.
        """
        if not self.segments:
            return
        windows = self.addresses[self._firsts[:-1]] // BLOCK
        edges = self.edges
        begin = first = 0
        for last in (*(np.flatnonzero(np.diff(windows)) + 1).tolist(), self.segments):
            held, both = int(edges[first] - edges[begin]), int(edges[last] - edges[begin])
            if held >= LITTLE or (held and both * PAGE > BLOCK):
                yield self._batch(begin, first)
                begin = first
            first = last
        yield self._batch(begin, first)

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
        rows = slice(self._firsts[batch.first], self._firsts[batch.first + batch.segments])
        places = self.places[rows]
        in_file = places >= 0
        starts = np.where(in_file, places, self.addresses[rows])
        ends = starts + self.counts[rows].astype(np.int64) * PAGE
        breaks = (starts[1:] != ends[:-1]) | np.diff(in_file)
        firsts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
        lasts = [*firsts[1:], len(starts)]
        waiting: list[Range] = []
        for first, last in zip(firsts, lasts, strict=True):
            piece = Range(int(starts[first]), int(ends[last - 1]))
            if not in_file[first]:
                waiting.append(piece)
                continue
            if waiting:
                yield False, waiting
                waiting = []
            yield True, [piece]
        if waiting:
            yield False, waiting
