"""Read the memory of a container, and say of each page only what its target needs to hear.

In a round (EARLY) that is the content of what was written since the round before; frozen (FINAL),
whether each page holds that was sent before, is zeros, or what is in it. What is walked over by one
thread may be interrupted after each batch, for a page that is wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from pymigrate.checkpoint.known_pages import (
    Addresses,
    KnownPages,
    PageSet,
    State,
    expanded,
    zero_pages,
)
from pymigrate.checkpoint.page_grid import Grid
from pymigrate.migrate.batching import (
    Kinds,
    addresses_of,
    batches,
    pack,
    pieces,
    ranges_of,
    table,
)
from pymigrate.migrate.progress import Sent
from pymigrate.runtime.errors import MigrationError
from pymigrate.runtime.memory import Area, Memories, Memory, Range, Regions, regions_of
from pymigrate.runtime.write_tracking import WriteTracking
from pymigrate.transport import pages
from pymigrate.transport.pages import PAGE, Kind, Run, Runs, Stage

_RECALLED = 1 << 16  # pages of which it is said in one step that they hold
_REGIONS = 1 << 12  # in which these are: each is a block of a grid at least
SMALL = 2 << 20  # bytes of an area that goes before larger ones
AROUND = 8  # pages that go with a wanted one


class Conversation(Protocol):
    """The way to the target."""

    @property
    def is_complete(self) -> bool:
        """Whether the target misses nothing any more."""

    @property
    def takes_final(self) -> bool:
        """Whether the target takes FINAL pages by now."""

    def batch_pages(self) -> int:
        """Return how many pages the next batch may have."""

    def pause(self, until: Callable[[], bool]) -> None:
        """Wait until then, or until a page is wanted, or nothing more is to be said."""

    def take_buffer(self) -> bytearray:
        """Take a buffer for a batch, to `say` it or to `give_back`."""

    def give_back(self, buffer: bytearray) -> None:
        """Give back a buffer of which nothing is said."""

    def say(
        self,
        buffer: bytearray,
        count: int,
        stage: Stage,
        inner: int,
        said: Runs,
        *,
        urgent: bool = False,
    ) -> None:
        """Have a batch sent; ``count`` pages of content are in the buffer."""


class MemoryReader:
    """What is read of the memory of one container, and what of it was sent. Close it in the end.

    `walk`, `send_wanted` and `pass_over` are for one thread; `release` may be called in another.
    """

    def __init__(self, way: Conversation, sent: Sent, known: KnownPages) -> None:
        """Speak by ``way``; ``sent`` is counted up, ``known`` is what the target has by now."""
        self.known = known
        self.memories = Memories()
        self._way = way
        self._sent = sent
        self._tracking = WriteTracking()
        self._hot: list[tuple[int, Regions]] = []  # what the last round found changed
        self._gone = PageSet()  # FINAL pages that were sent
        self._traced = False
        self._holding: Sequence[Memory] = ()  # once frozen: zombies hold none

    def close(self) -> None:
        """Let go of the processes; may be repeated."""
        self.memories.close()
        self._tracking.close()
        self.known.close()

    def watch(self, pids: Sequence[int]) -> None:
        """Begin a round: from now on it is seen what these processes write."""
        self._hot = []
        self._tracking.watch(pids)

    def mistrust(self) -> None:
        """End a round: see ``write_tracking.py``."""
        self._tracking.mistrust()

    def freeze(self, pids: Sequence[int], *, traced: bool) -> None:
        """From now on this is the memory: its processes stand still. See `MemorySender.freeze`."""
        self._traced = traced
        self.memories.close()
        self.memories = Memories.of(pids)
        self._holding = [each for each in self.memories.by_inner.values() if each.areas()]

    def release(self) -> None:
        """Look at all memory from now on: nobody traces the processes any more."""
        self._traced = False

    def walk(self, memories: Memories, stage: Stage) -> Iterator[None]:
        """Send all pages of all processes, a batch at each step."""
        self._sent.turn, self._sent.looked = self._sent.turn + 1, 0
        every = memories.by_inner.values()
        areas = [(each, area) for each in every for area in each.areas()]
        if stage is Stage.EARLY:
            for memory, area in areas:
                yield from self._walk_ranges(memory, self._tracking.written(memory, area), stage)
            return
        while not (self._way.takes_final or self._way.is_complete):
            self._way.pause(lambda: self._way.takes_final)
            yield
        later: list[tuple[Memory, Area]] = []
        if self._traced:
            quiet = {(each.inner, area) for each in every for area in each.quiet_areas()}
            later = [(each, area) for each, area in areas if (each.inner, area) not in quiet]
            areas = [(each, area) for each, area in areas if (each.inner, area) in quiet]
        if not self.known:  # else all but what was just written lies there already
            # Stacks, and what allocators keep their books in: each process needs these at once.
            yield from self._walk_frozen([each for each in areas if each[1].length <= SMALL])
            areas = [each for each in areas if each[1].length > SMALL]
        yield from self._walk_frozen(areas)
        while later and self._traced and not self._way.is_complete:
            self._way.pause(lambda: not self._traced)
            yield
        yield from self._walk_frozen(later)
        if not self._way.is_complete:
            self._check_all_hold()
            # Nothing of nobody: what was not spoken of until now are zeros.
            self._way.say(self._way.take_buffer(), 0, Stage.FINAL, 0, Runs.of(()))

    def _check_all_hold(self) -> None:
        """Raise MigrationError if a frozen process was killed: its memory has read as nothing.

        To be asked last. Who is frozen can be killed by cgroup v2 only, and by v1 once thawed.
        """
        for memory in self._holding:
            if not memory.areas():
                raise _killed(memory.inner)

    def _walk_frozen(self, areas: Sequence[tuple[Memory, Area]]) -> Iterator[None]:
        """Say first what holds, which takes no reading where writes are tracked; then the rest."""
        others: list[tuple[Memory, Iterable[Range]]] = []
        for memory, some in itertools.groupby(areas, key=lambda each: each[0]):
            sorted_areas = [self._tracking.sort(memory, area) for _, area in some]
            others.append((memory, itertools.chain.from_iterable(rest for _, rest in sorted_areas)))
            clean = np.concatenate([regions for regions, _ in sorted_areas])
            for regions in pieces(clean, _REGIONS, _RECALLED):
                unknown = self._say_held(memory.inner, regions)
                if len(unknown):
                    others.append((memory, ranges_of(unknown)))
                yield
        yield from self._walk_hot()
        for memory, left in others:
            yield from self._walk_ranges(memory, left, Stage.FINAL)

    def _walk_ranges(self, memory: Memory, ranges: Iterable[Range], stage: Stage) -> Iterator[None]:
        for some in batches(ranges, self._way.batch_pages):
            if self._way.is_complete:
                return
            addresses = addresses_of(some)
            self._send_pages(memory, addresses, stage)
            self._sent.looked += len(addresses)
            yield

    def _walk_hot(self) -> Iterator[None]:
        """Send what was written last: it will be needed first."""
        for inner, regions in self._hot:
            memory = self.memories.by_inner.get(inner)
            if memory is None or self._way.is_complete:
                continue  # it has ended since
            addresses = expanded(regions[:, 0], (regions[:, 1] - regions[:, 0]) // np.uint64(PAGE))
            left = addresses[self._gone.missing(inner, addresses)]
            there = np.array([memory.has_page(int(each)) for each in left], np.bool_)
            if self._traced:
                quiet = np.zeros(len(left), np.bool_)
                for area in memory.quiet_areas():
                    quiet |= (left >= area.start) & (left < area.end)
                there &= quiet
            self._send_pages(memory, left[there], Stage.FINAL)
            yield

    def _say_held(self, inner: int, regions: Regions) -> Addresses:
        """Say of pages that were not written that they hold; return those that were never sent."""
        grid = Grid(regions)
        blocks = grid.blocks
        left = grid.inside & ~self._gone.flags(inner, blocks)
        states = self.known.states(inner, blocks)
        unknown = grid.addresses(np.flatnonzero(left & (states == State.UNKNOWN)))
        states[~left] = State.UNKNOWN
        addresses, counts, states_of_runs = grid.runs(states)
        if len(addresses):
            self._gone.add_flags(inner, blocks, states != State.UNKNOWN)
            zeros = states_of_runs == State.ZEROS
            zero = int(counts[zeros].sum())
            self._sent.zero += zero
            self._sent.same += int(counts.sum()) - zero
            self._sent.looked += int(counts.sum())
            kinds = np.where(zeros, np.uint8(Kind.ZERO), np.uint8(Kind.SAME))
            said = Runs.made_of(addresses, counts, kinds)
            for at in range(0, len(said), pages.MAX_RUNS):
                some = said[at : at + pages.MAX_RUNS]
                self._way.say(self._way.take_buffer(), 0, Stage.FINAL, inner, some)
        return unknown

    def send_wanted(self, inner: int, address: int) -> None:
        """Send the page that a process waits for, with those behind it."""
        self._sent.wanted += 1
        memory = self.memories.by_inner.get(inner)
        if memory is None:
            raise MigrationError(
                f"the target asks for the memory of a process {inner}, there is none"
            )
        near = np.arange(address, address + AROUND * PAGE, PAGE, dtype=np.uint64)
        try:
            here = memory.has_pages(address, AROUND)
        except ProcessLookupError as error:
            raise _killed(inner) from error
        if not here[0]:
            if self._gone.missing(inner, near[:1])[0]:
                self._gone.add(inner, near[:1])
                zero = _one(address, Kind.ZERO)
                self._way.say(self._way.take_buffer(), 0, Stage.FINAL, inner, zero, urgent=True)
            return
        count = AROUND if all(here) else here.index(False)
        self._send_pages(memory, near[:count], Stage.FINAL, urgent=True)

    def pass_over(self, inner: int, address: int, count: int) -> None:
        """Send pages no more: the lane's process has sent them, and they are in place."""
        addresses = np.arange(address, address + count * PAGE, PAGE, dtype=np.uint64)
        self._sent.content += int(self._gone.missing(inner, addresses).sum())
        self._gone.add(inner, addresses)

    def _send_pages(
        self, memory: Memory, addresses: Addresses, stage: Stage, *, urgent: bool = False
    ) -> None:
        if stage is Stage.FINAL:
            addresses = addresses[self._gone.missing(memory.inner, addresses)]
        if not len(addresses):
            return
        buffer = self._way.take_buffer()
        view = memoryview(buffer)[: len(addresses) * PAGE]
        got = memory.read(ranges_of(addresses), view) // PAGE
        if stage is Stage.EARLY:
            # Counted as not written since, and yet never read: what was known of them is not it.
            self.known.forget(memory.inner, addresses[got:])
            addresses, view = addresses[:got], view[: got * PAGE]
        elif got < len(addresses):
            raise MigrationError(
                f"memory of process {memory.inner} at {int(addresses[got]):#x} cannot be read"
            )
        kinds = self._sort(memory.inner, addresses, view, stage)
        content = kinds == Kind.CONTENT
        if stage is Stage.EARLY:
            addresses, kinds = addresses[content], kinds[content]
            if len(addresses):
                self._hot.append((memory.inner, regions_of(ranges_of(addresses))))
        else:
            self._gone.add(memory.inner, addresses)
        self._count(kinds, stage)
        if not len(addresses):
            self._way.give_back(buffer)
            return
        said = table(addresses, kinds)
        self._way.say(buffer, pack(view, content), stage, memory.inner, said, urgent=urgent)

    def _sort(self, inner: int, addresses: Addresses, view: memoryview, stage: Stage) -> Kinds:
        """Say of each page whether its content must go; remember it if it does."""
        if stage is Stage.FINAL and not self.known:
            return np.where(zero_pages(view), np.uint8(Kind.ZERO), np.uint8(Kind.CONTENT))
        seen = self.known.compare(inner, addresses, view)
        kinds = np.where(seen.zeros, np.uint8(Kind.ZERO), np.uint8(Kind.CONTENT))
        kinds[seen.unchanged] = Kind.SAME
        if stage is Stage.EARLY:
            self.known.learn(inner, addresses, seen)
        return kinds

    def _count(self, kinds: Kinds, stage: Stage) -> None:
        if stage is Stage.EARLY:
            self._sent.early += len(kinds)
            return
        counts = np.bincount(kinds, minlength=max(Kind) + 1).tolist()
        self._sent.content += counts[Kind.CONTENT]
        self._sent.zero += counts[Kind.ZERO]
        self._sent.same += counts[Kind.SAME]


def _killed(inner: int) -> MigrationError:
    return MigrationError(f"process {inner} was killed while it was frozen: its memory is lost")


def _one(address: int, kind: Kind) -> Runs:
    return Runs.of([Run(address, 1, kind)])
