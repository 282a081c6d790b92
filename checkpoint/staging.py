"""Directories for work in progress below a host's root; those of killed processes are swept."""

from __future__ import annotations

import os
import shutil
import tempfile
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
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=host.root))
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        lock.try_lock(held)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
        os.close(held)


def _sweep(host: Host) -> None:
    for directory in host.root.glob(f"{_PREFIX}*"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if lock.try_lock(descriptor):
                shutil.rmtree(directory)
        finally:
            os.close(descriptor)
