"""The memory of a running container on its way into a repository, most of it before the freeze.

::

    while it runs     read all, 64 KiB at a time: is it in the repository? else it is laid aside
    ═══ frozen ═══    read once more, beside CRIU, what was written since, or all where the kernel
                      does not tell: only what nobody has seen is laid aside too
                      CRIU, and for what it was not shown we, say which pages there are: read what
                      was not read yet, or is code
    while it runs     store what was laid aside, if it was still there under the freeze

What was seen is known by a hash of 128 bits, keyed by a number that nobody else knows: so the
second look costs little more than reading. No page is written to a file under the freeze, unless
more than SPARE changed between the two looks.
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from pymigrate.checkpoint import archive, hidden_memory, images, memory_map
from pymigrate.checkpoint.hidden_memory import Hidden
from pymigrate.checkpoint.page_layout import BATCH, Batch, Layout
from pymigrate.checkpoint.repository import THREADS
from pymigrate.checkpoint.repository_writer import Writer
from pymigrate.checkpoint.snapshot import Member
from pymigrate.runtime.errors import DumpFailed
from pymigrate.runtime.memory import Memories, Memory, Regions
from pymigrate.runtime.write_tracking import WriteTracking

SPARE = 256 << 20
"""Bytes that are laid aside in memory while the container runs, and as much under the freeze."""

LOOKS = 3  # at most, while it runs; another one only where there was more than that
_TOGETHER = 32  # batches that threads work on before anything is stored
_SEGMENTS = 1024  # that are stored at once

Digest = bytes
Still = Mapping[int, Mapping[int, Digest]]
"""By a process' inner PID, what was in a segment of it; see Layout.names."""


class Aside:
    """Segments by their digests, in memory; once the container is frozen, also in a file."""

    def __init__(self) -> None:
        """Begin empty."""
        self.size = 0
        self._held: dict[Digest, bytes | tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._room: int | None = None
        self._directory: Path | None = None
        self._file: BinaryIO | None = None
        self._end = 0

    def __contains__(self, digest: Digest) -> bool:
        """Say whether it was laid aside."""
        return digest in self._held

    def limit(self, room: int, directory: Path) -> None:
        """Take so many more bytes into memory, and then a file in the directory."""
        self._room, self._directory = self.size + room, directory

    def put(self, digest: Digest, content: memoryview) -> None:
        """Lay a segment aside; for several threads."""
        with self._lock:
            if digest in self._held:
                return
            if self._room is None or self.size + len(content) <= self._room:
                self._held[digest] = bytes(content)
                self.size += len(content)
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
            self._held[digest] = (self._end, len(content))
            while content:
                written = os.pwrite(self._file.fileno(), content, self._end)
                self._end += written
                content = content[written:]

    def get(self, digest: Digest) -> bytes:
        """Return a segment."""
        found = self._held[digest]
        if isinstance(found, bytes):
            return found
        if self._file is None:
            raise AssertionError("a segment is in a file that is not there")
        offset, length = found
        return os.pread(self._file.fileno(), length, offset)

    def clear(self) -> dict[Digest, bytes]:
        """Return all and forget it."""
        everything = {digest: self.get(digest) for digest in self._held}
        self._held.clear()
        self.size = 0
        return everything

    def close(self) -> None:
        """Close the file, which is gone then; may be repeated."""
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class _Taken:
    """A file of pages as it was under the freeze, and the name and entries of its pagemap."""

    map_name: str
    entries: Sequence[images.Entry]
    size: int
    digests: list[Digest]


class SnapshotMemory:
    """The memory of one container: `look` while it runs, `look_still` and `take` when it is frozen.

    Then `add` it, and close it in the end.
    """

    def __init__(self, writer: Writer) -> None:
        """Take what adds to the repository."""
        self._writer = writer
        self._seed = secrets.randbits(64)
        self._names: dict[Digest, bytes] = {}  # of segments that are in the repository
        self._aside = Aside()
        self._taken: dict[str, _Taken] = {}
        self._buffers = threading.local()
        self._pool = ThreadPoolExecutor(THREADS)
        self._beside = ThreadPoolExecutor(1)  # looks with the others while CRIU is waited for
        self._tracking = WriteTracking()
        self._seen: dict[int, Mapping[int, Digest]] = {}  # by the newest look, while it runs
        self._still: Future[Still] | None = None

    # While it runs

    def look(self, pids: Sequence[int]) -> None:
        """See what is in the repository already, and lay aside what is not."""
        images.prepare()
        self._tracking.watch(pids)
        for _ in range(LOOKS):
            if not self._look_once(pids):
                break
        self._tracking.mistrust()

    def _look_once(self, pids: Sequence[int]) -> bool:
        """Say whether more was found than could be laid aside: then much may have changed since."""
        stored = False
        self._seen.clear()
        with Memories.of(pids) as memories:
            for inner, memory in memories.by_inner.items():
                # First: what is written from now on may be read as it was before.
                for area in memory.areas():
                    self._tracking.begin(memory, area)
                layout = Layout.of_running(memory)
                seen: list[Digest | None] = []
                batches = layout.batches()
                while some := [*itertools.islice(batches, _TOGETHER)]:
                    found = self._pool.map(functools.partial(self._see, layout, memory), some)
                    seen += itertools.chain.from_iterable(found)
                    if self._aside.size >= SPARE:
                        self._store_aside()
                        stored = True
                self._seen[inner] = _by_name(layout, seen)
        return stored

    def _see(self, layout: Layout, memory: Memory, batch: Batch) -> list[Digest | None]:
        into = self._buffer(batch)
        content = into[: layout.read(batch, memory, -1, into)]  # what is gone was not seen
        digests = [*map(self._digest, batch.segments(content))]
        unseen = {
            digest: segment
            for digest, segment in zip(digests, batch.segments(content), strict=True)
            if digest not in self._names and digest not in self._aside
        }
        names = self._writer.known([*unseen.values()])
        for (digest, segment), name in zip(unseen.items(), names, strict=True):
            if name is None:
                self._aside.put(digest, segment)
            else:
                self._names[digest] = name
        return _padded(digests, batch)

    def _store_aside(self) -> None:
        everything = self._aside.clear()
        for some in _slices([*everything]):
            self._store({digest: everything[digest] for digest in some})

    def _store(self, segments: Mapping[Digest, bytes]) -> None:
        names = self._writer.add_segments([*segments.values()])
        self._names.update(zip(segments, names, strict=True))

    # Under the freeze

    def look_still(self, pids: Sequence[int], stage: Path) -> None:
        """Begin to look at what stands still and stays as it is; others go on, until `take`."""
        self._aside.limit(SPARE, stage)
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
        """Lay aside what was not seen before. Raises DumpFailed if some of it cannot be read."""
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
                taken = _Taken(f"{archive.IMAGES}/{path.name}", entries, layout.size, digests)
                self._taken[f"{archive.IMAGES}/{pages}"] = taken

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
        """Lay aside what nobody has seen; yields the digest of each segment, None if it is gone."""

        def read(batch: Batch) -> list[Digest | None]:
            into = self._buffer(batch)
            content = into[: layout.read(batch, memory, file, into)]
            return _padded([*map(self._kept, batch.segments(content))], batch)

        return itertools.chain.from_iterable(self._pool.map(read, layout.batches()))

    def _kept(self, segment: memoryview) -> Digest:
        digest = self._digest(segment)
        if digest not in self._names and digest not in self._aside:
            self._aside.put(digest, segment)
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
        for taken in self._taken.values():
            path = members[taken.map_name]
            path.write_bytes(images.completed(path.read_bytes(), path.name, taken.entries))

    def add(self, name: str) -> Member | None:
        """Add a file of pages that was taken; None if there is none of this name."""
        taken = self._taken.get(name)
        if taken is None:
            return None
        for some in _slices(taken.digests):
            missing = {one: self._aside.get(one) for one in some if one not in self._names}
            if missing:
                self._store(missing)
        names = [self._names[digest] for digest in taken.digests]
        return self._writer.of_segments(name, taken.size, names)

    def close(self) -> None:
        """Forget what was laid aside; may be repeated."""
        self._beside.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._aside.close()
        self._tracking.close()


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


def _slices(digests: Sequence[Digest]) -> Iterator[Sequence[Digest]]:
    for start in range(0, len(digests), _SEGMENTS):
        yield digests[start : start + _SEGMENTS]
