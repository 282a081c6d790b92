"""Our streams and those of a process that ``exec`` put into a container, until it ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal

from pymigrate.migrate.session import (
    PROXIED,
    STDERR,
    STDIN,
    STDOUT,
    raw_terminal,
    signals_as_events,
    terminal_size,
    write_all,
)
from pymigrate.runtime import terminal
from pymigrate.runtime.values import dataclass

_READ = 32 * 1024


@dataclass()
class ExecSession:
    """The caller's ends of a child's streams; ``stdin`` is where ours goes, None for nowhere."""

    pid: int
    stdin: int | None
    outputs: dict[int, int]  # a descriptor to read -> our STDOUT or STDERR
    master: int | None = None

    def run(self) -> int:
        """Carry streams and signals; return the exit code, 128+N for signal N."""
        pidfd = os.pidfd_open(self.pid)
        self._pending = bytearray()
        self._selector = selectors.PollSelector()  # epoll(7) refuses regular files as stdin
        numbers = (*PROXIED, signal.SIGWINCH)
        with (
            contextlib.ExitStack() as undo,
            raw_terminal(wanted=self.master is not None and self.stdin is not None),
            signals_as_events(numbers) as signals,
        ):
            undo.callback(os.close, pidfd)
            self._resize()
            self._selector.register(pidfd, selectors.EVENT_READ)
            self._selector.register(signals, selectors.EVENT_READ)
            for fd in self.outputs:
                os.set_blocking(fd, False)
                self._selector.register(fd, selectors.EVENT_READ)
            if self.stdin is not None:
                os.set_blocking(self.stdin, False)
                self._selector.register(STDIN, selectors.EVENT_READ)
            ended = False
            while not ended:
                for key, events in self._selector.select():
                    if key.fileobj is signals:
                        self._take_signals(signals.recv(4096))
                    elif key.fd == pidfd:
                        ended = True
                    elif key.fd == STDIN:
                        self._read_stdin()
                    else:
                        if events & selectors.EVENT_WRITE:
                            self._write()
                        if key.fd in self.outputs:
                            self._copy(key.fd)
            for fd in list(self.outputs):
                while self._copy(fd):
                    pass
            self._close_stdin()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _copy(self, fd: int) -> bool:
        """Copy what can be read; False if there was nothing."""
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            write_all(self.outputs[fd], data)
            return True
        self._selector.unregister(fd)
        del self.outputs[fd]
        if fd == self.stdin:
            self._stop_reading()
            self.stdin = None
        os.close(fd)
        return False

    def _read_stdin(self) -> None:
        try:
            data = os.read(STDIN, _READ)
        except OSError:  # EIO: our terminal is gone
            data = b""
        self._stop_reading()
        if data:
            self._pending += data
            self._write()
        elif self.master is None:
            self._close_stdin()

    def _write(self) -> None:
        """Pass input on; our stdin is read again when all of it is gone."""
        if self.stdin is None:
            return
        reads = selectors.EVENT_READ if self.stdin in self.outputs else 0
        try:
            while self._pending:
                del self._pending[: os.write(self.stdin, self._pending)]
        except BlockingIOError:
            self._watch(self.stdin, reads | selectors.EVENT_WRITE)
            return
        except OSError:  # EPIPE: it closed its stdin
            self._close_stdin()
            return
        self._watch(self.stdin, reads)
        self._watch(STDIN, selectors.EVENT_READ)

    def _watch(self, fd: int, events: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)
        if events:
            self._selector.register(fd, events)

    def _stop_reading(self) -> None:
        self._watch(STDIN, 0)

    def _close_stdin(self) -> None:
        if self.stdin is not None and self.stdin != self.master:
            self._watch(self.stdin, 0)
            os.close(self.stdin)
            self.stdin = None

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._resize()
            else:
                os.kill(self.pid, number)  # our child, not reaped

    def _resize(self) -> None:
        size = terminal_size(STDIN)
        if self.master is not None and size is not None:
            terminal.set_window_size(self.master, *size)


def for_terminal(pid: int, master: int, *, with_stdin: bool) -> ExecSession:
    """Return the session of a process with a terminal."""
    return ExecSession(pid, master if with_stdin else None, {master: STDOUT}, master)


def for_pipes(pid: int, stdin: int | None, stdout: int, stderr: int) -> ExecSession:
    """Return the session of a process with pipes, of which these are our ends."""
    return ExecSession(pid, stdin, {stdout: STDOUT, stderr: STDERR})
