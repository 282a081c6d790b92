"""Frames over a program's standard input and output at the other end of an SSH connection.

Data is sent in views of 32 KiB: a big ``bytes`` given to ``sendall`` is copied again for each
packet. What a peer may send before it is read is bounded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pymigrate.runtime.errors import ProtocolError, PymigrateError, Unreachable
from pymigrate.transport.agent_failure import after_frames, before_first_frame
from pymigrate.transport.channel import Timeout
from pymigrate.transport.frames import Buffer, Decoder, Frame, encode_header
from pymigrate.transport.limit import RateLimit
from pymigrate.transport.messages import printable
from pymigrate.transport.ssh_library import paramiko

if TYPE_CHECKING:
    from pymigrate.transport.ssh import Connection

logger = logging.getLogger(__name__)

PIECE = 32 << 10  # bytes in one packet: what OpenSSH's channels take
WINDOW = 16 << 20  # bytes that the other side may send before we read them
GATHER_LIMIT = 64 << 10  # payloads up to this size travel in one piece with their header
TICK = 0.25  # seconds between looks at a deadline: paramiko has one time-out for both directions
LAST_WORDS = 2.0  # seconds to wait for an exit status and standard error after the end
STDERR_TAIL = 8192  # bytes kept of what the agent said on standard error


class _Unread(paramiko.buffered_pipe.BufferedPipe):  # type: ignore[type-arg]
    """What has come and was not read yet; paramiko would take as much as a peer cares to send."""

    def feed(self, data: bytes) -> None:
        """Take data; raises SSHException, which ends the connection, beyond the window."""
        if len(self) + len(data) > WINDOW:
            raise paramiko.SSHException("the other side sends more than it was allowed to")
        super().feed(data)


def open_session(transport: paramiko.Transport, timeout: float) -> paramiko.Channel:
    """Open a session that never holds more than WINDOW bytes of each stream in memory."""
    session = transport.open_session(timeout=timeout)
    session.in_buffer, session.in_stderr_buffer = _Unread(), _Unread()
    return session


class SshChannel:
    """Frames over the standard input and output of a program at the other host."""

    def __init__(
        self, connection: Connection, session: paramiko.Channel, command: Sequence[str]
    ) -> None:
        """Use ``Connection.open_agent`` instead."""
        self.peer = connection.peer
        self.heard = time.monotonic()
        self.limit: RateLimit | None = None
        self._connection = connection
        self._session = session
        self._command = command[0]
        self._decoder = Decoder()
        self._unread = memoryview(b"")
        self._spoken = False  # a frame has arrived: the other side is what we think
        self._sending = threading.Lock()
        self._closing = False
        self._stderr = bytearray()
        session.settimeout(TICK)
        self._listener = threading.Thread(target=self._listen, name="ssh-stderr", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Keep the end of standard error; unread it would fill the window and stop the agent."""
        while True:
            try:
                said = self._session.recv_stderr(PIECE)
            except TimeoutError:
                continue
            if not said:
                return
            self._stderr = (self._stderr + said)[-STDERR_TAIL:]

    @property
    def stderr(self) -> str:
        """Give the end of what the agent wrote to standard error."""
        return printable(self._stderr.decode("utf-8", "replace"))

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        """Send the frame in packets of 32 KiB."""
        header = encode_header(frame, sealed=True)
        parts: list[Buffer]
        if frame.size <= GATHER_LIMIT:
            parts = [header + bytes(frame.payload)]
        else:
            parts = [header, frame.payload]
        with self._sending:
            for part in parts:
                self._send_all(memoryview(part).cast("B"), timeout)

    def _send_all(self, view: memoryview, timeout: float | None) -> None:
        if self.limit is None:
            self._send_now(view, timeout)
            return
        for at in range(0, len(view), self.limit.piece):
            piece = view[at : at + self.limit.piece]
            self._wait(self.limit.reserve(len(piece)))
            self._send_now(piece, timeout)

    def _wait(self, seconds: float) -> None:
        """Wait for a turn, unless the channel is closed meanwhile."""
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, TICK))

    def _send_now(self, view: memoryview, timeout: float | None) -> None:
        moved = time.monotonic()
        while view:
            self._check_open()
            try:
                sent = self._session.send(view[:PIECE])  # type: ignore[arg-type] # views are fine
            except TimeoutError:
                if timeout is not None and time.monotonic() - moved >= timeout:
                    message = f"{self.peer} has taken nothing for {timeout:g} s"
                    raise Unreachable(message) from None
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._check_open()
                raise Unreachable(f"{self.peer}: connection lost") from error
            if sent == 0:
                self._check_open()
                message = f"{self.peer}: connection lost"
                raise Unreachable(message)
            moved = time.monotonic()
            view = view[sent:]

    def receive(self, *, timeout: float | None = None) -> Frame:
        """Wait for a frame; deadlines are kept to a quarter of a second."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._unread:
                frame = self._decode()
                if frame is not None:
                    self._spoken = True
                    return frame
            self._check_open()
            try:
                arrived = self._session.recv(WINDOW)  # a smaller read moves what is left behind
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    message = f"{self.peer} has sent nothing for {timeout:g} s"
                    raise Timeout(message) from None
                continue
            if not arrived:
                self._check_open()
                raise self._failure()
            self.heard = time.monotonic()
            self._unread = memoryview(arrived)

    def _decode(self) -> Frame | None:
        place = self._decoder.buffer()
        count = min(len(place), len(self._unread))
        place[:count] = self._unread[:count]
        noise = self._unread
        self._unread = self._unread[count:]
        try:
            return self._decoder.filled(count)
        except ProtocolError as error:
            if self._spoken:
                raise
            raise self._failure(bytes(noise[:400])) from error

    def _check_open(self) -> None:
        if self._closing:
            message = f"the connection to {self.peer} is closed"
            raise Unreachable(message)

    def _exit_status(self) -> int | None:
        """Wait a moment for the agent's exit status; None if the line is cut or it still runs."""
        if not self._session.status_event.wait(LAST_WORDS):
            return None
        status = self._session.exit_status
        return status if status >= 0 else None

    def _failure(self, noise: bytes = b"") -> PymigrateError:
        """Find out why nothing more comes, or nothing that can be understood."""
        status = self._exit_status() if self._connection.alive else None
        if not noise:
            self._listener.join(LAST_WORDS)
        if not self._spoken:
            return before_first_frame(self.peer, self._command, status, self.stderr, noise)
        ended = after_frames(self.peer, status, self.stderr)
        return Unreachable(ended.message) if self._decoder.midway else ended

    def close(self) -> None:
        """End the agent's input, which ends the agent; wakes senders and receivers."""
        self._closing = True
        # Saying goodbye needs paramiko's lock, which a sender on a cut line holds for ever.
        if self._sending.acquire(timeout=2 * TICK):
            try:
                self._session.close()
            except (OSError, EOFError, paramiko.SSHException) as error:
                logger.debug("%s: closing the session: %s", self.peer, error)
            finally:
                self._sending.release()
        else:
            self._connection.close()
        if self._listener is not threading.current_thread():
            self._listener.join()
