"""Children of a supervisor: helpers, programs with given descriptors; and how it hears of them."""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
from collections.abc import Callable, Sequence

from pymigrate.runtime import errors
from pymigrate.runtime.clients import Fields, Operation, Reply

_FIRST = 3
_FAILED = 127


class Signals:
    """Signals as bytes to read: a process that selects must not miss one that comes just before."""

    def __init__(
        self, selector: selectors.BaseSelector, on_signals: Callable[[bytes], None]
    ) -> None:
        """Have ``on_signals`` called by the selector's key with the numbers of those that came."""
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._on_signals = on_signals
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        # Handlers, for what is ignored would be inherited by the container's init.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, _note)
        selector.register(self._read, selectors.EVENT_READ, self._on_readable)

    def _on_readable(self, _events: int) -> None:
        self._on_signals(self._read.recv(4096))


def _note(_number: int, _frame: object) -> None:
    """Let the signal arrive through the wakeup descriptor."""


class Helpers:
    """The programs that a supervisor runs for others, and who waits for which of them."""

    def __init__(self, answer: Callable[[socket.socket, Reply], None]) -> None:
        """Begin with none; ``answer`` sends a client what it waited for."""
        self._answer = answer
        self._waiting: dict[int, list[socket.socket]] = {}  # of each that runs, by its PID
        self._exit_codes: dict[int, int] = {}
        self._unclaimed: dict[int, int] = {}  # PID -> wait status, of children nobody spoke for

    def operations(self) -> dict[str, Operation]:
        """Return what clients can ask of us."""
        return {"wait_spawned": self._wait}

    def spawn(self, argv: Sequence[str], fds: Sequence[int], before: Callable[[], None]) -> int:
        """Run a program; see the function of this name. What ended before was not its child."""
        self._unclaimed.clear()
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

    def keep_unclaimed(self, pid: int, status: int) -> None:
        """Keep how a child ended that is none of ours: one that CRIU has restored, perhaps."""
        self._unclaimed[pid] = status

    def claim(self, pid: int) -> int | None:
        """Return the wait status of such a child, once."""
        return self._unclaimed.pop(pid, None)

    def claim_none(self) -> None:
        """Forget them all."""
        self._unclaimed.clear()

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
