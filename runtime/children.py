"""Helper processes of a supervisor: programs with given descriptors, as its direct children."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Sequence

from pymigrate.runtime import errors
from pymigrate.runtime.clients import Fields, Operation, Reply

_FIRST = 3
_FAILED = 127


class Helpers:
    """The programs that a supervisor runs for others, and who waits for which of them."""

    def __init__(self, answer: Callable[[socket.socket, Reply], None]) -> None:
        """Begin with none; ``answer`` sends a client what it waited for."""
        self._answer = answer
        self._waiting: dict[int, list[socket.socket]] = {}  # of each that runs, by its PID
        self._exit_codes: dict[int, int] = {}

    def operations(self) -> dict[str, Operation]:
        """Return what clients can ask of us."""
        return {"wait_spawned": self._wait}

    def spawn(self, argv: Sequence[str], fds: Sequence[int], before: Callable[[], None]) -> int:
        """Run a program; see the function of this name."""
        pid = spawn(argv, fds, before)
        self._waiting[pid] = []
        return pid

    def runs(self, pid: int) -> bool:
        """Say whether it is one of ours that was not seen to end."""
        return pid in self._waiting

    def end(self, pid: int, exit_code: int) -> None:
        """Tell those who wait how it ended."""
        self._exit_codes[pid] = exit_code
        for client in self._waiting.pop(pid):
            self._answer(client, Reply({"exit_code": exit_code}))

    def forget(self, client: socket.socket) -> None:
        """Expect no more that this client waits."""
        for waiting in self._waiting.values():
            waiting[:] = [one for one in waiting if one is not client]

    def kill(self) -> None:
        """Kill all that run."""
        for pid in self._waiting:
            os.kill(pid, signal.SIGKILL)

    def _wait(self, client: socket.socket, fields: Fields, _fds: list[int]) -> Reply | None:
        pid = fields.get("pid")
        if isinstance(pid, int) and pid in self._exit_codes:
            return Reply({"exit_code": self._exit_codes[pid]})
        if not isinstance(pid, int) or pid not in self._waiting:
            raise errors.NotFound(f"{pid!r} is no program of this supervisor")
        self._waiting[pid].append(client)
        return None


def exit_code(status: int) -> int:
    """Return the shell's number for a wait status: 128+N for signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def spawn(argv: Sequence[str], fds: Sequence[int], before: Callable[[], None]) -> int:
    """Fork and execute a program; returns its PID when it was executed.

    ``fds`` appear as 3, 4, 5 … in this order, stdin is /dev/null, stdout and stderr are ours.
    ``before`` runs in the child. To be called by a process without threads.

    Raises:
        HostError: ``before`` failed or the program cannot be executed.

    """
    if not argv:
        raise errors.UsageError("no program to run")
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(argv, fds, before, report_write)
    os.close(report_write)
    with os.fdopen(report_read, "rb") as report:
        failure = report.read()
    if failure:
        os.waitpid(pid, 0)
        raise errors.HostError(f"cannot run {argv[0]}: {failure.decode(errors='replace')}")
    return pid


def _become(
    argv: Sequence[str], fds: Sequence[int], before: Callable[[], None], report: int
) -> None:
    try:
        try:
            signal.set_wakeup_fd(-1)
            before()
            # First out of the way of 3, 4, 5 …, then there.
            above = _FIRST + len(fds)
            report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above)
            spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            for number, fd in enumerate(spare, _FIRST):
                os.dup2(fd, number)
            # Python ignores this one, and what is ignored stays so across execve(2).
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execvp(argv[0], list(argv))  # noqa: S606 - the point of it
        except (OSError, errors.PymigrateError) as error:
            os.write(report, str(error).encode()[:4000])
    finally:
        os._exit(_FAILED)
