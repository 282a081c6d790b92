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

import functools
import itertools
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from pymigrate.checkpoint import archive, hidden_memory, images, memory_map
from pymigrate.checkpoint.hidden_memory import Hidden
from pymigrate.checkpoint.laid_aside import Digest
from pymigrate.checkpoint.page_layout import BATCH, Batch, Layout
from pymigrate.runtime.errors import DumpFailed
from pymigrate.runtime.memory import Memories, Memory, Range, Regions
from pymigrate.runtime.write_tracking import WriteTracking

THREADS = 2
LOOKS = 3  # at most, while it runs; another one only where there was much
_TOGETHER = 64 << 20  # bytes that threads work on before the store may settle

Still = Mapping[int, Mapping[int, Digest]]
"""By a process' inner PID, what was in a segment of it; see Layout.names."""


class Store(Protocol):
    """Keeps segments of memory by their digests; but for `settle`, it is used by several threads.

    Views are good until a call returns.
    """

    def batches(self, layout: Layout) -> Iterator[Batch]:
        """Take together what is to be seen together, each of at most BATCH pages."""

    def see(self, batch: Batch, content: memoryview, digests: Sequence[Digest]) -> None:
        """Keep what is new in a batch, of a container that runs; its last segments may be gone."""

    def settle(self) -> bool:
        """Do what no other thread may be at work for; say whether much was new since the last."""

    def still(self, stage: Path) -> None:
        """Be told that it stands still; in the stage files can be made."""

    def keep(self, digest: Digest, segment: memoryview) -> None:
        """Keep a segment, if it is new, at once: the container stands still."""


@dataclass(frozen=True)
class Taken:
    """A file of pages as it was under the freeze, and the name and entries of its pagemap."""

    map_name: str
    entries: Sequence[images.Entry]
    layout: Layout
    digests: Sequence[Digest]  # of each segment of the layout


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
        self._seen: dict[int, Mapping[int, Digest]] = {}  # by the newest look, while it runs
        self._still: Future[Still] | None = None

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
                written = [each for area in areas for each in self._tracking.written(memory, area)]
                layout = Layout.of_areas(memory, areas)
                known = _unchanged(layout, before.get(inner, {}), written)
                rest = layout.only([digest is None for digest in known])
                seen: list[Digest | None] = []
                for some in _groups(self._store.batches(rest)):
                    found = self._pool.map(functools.partial(self._see, rest, memory), some)
                    seen += itertools.chain.from_iterable(found)
                    much |= self._store.settle()
                later = iter(seen)
                self._seen[inner] = _by_name(layout, [each or next(later) for each in known])
        return much

    def _see(self, layout: Layout, memory: Memory, batch: Batch) -> list[Digest | None]:
        into = self._buffer(batch)
        content = into[: layout.read(batch, memory, -1, into)]  # what is gone was not seen
        digests = [*map(self._digest, batch.segments(content))]
        self._store.see(batch, content, digests)
        return _padded(digests, batch)

    # Under the freeze

    def look_still(self, pids: Sequence[int], stage: Path) -> None:
        """Begin to look at what stands still and stays as it is; others go on, until `take`."""
        self._store.still(stage)
        self._still = self._beside.submit(self._look_still, pids)

    def _look_still(self, pids: Sequence[int]) -> Still:
        found: dict[int, Mapping[int, Digest]] = {}
        with Memories.of(pids) as memories:
            for inner, memory in memories.by_inner.items():
                areas = memory.quiet_areas()
                layout = Layout.of_areas(memory, areas)
                clean = [self._tracking.sort(memory, area)[0] for area in areas]
                known = self._unwritten(inner, layout, clean)
                rest = layout.only([digest is None for digest in known])
                later = self._read_all(rest, memory, -1)
                digests = [digest or next(later) for digest in known]
                # What is gone was not seen: where all of it is wanted, it is read again.
                found[inner] = _by_name(layout, digests)
        return found

    def _unwritten(
        self, inner: int, layout: Layout, clean: Sequence[Regions]
    ) -> Sequence[Digest | None]:
        """Return what was seen of segments of which no page was written since."""
        seen = self._seen.get(inner, {})
        unwritten = layout.lies_in(np.concatenate(clean) if clean else np.zeros((0, 2), np.uint64))
        return [
            seen.get(name) if is_unwritten else None
            for name, is_unwritten in zip(layout.names(), unwritten, strict=True)
        ]

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
                digests = self._take_all(layout, memory, directory / pages, still.get(inner, {}))
                taken = Taken(f"{archive.IMAGES}/{path.name}", entries, layout, digests)
                self.taken[f"{archive.IMAGES}/{pages}"] = taken

    def _take_all(
        self, layout: Layout, memory: Memory | None, path: Path, seen: Mapping[int, Digest]
    ) -> list[Digest]:
        known = [seen.get(key) for key in layout.names()]
        rest = layout.only([digest is None for digest in known])
        with path.open("rb", buffering=0) as stream:
            later = self._read_all(rest, memory, stream.fileno())
            digests = [digest or next(later) for digest in known]
        found = [digest for digest in digests if digest is not None]
        if len(found) < len(digests):
            raise DumpFailed(f"memory that belongs into {path.name} cannot be read")
        return found

    def _read_all(
        self, layout: Layout, memory: Memory | None, file: int
    ) -> Iterator[Digest | None]:
        """Have the store keep it; yields the digest of each segment, None if it is gone."""

        def read(batch: Batch) -> list[Digest | None]:
            into = self._buffer(batch)
            content = into[: layout.read(batch, memory, file, into)]
            return _padded([*map(self._kept, batch.segments(content))], batch)

        return itertools.chain.from_iterable(self._pool.map(read, layout.batches()))

    def _kept(self, segment: memoryview) -> Digest:
        digest = self._digest(segment)
        self._store.keep(digest, segment)
        return digest

    def _digest(self, segment: memoryview) -> Digest:
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


def _unchanged(
    layout: Layout, seen: Mapping[int, Digest], written: Sequence[Range]
) -> Sequence[Digest | None]:
    """Return what was seen of segments of which no page was written, of a process that runs."""
    if not seen:
        return [None] * layout.segments
    regions = np.array([(each.start, each.end) for each in written], np.uint64).reshape(-1, 2)
    return [
        None if is_written else seen.get(name)
        for name, is_written in zip(layout.names(), layout.touches(regions), strict=True)
    ]


def _padded(digests: Sequence[Digest], batch: Batch) -> list[Digest | None]:
    """Add nothing for each segment that is gone."""
    return [*digests, *[None] * (len(batch.edges) - 1 - len(digests))]


def _by_name(layout: Layout, digests: Sequence[Digest | None]) -> dict[int, Digest]:
    """Sort what was seen by what the segments are called; what is gone was not seen."""
    return {
        name: digest
        for name, digest in zip(layout.names(), digests, strict=True)
        if digest is not None
    }
