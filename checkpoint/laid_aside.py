"""Segments of memory that are laid aside, by their digests, until there is time to store them."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

Digest = bytes


class Aside:
    """Segments in memory; once the container is frozen, also in a file."""

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
