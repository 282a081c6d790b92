"""Directories of a tree, opened by their names without ever leaving it.

No symbolic link is followed, wherever in the name it stands: the kernel sees to that (openat2(2)).
So a tree may change, or its owner mean harm, while we look at it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from types import TracebackType
from typing import Self

from pymigrate.runtime import syscalls

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BELOW = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_KEPT_OPEN = 64


class Directories:
    """Descriptors of directories below ``root``, a descriptor that stays the caller's.

    Names are bytes relative to the root, which is ``b""``. The newest descriptors are kept, so
    after a directory was moved or removed, `forget`.
    """

    def __init__(self, root: int) -> None:
        """Nothing is opened yet."""
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def get(self, name: bytes) -> int:
        """Return a descriptor that is ours, and good until the next call.

        Raises:
            OSError: it is not there (ENOENT), or the name goes through what is no directory
                (ENOTDIR, ELOOP).

        """
        if not name:
            return self._root
        known = self._open.get(name)
        if known is not None:
            self._open.move_to_end(name)
            return known
        # From the parent if it is open, as it is in a walk: else the kernel walks all of the name.
        parent, _, base = name.rpartition(b"/")
        nearest = self._open.get(parent)
        start, rest = (self._root, name) if nearest is None else (nearest, base)
        descriptor = syscalls.openat2(start, os.fsdecode(rest), DIRECTORY, resolve=_BELOW)
        self._open[name] = descriptor
        if len(self._open) > _KEPT_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def forget(self) -> None:
        """Close what is kept."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __enter__(self) -> Self:
        """Own the descriptors."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close them."""
        self.forget()


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return the name of the directory that something is in, and its own name there."""
    parent, _, base = name.rpartition(b"/")
    return parent, base


def join(directory: bytes, base: bytes) -> bytes:
    """Return the name of something in a directory."""
    return directory + b"/" + base if directory else base
