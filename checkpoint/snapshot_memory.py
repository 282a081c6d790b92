"""The memory of a running container on its way into a repository; how it is read: memory_looks.py.

While the container runs, what is not in the repository is laid aside, and stored when there is much
of it. No page is written to a file under the freeze, unless more than SPARE changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pymigrate.checkpoint.laid_aside import Aside, Digest
from pymigrate.checkpoint.memory_looks import Taken
from pymigrate.checkpoint.page_layout import Batch, Layout
from pymigrate.checkpoint.repository_writer import Writer
from pymigrate.checkpoint.snapshot import Member

SPARE = 256 << 20
"""Bytes that are laid aside in memory while the container runs, and as much under the freeze."""

_SEGMENTS = 1024  # that are stored at once


class SnapshotMemory:
    """Keeps memory in a repository, as the `Store` of a look. `add` it, and close it in the end."""

    def __init__(self, writer: Writer) -> None:
        """Take what adds to the repository."""
        self._writer = writer
        self._names: dict[Digest, bytes] = {}  # of segments that are in the repository
        self._aside = Aside()

    def batches(self, layout: Layout) -> Iterator[Batch]:
        """Take together what stays in the cache until it was named."""
        return layout.batches()

    def see(self, batch: Batch, content: memoryview, digests: Sequence[Digest]) -> None:
        """Ask the repository for what was not seen before, and lay aside what is not in it."""
        segments = zip(digests, batch.segments(content), strict=True)
        unseen = {digest: segment for digest, segment in segments if not self._has(digest)}
        names = self._writer.known([*unseen.values()])
        for (digest, segment), name in zip(unseen.items(), names, strict=True):
            if name is None:
                self._aside.put(digest, segment)
            else:
                self._names[digest] = name

    def _has(self, digest: Digest) -> bool:
        return digest in self._names or digest in self._aside

    def settle(self) -> bool:
        """Store what was laid aside if there is much, and say so."""
        if self._aside.size < SPARE:
            return False
        everything = self._aside.clear()
        for some in _slices([*everything]):
            self._store({digest: everything[digest] for digest in some})
        return True

    def _store(self, segments: Mapping[Digest, bytes]) -> None:
        names = self._writer.add_segments([*segments.values()])
        self._names.update(zip(segments, names, strict=True))

    def still(self, stage: Path) -> None:
        """Lay aside in memory what fits, and then in a file."""
        self._aside.limit(SPARE, stage)

    def keep(self, digest: Digest, segment: memoryview) -> None:
        """Lay aside what was not seen before."""
        if not self._has(digest):
            self._aside.put(digest, segment)

    def add(self, name: str, taken: Taken) -> Member:
        """Add a file of pages that was taken."""
        for some in _slices(taken.digests):
            missing = {one: self._aside.get(one) for one in some if one not in self._names}
            if missing:
                self._store(missing)
        names = [self._names[digest] for digest in taken.digests]
        return self._writer.of_segments(name, taken.layout.size, names)

    def close(self) -> None:
        """Forget what was laid aside; may be repeated."""
        self._aside.close()


def _slices(digests: Sequence[Digest]) -> Iterator[Sequence[Digest]]:
    for start in range(0, len(digests), _SEGMENTS):
        yield digests[start : start + _SEGMENTS]
