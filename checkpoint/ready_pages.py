"""Pages that lie aside and will not change any more: which are put in place next.

The source says of pages that they hold, or sends them for good, from its freeze on; the processes
they belong to are restored some 100 ms later. So what is to be put in place then is remembered.
What was sent was written last, and will be needed first.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque

import numpy as np

from pymigrate.checkpoint.known_pages import BLOCK, PAGE, Addresses, expanded, split
from pymigrate.checkpoint.ready import Content, Ready
from pymigrate.runtime.errors import NoSpace

_SPARE = 1024
_AT_ONCE = 1 << 18  # pages that are remembered one by one
_LONG = 48  # pages of a run on average, from which on that takes longer than one run after another


_CONTENTS = {int(each): each for each in Content}


class ReadyPages:
    """What is ready, by and by: first what is needed soon. For several threads."""

    def __init__(self, most: int) -> None:
        """Begin empty; ``most`` bounds of how many pages it may be said, one by one."""
        self._room = most + _SPARE
        self._lock = threading.Lock()
        self._runs: deque[Ready] = deque()
        self._soon: deque[Ready] = deque()
        self._blocks: dict[tuple[int, int], np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}

    def add(self, run: Ready, *, soon: bool = False) -> None:
        """Remember pages; what was said of them before is forgotten.

        Raises NoSpace over the bound.
        """
        with self._lock:
            (self._soon if soon else self._runs).append(run)
            at, end = run.address // PAGE, (run.address + run.length) // PAGE
            while at < end:
                block, slot = divmod(at, BLOCK)
                count = min(BLOCK - slot, end - at)
                self._block(run.inner, block)[slot : slot + count] = run.content
                at += count

    def add_all(
        self,
        inner: int,
        addresses: Addresses,
        pages: Addresses,
        contents: Addresses,
        *,
        soon: bool = False,
    ) -> None:
        """Remember many runs of pages of one process, by ascending addresses; as `add` does."""
        lengths = pages * PAGE
        runs = [
            Ready(inner, address, length, _CONTENTS[content])
            for address, length, content in zip(
                addresses.tolist(), lengths.tolist(), contents.tolist(), strict=True
            )
        ]
        total = int(pages.sum())  # any number that somebody has sent
        if total > _AT_ONCE or total > _LONG * len(runs):
            for run in runs:
                self.add(run, soon=soon)
            return
        kinds = np.repeat(contents.astype(np.uint8), pages.astype(np.int64))
        with self._lock:
            (self._soon if soon else self._runs).extend(runs)
            for block, which, slots in split(expanded(addresses, pages)):
                self._block(inner, block)[slots] = kinds[which]

    def _block(self, inner: int, block: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        key = (inner, block)
        if key not in self._blocks:
            if len(self._blocks) >= self._room:
                raise NoSpace("more memory is spoken of than was announced")
            self._blocks[key] = np.zeros(BLOCK, np.uint8)
        return self._blocks[key]

    def take(self, most: int) -> Ready | None:
        """Take at most so many bytes of what was said first; None if nothing is left."""
        with self._lock:
            runs = self._soon or self._runs
            if not runs:
                return None
            run = runs.popleft()
            if run.length <= most:
                return run
            rest = Ready(run.inner, run.address + most, run.length - most, run.content)
            runs.appendleft(rest)
            return Ready(run.inner, run.address, most, run.content)

    def find(self, inner: int, address: int, around: int = PAGE) -> list[Ready]:
        """Return what is ready at an address, and then what else is in the bytes around it.

        These are a power of two, at most BLOCK pages, and aligned. Nothing if the page itself is
        not ready. It is not taken: it stays known here also after it was put in place.
        """
        window = around // PAGE
        with self._lock:
            block, slot = divmod(address // PAGE, BLOCK)
            kinds = self._blocks.get((inner, block))
            if kinds is None or not kinds[slot]:
                return []
            first = slot - slot % window
            some = kinds[first : first + window]
            edges = [0, *(np.flatnonzero(np.diff(some)) + 1).tolist(), window]
            runs = [
                Ready(
                    inner,
                    (block * BLOCK + first + begin) * PAGE,
                    (end - begin) * PAGE,
                    _CONTENTS[int(some[begin])],
                )
                for begin, end in itertools.pairwise(edges)
                if some[begin]
            ]
        return sorted(runs, key=lambda run: not run.address <= address < run.address + run.length)
