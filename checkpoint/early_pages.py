"""Pages that arrived before there were processes to put them into: they lie aside, in memory.

Of each process there is a file without a name, as large as its addresses and with holes wherever
nothing has come. The keeper holds it too, for the pager after one that was killed or cut off.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Protocol

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import NoSpace, ProtocolError

Buffer = bytes | memoryview
_NAME = "aside-"  # and a PID: what the keeper calls the file
_PUNCH = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
_STEP = 1 << 20  # bytes that are copied at once


class Keeper(Protocol):
    """Somebody who holds descriptors for the case that we are killed."""

    def keep(self, name: str, fd: int) -> None:
        """Hold a duplicate under a name."""

    def kept(self) -> Mapping[str, int]:
        """Return duplicates of all that is held, which are the caller's to close."""

    def drop_kept(self) -> None:
        """Close all that is held."""


class EarlyPages:
    """What lies aside, by the processes' PIDs and addresses. Close it in the end."""

    def __init__(self, keeper: Keeper, room: int) -> None:
        """Begin empty; ``room`` bounds what may lie aside, in bytes."""
        self._keeper = keeper
        self._room = room
        self._files: dict[int, int] = {}

    def take_over(self, kept: dict[str, int]) -> None:
        """Go on with what the keeper has, and take it out of ``kept``.

        With a copy: a pager that does not know yet that it was cut off may still write.
        """
        for name in [name for name in kept if name.startswith(_NAME)]:
            old = kept.pop(name)
            try:
                self._copy(int(name.removeprefix(_NAME)), old)
            finally:
                os.close(old)

    def _copy(self, inner: int, old: int) -> None:
        fd = self._make(inner)
        at, end = 0, os.fstat(old).st_size
        while at < end:
            try:
                begin = os.lseek(old, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    break
                raise
            at = min(os.lseek(old, begin, os.SEEK_HOLE), begin + _STEP)
            self._write(fd, begin, os.pread(old, at - begin, begin))
            syscalls.fallocate(old, _PUNCH, begin, at - begin)

    def _make(self, inner: int) -> int:
        fd = self._files[inner] = os.memfd_create(f"pymigrate-{inner}", os.MFD_CLOEXEC)
        self._keeper.keep(f"{_NAME}{inner}", fd)
        return fd

    def _write(self, fd: int, address: int, content: Buffer) -> None:
        self._room -= len(content)
        if self._room < 0:
            raise NoSpace("more memory arrives than was announced")
        os.pwrite(fd, content, address)

    def holds(self, inner: int) -> bool:
        """Say whether anything of a process lies aside."""
        return inner in self._files

    def put(self, inner: int, address: int, content: Buffer) -> None:
        """Lay pages aside; what lay there before is replaced. Raises NoSpace over the bound."""
        fd = self._files[inner] if inner in self._files else self._make(inner)
        self._write(fd, address, content)

    def read(self, inner: int, address: int, into: memoryview) -> None:
        """Fill a buffer with pages. Raises ProtocolError if they are behind all that came."""
        if os.preadv(self._files[inner], [into], address) != len(into):
            raise ProtocolError(f"pages at {address:#x} were never sent")

    def drop(self, inner: int, address: int, length: int) -> None:
        """Give back the memory of pages that are in place, or it would be there twice."""
        syscalls.fallocate(self._files[inner], _PUNCH, address, length)

    def close(self) -> None:
        """Close the files; the keeper has them still. May be repeated."""
        while self._files:
            os.close(self._files.popitem()[1])
