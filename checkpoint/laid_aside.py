"""Segments of memory that are laid aside, by their digests, until there is time to store them."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pymigrate.checkpoint.digest_table import Digest, Digests, DigestTable, joined
from pymigrate.checkpoint.page_layout import Batch, Flags
from pymigrate.runtime.scratch import Zeros

_PLACE = np.dtype([("offset", "=i8"), ("length", "=i8")])


class Aside:
    """Segments in memory; once the container is frozen, also in a file."""

    def __init__(self, zeros: Zeros = np.zeros) -> None:
        """Begin empty; ``zeros`` makes tables."""
        self.size = 0
        """Bytes in memory."""
        self._held: dict[Digest, bytes] = {}
        self._places = DigestTable(_PLACE, zeros)
        self._lock = threading.Lock()
        self._room: int | None = None
        self._directory: Path | None = None
        self._file: BinaryIO | None = None
        self._end = 0

    def __contains__(self, digest: Digest) -> bool:
        """Say whether it was laid aside."""
        with self._lock:
            return self._has(digest)

    def _has(self, digest: Digest) -> bool:
        if digest in self._held:
            return True
        return self._file is not None and bool(self._places.find(joined([digest]))[0] >= 0)

    def limit(self, room: int, directory: Path) -> None:
        """Take so many more bytes into memory, and then a file in the directory."""
        self._room, self._directory = self.size + room, directory

    def put(self, digest: Digest, content: memoryview) -> None:
        """Lay a segment aside; for several threads."""
        with self._lock:
            if self._has(digest):
                return
            if self._room is None or self.size + len(content) <= self._room:
                self._held[digest] = bytes(content)
                self.size += len(content)
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
            place = np.array([(self._end, len(content))], _PLACE)
            while content:
                written = os.pwrite(self._file.fileno(), content, self._end)
                self._end += written
                content = content[written:]
            self._places.add(joined([digest]), place)

    def put_all(self, batch: Batch, content: memoryview, digests: Digests, which: Flags) -> None:
        """Lay some of the segments of a batch aside; for several threads."""
        if which.any():
            for digest, segment in itertools.compress(
                zip(digests, batch.cut(content), strict=True), which.tolist()
            ):
                self.put(digest.tobytes(), segment)

    def get(self, digest: Digest) -> bytes:
        """Return a segment."""
        held = self._held.get(digest)
        if held is not None:
            return held
        rows = self._places.find(joined([digest]))
        if self._file is None or rows[0] < 0:
            raise KeyError(digest)
        offset, length = self._places.values(rows)[0].tolist()
        return os.pread(self._file.fileno(), length, offset)

    def take(self, most: int) -> dict[Digest, bytes]:
        """Return up to so many segments that are in memory, and forget them; none: there are none.

        Not for after `limit`.
        """
        found = dict(itertools.islice(self._held.items(), most))
        for digest, content in found.items():
            del self._held[digest]
            self.size -= len(content)
        return found

    def close(self) -> None:
        """Close the file, which is gone then; may be repeated."""
        if self._file is not None:
            self._file.close()
