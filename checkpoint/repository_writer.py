"""Adding a snapshot: only chunks that no pack has are written, and nothing shows before its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint import chunking, digest_table, packs
from pymigrate.checkpoint.chunking import Cut
from pymigrate.checkpoint.digest_table import DigestTable
from pymigrate.checkpoint.packs import Builder, Ids, Kind, Packer
from pymigrate.checkpoint.repository import THREADS, Contents, Repository
from pymigrate.checkpoint.repository_storage import Draft, Lock, Storage
from pymigrate.checkpoint.sealing import ID_BYTES, NAME_BYTES, Keys
from pymigrate.checkpoint.snapshot import Member, Snapshot
from pymigrate.runtime.scratch import Zeros

_TOGETHER = 1024  # chunks that are looked up at once
_AHEAD = 8  # blobs that may wait for the disk
_FANOUT = 256  # names in a list


class PackWriter:
    """Writes chunks of one kind into packs; blobs are compressed and sealed by other threads."""

    def __init__(
        self,
        disk: Storage,
        keys: Keys,
        lock: Lock,
        kind: Kind,
        pool: ThreadPoolExecutor,
        *,
        after: PackWriter | None = None,
    ) -> None:
        """Begin; nothing is written before the first chunk.

        What is in these packs counts on what is in those of ``after``: no pack is published before
        these are.
        """
        self.bytes = 0
        self.chunks = 0
        self.names: list[str] = []
        self._disk = disk
        self._keys = keys
        self._lock = lock
        self._kind = kind
        self._pool = pool
        self._after = after
        self._packers = threading.local()
        self._stack = ExitStack()
        self._name = ""
        self._draft: Draft | None = None
        self._builder: Builder | None = None
        self._blob = bytearray()
        self._ahead: deque[Future[bytes]] = deque()

    def add(self, identity: bytes, content: bytes | memoryview) -> None:
        """Add a chunk that is not there yet."""
        builder = self._builder or self._begin()
        self._blob += content
        self.chunks += 1
        if builder.place(identity, len(content)):
            self._close_blob(builder)
            if builder.size >= packs.PACK:
                self.finish()

    def finish(self) -> None:
        """Publish the pack that is being written, if any."""
        builder, draft = self._builder, self._draft
        if builder is None or draft is None:
            return
        if self._after is not None:
            self._after.finish()
        if self._blob:
            self._close_blob(builder)
        while self._ahead:
            self._write_next(builder, draft)
        draft.write(builder.finish(self._packer()))
        self._lock.confirm()
        draft.publish(f"packs/{self._name}")
        self.bytes += builder.size
        self.names.append(self._name)
        self._builder = self._draft = None
        self._stack.close()

    def close(self) -> None:
        """Give up what was not published; may be repeated."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._stack.close()

    def _begin(self) -> Builder:
        name = os.urandom(NAME_BYTES)
        self._name = name.hex()
        self._builder = Builder(self._keys, name, self._kind)
        self._draft = self._stack.enter_context(self._disk.draft(self._lock.owner))
        self._draft.write(packs.header(self._kind))
        return self._builder

    def _close_blob(self, builder: Builder) -> None:
        number = builder.close_blob()
        content = bytes(self._blob)
        self._blob.clear()
        self._ahead.append(self._pool.submit(lambda: builder.seal(number, content, self._packer())))
        while len(self._ahead) > _AHEAD and self._draft is not None:
            self._write_next(builder, self._draft)

    def _write_next(self, builder: Builder, draft: Draft) -> None:
        sealed = self._ahead.popleft().result()
        draft.write(sealed)
        builder.written(len(sealed))

    def _packer(self) -> Packer:
        found: Packer | None = getattr(self._packers, "packer", None)
        if found is None:
            found = self._packers.packer = packs.compressor()
        return found


class Writer:
    """Adds the members of one snapshot, then the snapshot."""

    def __init__(
        self,
        repository: Repository,
        lock: Lock,
        contents: Contents,
        pool: ThreadPoolExecutor,
        zeros: Zeros = np.zeros,
    ) -> None:
        """Take what is there already, and what makes tables; use `writing`."""
        self.zeros = zeros
        self._repository = repository
        self._lock = lock
        self._index = contents.index
        self._fresh = DigestTable(zeros=zeros)
        self._name = repository.keys.naming()
        self._segment = repository.keys.naming("segment names")
        # A known segment vouches for its pages, unless a pack is broken that might have them.
        self._trusted = not contents.damaged
        self._pool = pool
        self._gear = chunking.gear(repository.keys.derive("cuts by content"))
        disk, keys = repository.disk, repository.keys
        self._data = PackWriter(disk, keys, lock, Kind.DATA, pool)
        self._segments = PackWriter(disk, keys, lock, Kind.SEGMENTS, pool, after=self._data)
        self._tree = PackWriter(disk, keys, lock, Kind.TREE, pool)

    @property
    def new_bytes(self) -> int:
        """Bytes of the packs that were published."""
        return self._data.bytes + self._segments.bytes + self._tree.bytes

    @property
    def new_chunks(self) -> int:
        """Chunks of content that were not there before."""
        return self._data.chunks

    def add(self, name: str, path: Path, *, digest: bool = False) -> Member:
        """Add a file that no longer changes; raises NoSpace, HostError, OSError."""
        cut = Cut.of_member(name)
        found = hashlib.sha256() if digest else None
        size = 0
        with path.open("rb", buffering=0) as stream:

            def read(count: int) -> bytes:
                nonlocal size
                piece = stream.read(count)
                size += len(piece)
                if found is not None:
                    found.update(piece)
                return piece

            pages = cut is Cut.PAGES
            names = self._add_pages(read) if pages else self._add_content(read)
        if pages:
            return self.of_segments(name, size, names)
        levels, root = self._tree_of(names)
        return Member(name, size, cut, levels, root, found.hexdigest() if found else "")

    def of_segments(self, name: str, size: int, segments: bytes) -> Member:
        """Make a member of segments that were added, by their names in order, joined."""
        levels, root = self._tree_of(segments)
        return Member(name, size, Cut.PAGES, levels + bool(segments), root)

    def _tree_of(self, names: bytes) -> tuple[int, bytes]:
        """Put names, joined, into lists, and their names into lists, until one is left."""
        levels = 0
        while len(names) > ID_BYTES:
            size = _FANOUT * ID_BYTES
            lists = (names[start : start + size] for start in range(0, len(names), size))
            names = b"".join(
                one for batch in _batches(lists) for one in self._store(batch, self._tree)
            )
            levels += 1
        return levels, names

    def _add_content(self, read: Callable[[int], bytes]) -> bytes:
        """Cut by content; returns the names of the chunks, joined."""
        chunks = chunking.by_content(read, self._gear)
        return b"".join(one for batch in _batches(chunks) for one in self._store(batch, self._data))

    def _add_pages(self, read: Callable[[int], bytes]) -> bytes:
        """Cut a file at pages; returns the names of its segments, joined."""
        return b"".join(
            one for segments in chunking.by_segment(read) for one in self.add_segments(segments)
        )

    def known(self, segments: Sequence[bytes | memoryview]) -> list[bytes | None]:
        """Return the name of each segment whose pages are stored; None for others.

        Several threads may ask at once, as long as nothing is added.
        """
        ids = [*map(self._segment, segments)]
        return [one if known else None for one, known in zip(ids, self._knows(ids), strict=True)]

    def _knows(self, ids: Sequence[bytes]) -> list[bool]:
        names = packs.join(ids)
        known = self._is_fresh(names)
        if self._trusted:
            known |= self._index.find(names) >= 0
        return [*map(bool, known)]

    def _is_fresh(self, names: Ids) -> NDArray[np.bool_]:
        return self._fresh.find(names.view(np.uint64)) >= 0

    def add_segments(self, segments: Sequence[bytes | memoryview]) -> list[bytes]:
        """Add up to 64 KiB of pages each, looking only into those not known; returns their names.

        Give many at a time.
        """
        half = (len(segments) + 1) // 2
        # Hashing 64 KiB lets go of Python's lock: two threads take half of the time.
        later = self._pool.submit(lambda rest: [*map(self._segment, rest)], segments[half:])
        ids = [*map(self._segment, segments[:half]), *later.result()]
        fresh = {
            identity: memoryview(segment)
            for identity, segment, known in zip(ids, segments, self._knows(ids), strict=True)
            if not known
        }
        self._add_fresh(fresh)
        return ids

    def _add_fresh(self, fresh: Mapping[bytes, memoryview]) -> None:
        pages = {identity: chunking.pages(segment) for identity, segment in fresh.items()}
        ids = self._store([page for own in pages.values() for page in own], self._data)
        start = 0
        self._fresh.add(digest_table.joined([*pages]))
        for identity, own in pages.items():
            self._segments.add(identity, b"".join(ids[start : start + len(own)]))
            start += len(own)

    def _store(self, batch: Sequence[bytes | memoryview], into: PackWriter) -> list[bytes]:
        """Write those of the chunks that are new; returns the names of all."""
        ids = [self._name(content) for content in batch]
        names = packs.join(ids)
        known = (self._index.find(names) >= 0) | self._is_fresh(names)
        fresh: dict[bytes, bytes | memoryview] = {}
        for identity, content, is_known in zip(ids, batch, known.tolist(), strict=True):
            if not is_known and identity not in fresh:
                fresh[identity] = content
                into.add(identity, content)
        self._fresh.add(digest_table.joined([*fresh]))
        return ids

    def flush(self) -> None:
        """Publish all packs; nobody refers to them yet."""
        for writer in (self._data, self._segments, self._tree):
            writer.finish()

    def publish(self, snapshot: Snapshot) -> Snapshot:
        """Make the snapshot appear, after all that it needs; returns it with its id.

        Raises:
            WrongState: our lock was lost meanwhile; nothing appeared.

        """
        self.flush()
        named = replace(snapshot, id=os.urandom(NAME_BYTES).hex())
        self._lock.confirm()
        self._repository.disk.publish(
            f"snapshots/{named.id}", self._repository.sealed_snapshot(named), self._lock.owner
        )
        try:
            self._lock.confirm()  # a prune between the two would not have known of it
        except BaseException:
            self._repository.remove([named.id])
            raise
        return named

    def close(self) -> None:
        """Give up what was not published; may be repeated."""
        with ExitStack() as stack:
            for writer in (self._data, self._segments, self._tree):
                stack.callback(writer.close)


@contextlib.contextmanager
def writing(repository: Repository) -> Iterator[Writer]:
    """Add to a repository: with a shared lock, beside readers and other writers.

    Raises:
        WrongState: prune holds the lock for too long.

    """
    with (
        repository.disk.held() as lock,
        repository.tables() as zeros,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        repository.disk.sweep()
        contents = repository.contents()
        with contextlib.closing(Writer(repository, lock, contents, pool, zeros)) as writer:
            yield writer


def _batches(chunks: Iterator[memoryview] | Iterator[bytes]) -> Iterator[list[bytes | memoryview]]:
    batch: list[bytes | memoryview] = []
    for chunk in chunks:
        batch.append(chunk)
        if len(batch) == _TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch
