"""A terminal's or script's side of a running command: its output here, our input and signals there.

Output is read from the container's log when the supervisor says that it has grown (see
runtime/relay.py), so a slow reader of ours costs the container nothing.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator

from pymigrate.runtime import relay
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.log import Reader

STDIN, STDOUT, STDERR = 0, 1, 2
DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q, as podman
PROXIED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT),
)


def parse_detach_keys(text: str) -> bytes:
    """Read ``ctrl-p,ctrl-q`` or ``a,b``; none at all means that nothing detaches."""
    keys = bytearray()
    for word in text.split(",") if text else ():
        key = word.removeprefix("ctrl-").upper() if word.startswith("ctrl-") else word
        if len(key) != 1 or not key.isascii() or (key != word and not "@" <= key <= "_"):
            raise UsageError(
                f"--detach-keys {text}: {word!r} is no key; nothing was done",
                hint="letters or ctrl-LETTER with commas between, such as ctrl-p,ctrl-q",
            )
        keys.append(ord(key) & 0x1F if key != word else ord(key))
    return bytes(keys)


class DetachKeys:
    """Finds the keys that mean "leave me, let it run" in what is typed."""

    def __init__(self, keys: bytes = DETACH_KEYS) -> None:
        """Take the sequence to look for."""
        self._keys = keys
        self._seen = 0

    def filter(self, data: bytes) -> tuple[bytes, bool]:
        """Return what is to be passed on, and whether the sequence is complete.

        The beginning of a sequence is held back until it is known not to be one.
        """
        if not self._keys:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._seen]:
                self._seen += 1
                if self._seen == len(self._keys):
                    self._seen = 0
                    return bytes(passed), True
                continue
            passed += self._keys[: self._seen]
            self._seen = 1 if byte == self._keys[0] else 0
            if not self._seen:
                passed.append(byte)
        return bytes(passed), False


def write_all(fd: int, data: bytes) -> None:
    """Write everything; see write(2)."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def terminal_size(fd: int) -> tuple[int, int] | None:
    """Return rows and columns, or None if it is no terminal."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return None
    return size.lines, size.columns


@contextlib.contextmanager
def raw_terminal(*, wanted: bool) -> Iterator[None]:
    """Let every key through while the block runs, if stdin is a terminal."""
    if not wanted or not os.isatty(STDIN):
        yield
        return
    from pymigrate.runtime import terminal  # most commands have none

    with terminal.raw(STDIN):
        yield


@contextlib.contextmanager
def signals_as_events(numbers: tuple[int, ...]) -> Iterator[socket.socket]:
    """Yield a socket that gets one byte, its number, for each of these signals.

    Those that the caller had blocked until now arrive too.
    """
    read, write = socket.socketpair()
    read.setblocking(False)
    write.setblocking(False)
    handlers = {number: signal.signal(number, _note) for number in numbers}
    before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        read.close()
        write.close()


def _note(_number: int, _frame: object) -> None:
    """Let the signal arrive through the wakeup descriptor."""


class Session:
    """One attachment to a container; ``run`` lasts until it ends or is detached from."""

    def __init__(
        self,
        attached: socket.socket,
        log: Reader,
        *,
        stdin: bool,
        terminal: bool,
        on_signal: Callable[[int], None] | None,
        detach_keys: bytes = DETACH_KEYS,
    ) -> None:
        """Take over the socket of Supervision.attach() and a reader of the log.

        ``on_signal`` passes a signal on to the container; None leaves signals as they are.
        """
        self._attached = attached
        self._log = log
        self._stdin = stdin
        self._terminal = terminal
        self._on_signal = on_signal
        self._keys = DetachKeys(detach_keys)
        self._unsent: list[bytes] = []
        self._selector = selectors.PollSelector()  # epoll(7) refuses regular files as stdin
        self._detached = False

    def send_size(self) -> None:
        """Tell the container's terminal how large ours is."""
        size = terminal_size(STDIN) if self._terminal else None
        if size is not None:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                self._attached.send(relay.RESIZE + relay.SIZE.pack(*size))

    def run(self) -> bool:
        """Carry streams and signals; True if the container has ended, False if detached."""
        self._attached.setblocking(False)
        numbers = (*PROXIED, signal.SIGWINCH) if self._on_signal else (signal.SIGWINCH,)
        with (
            contextlib.closing(self._attached),
            contextlib.closing(self._log),
            raw_terminal(wanted=self._terminal and self._stdin),
            signals_as_events(numbers) as signals,
        ):
            self._selector.register(self._attached, selectors.EVENT_READ)
            self._selector.register(signals, selectors.EVENT_READ)
            if self._stdin:
                self._selector.register(STDIN, selectors.EVENT_READ)
            self._print_log()
            while not self._detached:
                for key, events in self._selector.select():
                    if key.fileobj is signals:
                        self._take_signals(signals.recv(4096))
                    elif key.fileobj is self._attached:
                        if events & selectors.EVENT_WRITE:
                            self._send()
                        if events & selectors.EVENT_READ and not self._receive():
                            self._print_log()
                            return True
                    elif key.fd == STDIN:
                        self._read_stdin()
        return False

    def _receive(self) -> bool:
        """Take one packet of the supervisor; False when there will be no more."""
        try:
            packet = self._attached.recv(relay.PACKET + 1)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if packet[:1] == relay.LOG_GREW:
            self._print_log()
        elif packet[:1] == relay.DIRECT["stdout"]:
            write_all(STDOUT, packet[1:])
        elif packet[:1] == relay.DIRECT["stderr"]:
            write_all(STDERR, packet[1:])
        return bool(packet)

    def _print_log(self) -> None:
        pending = bytearray()
        stream = "stdout"
        for entry in self._log.entries():
            if entry.stream != stream or len(pending) > relay.PACKET:
                write_all(STDOUT if stream == "stdout" else STDERR, bytes(pending))
                pending.clear()
                stream = entry.stream
            pending += entry.output
        write_all(STDOUT if stream == "stdout" else STDERR, bytes(pending))

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self.send_size()
            elif self._on_signal is not None:
                self._on_signal(number)

    def _read_stdin(self) -> None:
        try:
            data = os.read(STDIN, relay.PACKET)
        except OSError:  # EIO: our terminal is gone
            data = b""
        if not data:
            self._selector.unregister(STDIN)
            self._unsent.append(relay.END_OF_INPUT)
        elif self._terminal:
            data, self._detached = self._keys.filter(data)
        if data:
            self._unsent.append(relay.INPUT + data)
        self._send()

    def _send(self) -> None:
        while self._unsent:
            try:
                self._attached.send(self._unsent[0])
            except BlockingIOError:  # the container does not read: neither do we
                self._selector.modify(self._attached, selectors.EVENT_READ | selectors.EVENT_WRITE)
                with contextlib.suppress(KeyError):
                    self._selector.unregister(STDIN)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()  # it has ended: its last output is still to be read
                return
            if self._unsent.pop(0) == relay.END_OF_INPUT:
                self._stdin = False
        self._selector.modify(self._attached, selectors.EVENT_READ)
        if self._stdin and STDIN not in self._selector.get_map():
            self._selector.register(STDIN, selectors.EVENT_READ)
