"""The memory of a running container, nearly all of it read before the freeze. A `Store` keeps it.

::

    while it runs     read all, 64 KiB at a time, and have the store keep what it has not;
                      if that was much, once more what was written since
    ═══ frozen ═══    read again, beside CRIU, what was written since, or all where the kernel
                      does not tell: only what the store has not is laid aside
                      CRIU, and for what it was not shown we, say which pages there are: read what
                      was not read yet, or is code
    while it runs     the store asks what each file of pages was made of: `taken`

What was seen is known by a hash of 128 bits, keyed by a number that nobody else knows: so the
second look costs little more than reading.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from pymigrate.checkpoint import archive, digest_table, hidden_memory, images, memory_map
from pymigrate.checkpoint.digest_table import Digests
from pymigrate.checkpoint.hidden_memory import Hidden
from pymigrate.checkpoint.in_order import in_order
from pymigrate.checkpoint.page_layout import BATCH, Batch, Flags, Layout, Numbers
from pymigrate.runtime.errors import DumpFailed
from pymigrate.runtime.memory import Memories, Memory, Regions, regions_of
from pymigrate.runtime.write_tracking import WriteTracking

THREADS = 2
LOOKS = 3  # at most, while it runs; another one only where there was much
_TOGETHER = 32 << 20  # bytes that threads work on before the store may settle


@dataclass(frozen=True)
class Seen:
    """The digests of segments of one process, and what these are called; see Layout.names."""

    names: Numbers
    digests: Digests
    known: Flags  # where there is a digest

    @classmethod
    def nothing(cls, layout: Layout) -> Seen:
        """Have seen nothing of a layout yet."""
        count = layout.segments
        return cls(layout.names(), np.zeros((count, 2), np.uint64), np.zeros(count, np.bool_))

    def learn(self, other: Seen | None, which: Flags) -> None:
        """Take over what was seen of segments, of those of ours that are called the same."""
        if other is None or not other.names.size:
            return
        order = np.argsort(other.names, kind="stable")  # all but CRIU's own ascend already
        wanted = np.flatnonzero(which & (self.names >= 0))
        places = np.searchsorted(other.names, self.names[wanted], sorter=order)
        rows = order[np.minimum(places, len(order) - 1)]
        is_same = (other.names[rows] == self.names[wanted]) & other.known[rows]
        self.digests[wanted[is_same]] = other.digests[rows[is_same]]
        self.known[wanted[is_same]] = True


Looked = Mapping[int, Seen]
"""What was seen of processes, by their inner PIDs."""


class Store(Protocol):
    """Keeps segments of memory by their digests; but for `settle`, it is used by several threads.

    Views are good until a call returns.
    """

    def batches(self, layout: Layout) -> Iterator[Batch]:
        """Take together what is to be seen together, each of at most BATCH pages."""

    def see(self, batch: Batch, content: memoryview, digests: Digests) -> None:
        """Keep what is new in a batch, of a container that runs; its last segments may be gone."""

    def settle(self) -> bool:
        """Do what no other thread may be at work for; say whether much was new since the last."""

    def still(self, stage: Path) -> None:
        """Be told that it stands still; in the stage files can be made."""

    def keep(self, batch: Batch, content: memoryview, digests: Digests) -> None:
        """Keep what is new in a batch at once: the container stands still."""


@dataclass(frozen=True)
class Taken:
    """A file of pages as it was under the freeze, and the name and entries of its pagemap."""

    map_name: str
    entries: Sequence[images.Entry]
    layout: Layout
    digests: Digests  # of each segment of the layout


class MemoryLooks:
    """The memory of one container: `look` while it runs, `look_still` and `take` when it is frozen.

    Then it is in the store as ``taken`` says. Close it in the end.
    """

    def __init__(self, store: Store, threads: int = THREADS) -> None:
        """Take what keeps it, and how many threads are to read."""
        self.taken: dict[str, Taken] = {}
        """By the names of files of pages; those that CRIU has written whole are missing."""
        self._store = store
        self._seed = secrets.randbits(64)
        self._buffers = threading.local()
        self._pool = ThreadPoolExecutor(threads)
        self._beside = ThreadPoolExecutor(1)  # looks with the others while CRIU is waited for
        self._tracking = WriteTracking()
        self._seen: dict[int, Seen] = {}  # by the newest look, while it runs
        self._still: Future[Looked] | None = None

    # While it runs

    def look(self, pids: Sequence[int], *, tracked: bool = True) -> None:
        """Have the store keep what it has not yet; with ``tracked`` they can be asked to help."""
        images.prepare()
        if tracked:
            self._tracking.watch(pids)
        for _ in range(LOOKS):
            much = self._look_once(pids)
            self._tracking.mistrust()
            if not much:
                break

    def _look_once(self, pids: Sequence[int]) -> bool:
        """Say whether much was new: then much may have changed since."""
        much = False
        before, self._seen = self._seen, {}
        with Memories.of(pids) as memories:
            for inner, memory in memories.by_inner.items():
                areas = memory.areas()
                # First: what is written from now on may be read as it was before.
                written = regions_of(
                    each for area in areas for each in self._tracking.written(memory, area)
                )
                layout = Layout.of_areas(memory, areas)
                seen = self._seen[inner] = Seen.nothing(layout)
                seen.learn(before.pop(inner, None), ~layout.touches(written))
                rest = layout.only(~seen.known)
                later = _Later(seen)
                for some in _groups(self._store.batches(rest)):
                    self._read(rest, memory, -1, some, self._store.see, later)
                    much |= self._store.settle()
        return much

    def _read(
        self,
        layout: Layout,
        memory: Memory | None,
        file: int,
        batches: Iterable[Batch],
        keep: Callable[[Batch, memoryview, Digests], None],
        later: _Later,
    ) -> None:
        """Have the store keep batches by several threads; what is gone was not seen."""

        def read(batch: Batch) -> None:
            into = self._buffer(batch)
            content = into[: layout.read(batch, memory, file, into)]
            digests = digest_table.joined([*map(self._digest, batch.cut(content))])
            keep(batch, content, digests)
            later.put(batch, digests)

        for _ in in_order(self._pool, read, batches):
            pass

    # Under the freeze

    def look_still(self, pids: Sequence[int], stage: Path) -> None:
        """Begin to look at what stands still and stays as it is; others go on, until `take`."""
        self._store.still(stage)
        self._still = self._beside.submit(self._look_still, pids)

    def _look_still(self, pids: Sequence[int]) -> Looked:
        found: dict[int, Seen] = {}
        with Memories.of(pids) as memories:
            for inner, memory in memories.by_inner.items():
                areas = memory.quiet_areas()
                layout = Layout.of_areas(memory, areas)
                clean = [self._tracking.sort(memory, area)[0] for area in areas]
                seen = found[inner] = Seen.nothing(layout)
                seen.learn(self._seen.pop(inner, None), layout.lies_in(_joined(clean)))
                # What is gone was not seen: where all of it is wanted, it is read again.
                self._read_all(layout, memory, -1, seen)
        return found

    def take(self, pids: Sequence[int], stage: Path, hidden: Sequence[Hidden]) -> None:
        """Have the store keep all. Raises DumpFailed if some of it cannot be read."""
        areas = {each.inner: each.areas for each in hidden}
        still = self._still.result() if self._still is not None else {}
        directory = stage / archive.IMAGES
        with Memories.of(pids) as memories:
            for path in sorted(directory.iterdir()):
                inner = memory_map.process_of(path.name)
                if inner is None:
                    continue
                pages_id, found = images.pagemap(path.read_bytes(), path.name)
                memory = memories.by_inner.get(inner)
                entries = hidden_memory.revealed(found, memory, areas.get(inner, ()))
                if all(entry.present for entry in entries):
                    continue  # CRIU's file of pages is complete
                layout = Layout.of_entries(entries)
                pages = f"pages-{pages_id}.img"
                digests = self._take_all(layout, memory, directory / pages, still.get(inner))
                taken = Taken(f"{archive.IMAGES}/{path.name}", entries, layout, digests)
                self.taken[f"{archive.IMAGES}/{pages}"] = taken

    def _take_all(
        self, layout: Layout, memory: Memory | None, path: Path, still: Seen | None
    ) -> Digests:
        seen = Seen.nothing(layout)
        seen.learn(still, np.ones(layout.segments, np.bool_))
        with path.open("rb", buffering=0) as stream:
            self._read_all(layout, memory, stream.fileno(), seen)
        if not seen.known.all():
            raise DumpFailed(f"memory that belongs into {path.name} cannot be read")
        return seen.digests

    def _read_all(self, layout: Layout, memory: Memory | None, file: int, seen: Seen) -> None:
        """Have the store keep all that was not seen."""
        rest = layout.only(~seen.known)
        later = _Later(seen)
        self._read(rest, memory, file, rest.batches(), self._store.keep, later)

    def _digest(self, segment: memoryview) -> bytes:
        return xxhash.xxh3_128_digest(segment, self._seed)

    def _buffer(self, batch: Batch) -> memoryview:
        """Return room for a batch, of this thread's own: new memory would cost as much again."""
        found = getattr(self._buffers, "buffer", None)
        if found is None:
            found = self._buffers.buffer = memoryview(bytearray(BATCH * images.PAGE))
        return found[: batch.size]

    # While it runs again

    def complete(self, members: Mapping[str, Path]) -> None:
        """Change the pagemaps of what was taken to those of a dump that was not lazy."""
        for taken in self.taken.values():
            path = members[taken.map_name]
            path.write_bytes(images.completed(path.read_bytes(), path.name, taken.entries))

    def close(self) -> None:
        """Watch nobody any more; may be repeated."""
        self._beside.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._tracking.close()


def _groups(batches: Iterable[Batch]) -> Iterator[Sequence[Batch]]:
    some: list[Batch] = []
    size = 0
    for batch in batches:
        some.append(batch)
        size += batch.size
        if size >= _TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


class _Later:
    """What several threads see of the segments that were not known, in their order."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._which = np.flatnonzero(~seen.known)

    def put(self, batch: Batch, digests: Digests) -> None:
        """Take down the first segments of a batch; of the others nothing was seen."""
        which = self._which[batch.first : batch.first + len(digests)]
        self._seen.digests[which] = digests
        self._seen.known[which] = True


def _joined(regions: Sequence[Regions]) -> Regions:
    return np.concatenate(regions) if regions else np.zeros((0, 2), np.uint64)
