"""Large tables that need no memory of their own: arrays in a file without a name.

Their pages are page cache: where memory is short the kernel writes them back, and reads those again
that are asked for. Whatever ends the process that has the file, it is gone with it.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymigrate.runtime.errors import NoSpace

Zeros = Callable[[int, np.dtype[Any]], NDArray[Any]]
"""Makes an array of zeros: in memory, as np.zeros does, or as `Scratch` does."""

LEAST = 256 << 10
"""Bytes below which an array is in memory as ever: a file and a mapping are not worth it."""

_FIRST = 1 << 10  # values there is room for at first


class Scratch:
    """Makes arrays, for several threads; each stays good also after this was closed, in the end."""

    def __init__(self, directory: Path) -> None:
        """Have the file, once it is needed, on the disk of a directory."""
        self._directory = directory
        self._descriptor = -1
        self._end = 0
        self._lock = threading.Lock()

    def zeros(self, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """Make an array of zeros.

        Raises NoSpace: the disk is full. It is told here, for later a full disk is a SIGBUS.
        """
        size = count * kind.itemsize
        if size < LEAST:
            return np.zeros(count, kind)
        size += -size % mmap.ALLOCATIONGRANULARITY
        with self._lock:
            if self._descriptor < 0:
                self._descriptor, self._end = self._made(), 0
            with self._writing():
                os.posix_fallocate(self._descriptor, self._end, size)
            mapped = mmap.mmap(self._descriptor, size, offset=self._end)
            self._end += size
        return np.frombuffer(mapped, kind, count)

    def _made(self) -> int:
        with self._writing(), tempfile.TemporaryFile(dir=self._directory) as stream:
            return os.dup(stream.fileno())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoSpace(
                f"the disk of {self._directory} is full; tables of memory are kept there",
                hint="free some space",
            ) from error

    def close(self) -> None:
        """Close the file; the next array has another. May be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Growing:
    """An array that grows."""

    def __init__(self, kind: np.dtype[Any], zeros: Zeros = np.zeros) -> None:
        """Begin empty."""
        self._zeros = zeros
        self._count = 0
        self._all = zeros(_FIRST, kind)

    def __len__(self) -> int:
        """Return how many values it has."""
        return self._count

    @property
    def values(self) -> NDArray[Any]:
        """All of them; they are those of now."""
        return self._all[: self._count]

    def extend(self, values: NDArray[Any]) -> None:
        """Add some values."""
        count = self._count + len(values)
        if count > len(self._all):
            larger = self._zeros(max(count, 2 * len(self._all)), self._all.dtype)
            larger[: self._count] = self.values
            self._all = larger
        self._all[self._count : count] = values
        self._count = count
