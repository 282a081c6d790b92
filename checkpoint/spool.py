"""Frames in a file that has no name: compressed while the container runs, copied into an archive.

Whatever ends the process that has it, the file is gone with it.
"""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from pymigrate.checkpoint import new_file
from pymigrate.checkpoint.seekable import Stretch
from pymigrate.runtime.errors import HostError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame lies."""

    offset: int
    length: int


class Spool:
    """Takes frames from several threads. Close it in the end."""

    def __init__(self, directory: Path) -> None:
        """Make the file on the disk of a directory; raises OSError."""
        self._directory = directory
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self._end = 0

    def append(self, frame: bytes) -> Place:
        """Write a frame; raises NoSpace."""
        with self._lock:
            place = Place(self._end, len(frame))
            self._end += len(frame)
        rest, offset = memoryview(frame), place.offset
        with new_file.writing(self._directory):
            while rest:
                written = os.pwrite(self._file.fileno(), rest, offset)
                rest, offset = rest[written:], offset + written
        return place

    def read(self, place: Place) -> bytes:
        """Return a frame."""
        frame = os.pread(self._file.fileno(), place.length, place.offset)
        if len(frame) != place.length:
            raise HostError(f"a file on the disk of {self._directory} became shorter")
        return frame

    def stretch(self, place: Place) -> Stretch:
        """Say where a frame can be copied from."""
        return Stretch(self._file.fileno(), place.offset, place.length)

    def close(self) -> None:
        """Close the file, which is gone then; may be repeated."""
        self._file.close()
