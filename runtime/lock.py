"""One process at a time changes a container: flock(2) on its directory.

The kernel drops the lock when its owner dies, and no lock file stays behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from pymigrate.runtime.state import Identity


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Hold the directory's lock for the block; waits for the process that holds it.

    Yields the descriptor that has it: whoever is given a copy of that has the lock too, until
    both have closed theirs.

    Raises:
        FileNotFoundError: the directory is gone, or was removed while we waited.

    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Who held it may have removed the container, and another may have taken its name.
        if not os.path.samestat(os.fstat(fd), directory.stat()):
            raise FileNotFoundError(f"{directory} was replaced")
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Take the lock of an open directory if nobody holds it; closing ``fd`` gives it back."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def await_end(process: Identity, seconds: float | None) -> bool:
    """Wait until a process has ended; False if it still runs after ``seconds``."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not process.is_alive:  # the PID is another's by now, or only its corpse is left
            return True
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))
    finally:
        os.close(pidfd)


def send_signal(process: Identity, signal_number: int) -> bool:
    """Send a signal to this very process; False if it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not process.is_alive:
            return False
        signal.pidfd_send_signal(pidfd, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True
