"""A way to the other host that carries frames in order: what it promises, and one over descriptors.

Promises that every channel keeps (tests/contract/test_channel.py is their text):

* Frames arrive complete, in order, once, or not at all.
* One thread may send while another receives; ``close`` may come from a third and wakes both.
* ``send`` may block while the other side does not read; ``timeout`` bounds it.
* Whatever ends the connection (the other side's death, a cut, ``close``) is Unreachable; bytes that
  are no frames are ProtocolError; damaged frames are Corrupted. After any of these the channel is
  of no use and is to be closed. Only a time-out of ``receive`` leaves it usable.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from pymigrate.runtime.errors import Unreachable
from pymigrate.transport.frames import Buffer, Decoder, Frame, encode_header
from pymigrate.transport.limit import RateLimit

GATHER_LIMIT = 64 << 10  # payloads up to this size are sent in one piece with their header


class Timeout(Unreachable):
    """Nothing arrived in time; the channel itself is still good."""


class Ended(Unreachable):
    """The other side closed the connection, between two frames."""


class Channel(Protocol):
    """Carries frames both ways."""

    peer: str
    heard: float
    """When bytes last arrived, complete frame or not, on the monotonic clock."""
    limit: RateLimit | None
    """Asked before anything is sent; None for as fast as it goes."""

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        """Send one frame; returns when its memory may be used again.

        ``timeout`` in seconds bounds the time without any progress.
        """

    def receive(self, *, timeout: float | None = None) -> Frame:
        """Wait for one frame; Timeout if none is complete after ``timeout`` seconds."""

    def close(self) -> None:
        """Give everything back; may be repeated. Waiting senders and receivers get Unreachable."""


class StreamChannel:
    """Frames over one or two descriptors: a socket, a pair of pipes, a terminal's other end.

    Owns the descriptors from the moment it is made. They are set not to block, and set back at
    the end, since an inherited standard input is shared with whoever started us.
    """

    _sealed = False  # what it carries is authenticated, and needs no checksum

    def __init__(self, read_fd: int, write_fd: int, *, peer: str = "the other side") -> None:
        """Take over two descriptors (they may be one)."""
        self.peer = peer
        self.heard = time.monotonic()
        self.limit: RateLimit | None = None
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._blocking = {fd: os.get_blocking(fd) for fd in (read_fd, write_fd)}
        for fd in self._blocking:
            os.set_blocking(fd, False)
        self._decoder = Decoder()
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._closing = threading.Event()
        self._closed = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        """Write the header and the payload, without joining big ones."""
        header = encode_header(frame, sealed=self._sealed)
        parts: list[Buffer]
        if frame.size <= GATHER_LIMIT:
            parts = [header + bytes(frame.payload)]
        else:
            parts = [header, frame.payload]
        with self._sending:
            self._put(parts, timeout)

    def _put(self, parts: Sequence[Buffer], timeout: float | None) -> None:
        """Send these bytes; the caller holds the lock."""
        self._write(parts, timeout)

    def _write(self, parts: Sequence[Buffer], timeout: float | None) -> None:
        """Send these bytes, in pieces that the limit allows if there is one."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        if self.limit is None:
            self._write_now(views, timeout)
            return
        for view in views:
            for at in range(0, len(view), self.limit.piece):
                piece = view[at : at + self.limit.piece]
                self._closing.wait(self.limit.reserve(len(piece)))
                self._write_now([piece], timeout)

    def _write_now(self, views: list[memoryview], timeout: float | None) -> None:
        while views:
            try:
                self._check_open()
                written = os.writev(self._write_fd, views)
            except BlockingIOError:
                if not self._wait(self._write_fd, select.POLLOUT, timeout):
                    message = f"{self.peer} has taken nothing for {timeout:g} s"
                    raise Unreachable(message) from None
                continue
            except OSError as error:
                raise self._lost(error) from error
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]

    def receive(self, *, timeout: float | None = None) -> Frame:
        """Read until a frame is complete; a later call goes on where a time-out interrupted."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._receiving:
            while True:
                count = self._read(self._decoder.buffer(), timeout, deadline)
                if count == 0:
                    raise self._ended()
                frame = self._decoder.filled(count)
                if frame is not None:
                    return frame

    def _read(self, place: memoryview, timeout: float | None, deadline: float | None) -> int:
        """Wait for bytes and put them into ``place``; 0 at the end of the connection."""
        while True:
            try:
                self._check_open()
                count = os.readv(self._read_fd, [place])
                self.heard = time.monotonic()
                return count
            except BlockingIOError:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._wait(self._read_fd, select.POLLIN, left):
                    message = f"{self.peer} has sent nothing for {timeout:g} s"
                    raise Timeout(message) from None
            except OSError as error:
                raise self._lost(error) from error

    def _wait(self, fd: int, event: int, timeout: float | None) -> bool:
        poller = select.poll()
        poller.register(fd, event)
        poller.register(self._wake, select.POLLIN)
        return bool(poller.poll(None if timeout is None else timeout * 1000))

    def _check_open(self) -> None:
        if self._closing.is_set():
            message = f"the connection to {self.peer} is closed"
            raise Unreachable(message)

    def _lost(self, error: OSError) -> Unreachable:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "unknown error")
        return Unreachable(f"{self.peer}: connection lost ({reason})")

    def _ended(self) -> Unreachable:
        if self._decoder.midway:
            return Unreachable(f"{self.peer}: connection lost in the middle of a frame")
        return Ended(f"{self.peer}: connection lost")

    def close(self) -> None:
        """Wake both directions up, then close the descriptors."""
        self._closing.set()
        with self._closed:
            if self._wake < 0:
                return
            os.eventfd_write(self._wake, 1)
            with self._sending, self._receiving:
                self._say_goodbye()
                for fd, blocking in self._blocking.items():
                    os.set_blocking(fd, blocking)
                    os.close(fd)
                os.close(self._wake)
                self._wake = -1

    def _say_goodbye(self) -> None:
        """Do nothing: that the descriptors are closed says enough."""

    def __enter__(self) -> StreamChannel:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def stdio_channel(*, peer: str = "the source") -> StreamChannel:
    """Take standard input and output for frames, out of reach of everything else.

    From here on descriptor 0 reads nothing and descriptor 1 is standard error, so that no print
    and no child process can write between the frames.
    """
    read_fd = os.dup(0)  # dup gives descriptors that children do not inherit (PEP 446)
    write_fd = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return StreamChannel(read_fd, write_fd, peer=peer)
