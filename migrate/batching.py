"""Which pages go into a batch, and how they are told: as addresses, ranges or runs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pymigrate.checkpoint.known_pages import Addresses, Flags
from pymigrate.runtime.memory import Range
from pymigrate.transport.pages import PAGE, Kind, Run

BATCH = 256  # pages: 1 MiB
Kinds = np.ndarray[tuple[int], np.dtype[np.uint8]]


def addresses_in(said: Sequence[Run]) -> Addresses:
    """Return the address of each page of runs."""
    ranges = [Range(run.address, run.address + run.pages * PAGE) for run in said]
    return addresses_of(ranges) if ranges else np.zeros(0, np.uint64)


def pack(view: memoryview, kept: Flags) -> int:
    """Move the pages that are kept to the front, in their order; return how many they are."""
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).tolist()
    to = 0
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        length = (end - begin) * PAGE
        if to != begin * PAGE:
            view[to : to + length] = view[begin * PAGE : begin * PAGE + length]
        to += length
    return to // PAGE


def batches(ranges: Iterable[Range], most: int = BATCH) -> Iterator[list[Range]]:
    """Cut and gather ranges into lists of at most so many pages."""
    batch: list[Range] = []
    room = most
    for each in ranges:
        start = each.start
        while start < each.end:
            end = min(each.end, start + room * PAGE)
            batch.append(Range(start, end))
            room -= (end - start) // PAGE
            start = end
            if not room:
                yield batch
                batch, room = [], most
    if batch:
        yield batch


def addresses_of(ranges: Sequence[Range]) -> Addresses:
    """Return the address of each page."""
    return np.concatenate(
        [np.arange(each.start, each.end, PAGE, dtype=np.uint64) for each in ranges]
    )


def ranges_of(addresses: Addresses) -> list[Range]:
    """Join ascending addresses of pages into ranges."""
    edges = np.flatnonzero(np.diff(addresses) != PAGE) + 1
    begins = addresses[[0, *edges]].tolist()
    ends = addresses[[*(edges - 1), len(addresses) - 1]].tolist()
    return [Range(begin, end + PAGE) for begin, end in zip(begins, ends, strict=True)]


def table(addresses: Addresses, kinds: Kinds) -> list[Run]:
    """Join pages of one kind that follow one another into runs."""
    breaks: Flags = (np.diff(addresses) != PAGE) | (np.diff(kinds) != 0)
    edges = np.flatnonzero(breaks) + 1
    begins = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(addresses)]
    return [
        Run(int(addresses[begin]), end - begin, Kind(int(kinds[begin])))
        for begin, end in zip(begins, ends, strict=True)
    ]
