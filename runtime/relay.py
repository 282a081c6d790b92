"""Between the container's streams, its log, and the clients attached to it.

Output goes to the log and nowhere else; attached clients are told that the log has grown and read
it themselves, so the slowest of them delays neither the container nor the others. Input comes from
the clients as packets and is passed on as fast as the container reads it.

On an attached socket (SOCK_SEQPACKET) the first byte of a packet says what it is::

    client → supervisor      I data     input          C           end of input
                             R rows columns (two 16-bit numbers)   size of the terminal
    supervisor → client      L          the log has grown
                             O data, E data    output that could not be logged (disk full)
                             (closed)   the container has ended and its log is complete
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from pymigrate.runtime import errors, log, stdio
from pymigrate.runtime.clients import Fields, Operation, Reply

INPUT = b"I"
END_OF_INPUT = b"C"
RESIZE = b"R"
LOG_GREW = b"L"
DIRECT = {"stdout": b"O", "stderr": b"E"}
SIZE = struct.Struct("!HH")
PACKET = 32 * 1024
_READ = 64 * 1024
_MAX_INPUT = 64 * 1024


class Relay:
    """All streams of one container; driven by the supervisor's selector.

    What is registered with the selector has a callable as its data, to be called with the events.
    """

    def __init__(self, selector: selectors.BaseSelector, path: Path, size: int = log.SIZE) -> None:
        """Open the log."""
        self._selector = selector
        self._log = log.Writer(path, size)
        self._outputs: dict[int, str] = {}
        self._input: int | None = None
        self._terminal: int | None = None
        self._slave: int | None = None
        self._size: tuple[int, int] | None = None
        self._pending = bytearray()
        self._input_ends = False
        self._clients: set[socket.socket] = set()
        self._held: set[socket.socket] = set()  # not listened to until pending input is gone

    @property
    def log_length(self) -> int:
        """How long the log is."""
        return self._log.length

    @property
    def log_inode(self) -> int:
        """Which file that length is of."""
        return self._log.inode

    def operations(self) -> dict[str, Operation]:
        """Return what clients of the supervisor can ask of us."""
        return {
            "attach": self._asked_to_attach,
            "resize": self._asked_to_resize,
            "terminal": self._asked_for_terminal,
        }

    def _asked_to_attach(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        theirs = self.attach()
        place: dict[str, object] = {"log_offset": self.log_length, "log_inode": self.log_inode}
        return Reply(place, [theirs.detach()])

    def _asked_to_resize(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        rows, columns = fields.get("rows"), fields.get("columns")
        if not isinstance(rows, int) or not isinstance(columns, int):
            raise errors.ProtocolError("resize needs rows and columns")
        if not (0 <= rows < 65536 and 0 <= columns < 65536):
            raise errors.UsageError(f"a terminal cannot have {rows} rows and {columns} columns")
        self.resize(rows, columns)
        return Reply()

    def _asked_for_terminal(self, _client: socket.socket, _fields: Fields, fds: list[int]) -> Reply:
        if len(fds) != 1 or not os.isatty(fds[0]):
            raise errors.ProtocolError("terminal needs the master of a terminal")
        self.set_terminal(fds.pop())
        return Reply()

    def add_streams(self, streams: stdio.Streams) -> None:
        """Read the container's output from pipes of make_pipes(), and write its input."""
        self._watch_output(streams.stdout, "stdout")
        self._watch_output(streams.stderr, "stderr")
        self._input = streams.stdin

    def set_terminal(self, master: int) -> None:
        """Read and write the container's terminal by its master, which is now ours."""
        from pymigrate.runtime import terminal  # most containers have none

        os.set_blocking(master, False)
        # While a slave is open the master never reports a hang-up, which would wake us for ever.
        with contextlib.suppress(OSError):  # locked, or of a mount that is gone: do without
            self._slave = fcntl.ioctl(
                master, terminal.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
            )
        self._terminal = self._input = master
        self._watch_output(master, "stdout")
        if self._size is not None:
            terminal.set_window_size(master, *self._size)

    def drop_streams(self) -> None:
        """Close the container's streams, whatever they are."""
        for fd in list(self._outputs):
            self._close_output(fd)
        self._close_input()

    def attach(self) -> socket.socket:
        """Make an attached client; returns its end, which the caller sends and closes."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._clients.add(ours)
        self._listen_to(ours)
        return theirs

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal, or of the one to come."""
        self._size = (rows, columns)
        if self._terminal is not None:
            from pymigrate.runtime import terminal

            terminal.set_window_size(self._terminal, rows, columns)

    def drain(self) -> None:
        """Log what the streams still hold; to be called when no process of it is left."""
        for fd in list(self._outputs):
            while fd in self._outputs and self._read_once(fd):
                pass

    def part(self) -> None:
        """Close the streams and tell the attached clients that it is over; others may follow."""
        self.drop_streams()
        for client in list(self._clients):
            self._detach(client)
        self._input = None
        self._input_ends = False

    def close(self) -> None:
        """Close everything, for good."""
        self.part()
        self._log.close()

    def _watch_output(self, fd: int, stream: str) -> None:
        self._outputs[fd] = stream
        self._selector.register(fd, selectors.EVENT_READ, self._on_stream(fd))

    def _on_stream(self, fd: int) -> Callable[[int], None]:
        def react(events: int) -> None:
            if events & selectors.EVENT_READ:
                self._read_once(fd)
            if events & selectors.EVENT_WRITE and fd == self._input:
                self._write_input()

        return react

    def _read_once(self, fd: int) -> bool:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return False
        except OSError:  # EIO: every slave of the terminal is closed
            data = b""
        if not data:
            self._close_output(fd)
            return False
        stream = self._outputs[fd]
        if self._log.write(stream, data):
            packet = LOG_GREW
            for client in list(self._clients):
                self._tell(client, packet)
        else:
            for start in range(0, len(data), PACKET):
                for client in list(self._clients):
                    self._tell(client, DIRECT[stream] + data[start : start + PACKET])
        return True

    def _close_output(self, fd: int) -> None:
        del self._outputs[fd]
        self._selector.unregister(fd)
        if fd == self._terminal:
            self._terminal = self._input = None
            if self._slave is not None:
                os.close(self._slave)
                self._slave = None
        os.close(fd)

    def _close_input(self) -> None:
        self._pending.clear()
        if self._input is not None and self._input != self._terminal:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._input)
            os.close(self._input)
            self._input = None
        self._release_held()

    def _tell(self, client: socket.socket, packet: bytes) -> None:
        try:
            client.send(packet, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass  # it has unread packets that tell it to look at the log
        except OSError:
            self._detach(client)

    def _listen_to(self, client: socket.socket) -> None:
        def react(_events: int) -> None:
            self._hear(client)

        self._selector.register(client, selectors.EVENT_READ, react)

    def _detach(self, client: socket.socket) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        if client in self._held:
            self._held.discard(client)
        else:
            self._selector.unregister(client)
        client.close()

    def _hear(self, client: socket.socket) -> None:
        try:
            packet = client.recv(PACKET + 1)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        kind, data = packet[:1], packet[1:]
        if not packet:
            self._detach(client)
        elif kind == INPUT and self._input is not None and not self._input_ends:
            self._pending += data
            self._write_input()
            if len(self._pending) >= _MAX_INPUT:
                self._selector.unregister(client)
                self._held.add(client)
        elif kind == END_OF_INPUT and self._terminal is None:
            self._input_ends = True
            self._write_input()
        elif kind == RESIZE and len(data) == SIZE.size:
            self.resize(*SIZE.unpack(data))

    def _write_input(self) -> None:
        if self._input is None:
            return
        try:
            while self._pending:
                del self._pending[: os.write(self._input, self._pending[:_READ])]
        except BlockingIOError:
            self._want_to_write(wanted=True)
        except OSError:  # EPIPE: the container closed its end
            self._close_input()
            return
        else:
            self._want_to_write(wanted=False)
            if self._input_ends:
                self._close_input()
        if len(self._pending) < _MAX_INPUT:
            self._release_held()

    def _want_to_write(self, *, wanted: bool) -> None:
        fd = self._input
        if fd is None:
            return
        reads = selectors.EVENT_READ if fd in self._outputs else 0
        events = reads | (selectors.EVENT_WRITE if wanted else 0)
        registered = fd in self._selector.get_map()
        if not events:
            if registered:
                self._selector.unregister(fd)
        elif registered:
            self._selector.modify(fd, events, self._on_stream(fd))
        else:
            self._selector.register(fd, events, self._on_stream(fd))

    def _release_held(self) -> None:
        held, self._held = self._held, set()
        for client in held:
            self._listen_to(client)
