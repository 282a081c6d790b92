"""Which pages go into a batch, and how they are told: as addresses, ranges or runs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from pymigrate.checkpoint.known_pages import Addresses, Flags, expanded
from pymigrate.runtime.memory import Range, Regions
from pymigrate.transport.pages import PAGE, Runs

Kinds = np.ndarray[tuple[int], np.dtype[np.uint8]]


def addresses_in(said: Runs) -> Addresses:
    """Return the address of each page of runs."""
    return expanded(said.addresses, said.pages)


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


def batches(ranges: Iterable[Range], most: Callable[[], int]) -> Iterator[list[Range]]:
    """Cut and gather ranges into lists of at most so many pages, asked for before each."""
    batch: list[Range] = []
    room = most()
    for each in ranges:
        start = each.start
        while start < each.end:
            end = min(each.end, start + room * PAGE)
            batch.append(Range(start, end))
            room -= (end - start) // PAGE
            start = end
            if not room:
                yield batch
                batch, room = [], most()
    if batch:
        yield batch


def pieces(regions: Regions, most: int, pages: int) -> Iterator[Regions]:
    """Cut ascending regions into lists of at most so many of them, and of at most so many pages."""
    for first in range(0, len(regions), most):
        some = regions[first : first + most]
        counts = ((some[:, 1] - some[:, 0]) // PAGE).astype(np.int64)
        ends = np.cumsum(counts)
        begins = ends - counts
        done, total = 0, int(ends[-1])
        while done < total:
            # From the region in which the next page is, to that in which the last one is.
            end = min(done + pages, total)
            here = slice(
                int(np.searchsorted(ends, done, "right")), int(np.searchsorted(ends, end)) + 1
            )
            skipped = np.maximum(done - begins[here], 0).astype(np.uint64)
            left = np.maximum(ends[here] - end, 0).astype(np.uint64)
            starts = some[here, 0] + skipped * PAGE
            yield np.stack([starts, some[here, 1] - left * PAGE], axis=1)
            done = end


def addresses_of(ranges: Sequence[Range]) -> Addresses:
    """Return the address of each page."""
    edges = np.array([(each.start, each.end) for each in ranges], np.uint64).reshape(-1, 2)
    return expanded(edges[:, 0], (edges[:, 1] - edges[:, 0]) // PAGE)


def ranges_of(addresses: Addresses) -> list[Range]:
    """Join ascending addresses of pages into ranges."""
    edges = np.flatnonzero(np.diff(addresses) != PAGE) + 1
    begins = addresses[[0, *edges]].tolist()
    ends = addresses[[*(edges - 1), len(addresses) - 1]].tolist()
    return [Range(begin, end + PAGE) for begin, end in zip(begins, ends, strict=True)]


def table(addresses: Addresses, kinds: Kinds) -> Runs:
    """Join pages of one kind that follow one another into runs."""
    breaks: Flags = (np.diff(addresses) != PAGE) | (np.diff(kinds) != 0)
    edges = np.flatnonzero(breaks) + 1
    begins = np.concatenate([[0], edges])
    counts = np.diff(begins, append=len(addresses))
    return Runs.made_of(addresses[begins], counts.astype(np.uint64), kinds[begins])
