"""Directories for work in progress below a host's root; those of killed processes are swept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymigrate.runtime import lock
from pymigrate.runtime.host import Host

_PREFIX = "staging-"


@contextmanager
def staging(host: Host) -> Iterator[Path]:
    """Make an empty directory (0700), locked by us, and remove it at the end of the block.

    What other processes left behind when they were killed is removed first: their lock is gone.
    """
    with lock.locked(host.cache):  # between its making and its locking nobody must sweep ours
        _sweep(host)
        directory = host.root / f"{_PREFIX}{os.urandom(8).hex()}"
        directory.mkdir(mode=0o700)
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        lock.try_lock(held)
    try:
        yield directory
    finally:
        _remove(directory)
        os.close(held)


def _sweep(host: Host) -> None:
    for directory in host.root.glob(f"{_PREFIX}*"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if lock.try_lock(descriptor):
                _remove(directory)
        finally:
            os.close(descriptor)


def _remove(directory: Path) -> None:
    import shutil  # with bz2 and lzma: a restored container answers before it is needed

    shutil.rmtree(directory)
