"""The memory of a running container on its way into a repository; how it is read: memory_looks.py.

While the container runs, what is not in the repository is laid aside, and stored when there is some
of it. No page is written to a file under the freeze, unless more than SPARE changed since.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint.digest_table import SIZE, Digest, Digests, DigestTable, joined
from pymigrate.checkpoint.laid_aside import Aside
from pymigrate.checkpoint.memory_looks import Taken
from pymigrate.checkpoint.page_layout import Batch, Flags, Layout
from pymigrate.checkpoint.repository_writer import Writer
from pymigrate.checkpoint.snapshot import Member
from pymigrate.runtime.scratch import Zeros

SPARE = 64 << 20
"""Bytes that are laid aside in memory under the freeze."""

ASIDE = 16 << 20
"""Bytes that are laid aside before they are stored, while the container runs."""

MUCH = 64 << 20
"""Bytes that one look has stored after which another one pays: it took long."""

_SEGMENTS = 256  # that are stored at once
_NAME = np.dtype(f"V{SIZE}")


class SnapshotMemory:
    """Keeps memory in a repository, as the `Store` of a look. `add` it, and close it in the end."""

    def __init__(self, writer: Writer, zeros: Zeros = np.zeros) -> None:
        """Take what adds to the repository, and what makes tables."""
        self._writer = writer
        self._names = DigestTable(_NAME, zeros)  # of segments that are in the repository
        self._known: list[tuple[Digests, NDArray[np.void]]] = []  # that are not there yet
        self._aside = Aside(zeros)
        self._stored = 0
        self._lock = threading.Lock()

    def batches(self, layout: Layout) -> Iterator[Batch]:
        """Take together what stays in the cache until it was named."""
        return layout.batches()

    def see(self, batch: Batch, content: memoryview, digests: Digests) -> None:
        """Ask the repository for what was not seen before, and lay aside what is not in it."""
        segments = [*batch.cut(content)]
        unseen = [
            each
            for each in np.flatnonzero(self._missing(digests)).tolist()
            if digests[each].tobytes() not in self._aside
        ]
        names = self._writer.known([segments[each] for each in unseen])
        for each, name in zip(unseen, names, strict=True):
            if name is None:
                self._aside.put(digests[each].tobytes(), segments[each])
        known = [each for each, name in zip(unseen, names, strict=True) if name is not None]
        if known:
            values = np.frombuffer(b"".join(filter(None, names)), _NAME)
            with self._lock:
                self._known.append((digests[known], values))

    def _missing(self, digests: Digests) -> Flags:
        with self._lock:
            return self._names.find(digests) < 0

    def settle(self) -> bool:
        """Store what was laid aside if there is some, and say if it was much since the last."""
        if self._known:
            digests, names = map(np.concatenate, zip(*self._known, strict=True))
            self._known.clear()
            self._names.add_new(digests, names)
        if self._aside.size >= ASIDE:
            while some := self._aside.take(_SEGMENTS):
                self._stored += sum(map(len, some.values()))
                self._store(some)
        much = self._stored >= MUCH
        if much:
            self._stored = 0
        return much

    def _store(self, segments: Mapping[Digest, bytes]) -> None:
        names = self._writer.add_segments([*segments.values()])
        self._names.add_new(joined([*segments]), np.frombuffer(b"".join(names), _NAME))

    def still(self, stage: Path) -> None:
        """Lay aside in memory what fits, and then in a file."""
        self._aside.limit(SPARE, stage)

    def keep(self, batch: Batch, content: memoryview, digests: Digests) -> None:
        """Lay aside what was not seen before."""
        self._aside.put_all(batch, content, digests, self._missing(digests))

    def add(self, name: str, taken: Taken) -> Member:
        """Add a file of pages that was taken."""
        names = bytearray()
        for start in range(0, len(taken.digests), _SEGMENTS):
            some = taken.digests[start : start + _SEGMENTS]
            missing = [each.tobytes() for each in some[self._missing(some)]]
            if missing:
                self._store({digest: self._aside.get(digest) for digest in missing})
            names += self._names.values(self._names.find(some)).tobytes()
        return self._writer.of_segments(name, taken.layout.size, bytes(names))

    def close(self) -> None:
        """Forget what was laid aside; may be repeated."""
        self._aside.close()
