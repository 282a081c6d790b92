"""The files of a stopped container while a restore tries to put others in their place.

``upper.before`` is there from before the first change until the restored container may run. So
whoever finds it knows: what is in ``upper`` has never run, and the restore failed or was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymigrate.runtime import lock

_UPPER = "upper"
_BEFORE = "upper.before"
_GONE = "upper.gone"


@contextmanager
def alone(directory: Path) -> Iterator[bool]:
    """Say whether nobody else restores into this container, and keep it so for the block.

    It is a lock beside the container's own, which a restore cannot hold while it starts a
    supervisor. It never waits, so it may be asked for with the other one held.
    """
    mark = os.open(directory / "rootfs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield lock.try_lock(mark)
    finally:
        os.close(mark)


def begin(directory: Path) -> None:
    """Put a container's files aside, and make an empty directory for others."""
    put_back(directory)
    (directory / _UPPER).rename(directory / _BEFORE)
    (directory / _UPPER).mkdir(mode=0o755)


def put_back(directory: Path) -> None:
    """Take the old files again, if they are aside; may be repeated, also when killed half-way."""
    _remove(directory / _GONE)
    if (directory / _BEFORE).exists():
        _remove(directory / _UPPER)
        (directory / _BEFORE).rename(directory / _UPPER)


def forget(directory: Path) -> None:
    """Let the new files count, for good; the old ones, if aside, are removed."""
    _remove(directory / _GONE)
    if (directory / _BEFORE).exists():
        (directory / _BEFORE).rename(directory / _GONE)  # at once, whatever there is to remove
        _remove(directory / _GONE)


def _remove(directory: Path) -> None:
    if directory.exists():
        import shutil  # hardly anybody needs it, and a start should cost little

        shutil.rmtree(directory)
