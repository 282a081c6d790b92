"""Start the supervisor of a container."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.runtime import control, daemon, errors
from pymigrate.runtime.supervision import Supervision

if TYPE_CHECKING:
    from pymigrate.runtime.host import Host
    from pymigrate.runtime.state import Record

_PROGRAM = "pymigrate.runtime.supervisor"
READY_SECONDS = 60.0
LOG_NAME = "supervisor.log"
PROCESS_NAME = "pymigrate-super"  # of a supervisor; the kernel keeps 15 letters
FENCE_NAME = "migration"
HIDDEN = "."  # begins directories that are not containers yet, or no more; no name does


def lower_directories(host: Host, record: Record) -> tuple[Path, ...]:
    """Return the read-only directories of a container's root, lowest first."""
    if record.rootfs is not None:
        return (Path(record.rootfs),)
    return tuple(host.images / "layers" / digest for digest in record.layers)


def discard(directory: Path, container_id: str) -> None:
    """Remove a container's directory: its name is free at once. A second time does nothing."""
    import shutil  # of its own importers only --rm and rm need it

    gone = directory.with_name(f"{HIDDEN}{directory.name}.{container_id[:12]}.removed")
    try:
        directory.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone)


class Launch:
    """A supervisor that is starting: it loads what it needs while the caller does other things.

    It touches nothing before ``ready``; ``abandon`` (or the caller's death) ends it.
    """

    def __init__(self, directory: Path | None, *, fork: bool = False) -> None:
        """Make a process for the container in this directory, which need not exist yet.

        Where that will be may be told later: `is_for`. With ``fork`` (see daemon.py) it is one of a
        caller who has loaded little that a supervisor does not need, for it stays.
        """
        self._directory = directory
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._pid = daemon.start(
                    _PROGRAM,
                    [] if directory is None else [os.fspath(directory)],
                    theirs,
                    title=title(directory),
                    fork=fork,
                )
            except OSError:
                self._connection.close()
                raise

    def is_for(self, directory: Path) -> None:
        """Say whose it is, of one that was made before that was known."""
        self._directory = directory

    def abandon(self) -> None:
        """Let it end without having done anything; a second time does nothing."""
        self._connection.close()
        self._reap()

    def give_up(self) -> None:
        """Have `ready`, in which another thread waits, fail at once, as if the supervisor ended.

        To that it is what `abandon` is.
        """
        try:
            self._connection.shutdown(socket.SHUT_RDWR)  # close(2) would wake nobody
        except OSError as error:
            if error.errno != errno.EBADF:  # that thread has closed it just now
                raise

    def ready(self, *, plugged: bool) -> Supervision:
        """Tell it to prepare the container, and wait until it has.

        Raises:
            PymigrateError: what the supervisor met; it undid what it had done.

        """
        directory = self._directory
        if directory is None:
            raise ValueError("nobody has said whose supervisor it is")
        order = {"op": "prepare", "plugged": plugged, "directory": os.fspath(directory)}
        try:
            self._connection.settimeout(READY_SECONDS)
            control.send(self._connection, order)
            answer = control.receive(self._connection)
        except TimeoutError as error:
            self.abandon()
            raise errors.HostError(
                f"the supervisor of {directory.name} was not ready within "
                f"{READY_SECONDS:.0f} s; it was told to give up",
                hint=f"see {directory / LOG_NAME}",
            ) from error
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        self._reap()
        if answer is not None and "error" not in answer[0]:
            return Supervision(self._connection, directory.name)
        self._connection.close()
        if answer is not None:
            raise control.error_from_document(answer[0]["error"])
        raise errors.HostError(
            f"the supervisor of {directory.name} ended before it was ready" + _last_words(directory)
        )

    def _reap(self) -> None:
        # It forked once, to be nobody's child: what we started has ended.
        pid, self._pid = self._pid, None
        if pid is not None:
            os.waitpid(pid, 0)


def title(directory: Path | None) -> str:
    """Return what a supervisor is called in lists of processes."""
    return f"pymigrate: supervisor of {directory or 'a container to come'}"


def open_log(directory: Path) -> None:
    """Make the supervisor's log the stdout and stderr of the calling process."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.open(directory / LOG_NAME, flags, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _last_words(directory: Path) -> str:
    try:
        lines = (directory / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return f": {lines[-1]}" if lines else ""
