"""Bulk data behind a request, as file-like objects: a Writer at one host, its Reader at the other.

A stream is cut into pieces of CHUNK_SIZE. Pieces are compressed, where that pays (choice.py), by a
pool of threads while the caller produces the next ones and a thread of the writer sends the
finished ones, in order. A fixed set of buffers goes round, so memory is bounded and a slow link
slows the producer down.

END says how many bytes and pieces there were: a stream never ends by silence or by a closed line.
"""

from __future__ import annotations

import io
import queue
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pymigrate.runtime.errors import Corrupted, ProtocolError, TransportError
from pymigrate.transport import compression
from pymigrate.transport.choice import Choice
from pymigrate.transport.frames import CHUNK_SIZE, MAX_PAYLOAD, Flag, Frame, Kind

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from pymigrate.transport.link import Link

BUFFERS = 8  # pieces in flight: being filled, compressed or sent
_END = struct.Struct(">QI")  # bytes of the stream, number of DATA frames


class _Filled(NamedTuple):
    """So many bytes in a buffer, asked for with a level; ``packing`` gives them compressed."""

    buffer: bytearray
    size: int
    level: int | None
    packing: Future[bytes | None] | None


class Aborted(TransportError):
    """The writer of a stream gave up: what was read of it is to be thrown away."""


class Writer(io.BufferedIOBase, BinaryIO):
    """Sends what is written to it. For one thread; ``close`` or ``abort`` must be called.

    ``refused`` is called now and then, and raises if the other side has already said no.
    """

    def __init__(
        self,
        link: Link,
        pool: Executor,
        *,
        choice: Choice | None = None,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin a stream; ``choice`` says whether it is compressed, by default always."""
        self.bytes_written = 0
        self._link = link
        self._pool = pool
        self._choice = choice or Choice(compression.LEVEL, fixed=True)
        self._choice.begins()
        self._refused = refused
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(bytearray())
        self._buffer: bytearray | None = None
        self._have = 0
        self._full: queue.SimpleQueue[_Filled | None] = queue.SimpleQueue()
        self._frames = 0
        self._failure: BaseException | None = None
        self._ended = False
        self._sender = threading.Thread(target=self._send_all, name="stream-sender", daemon=True)
        self._sender.start()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Take all of ``data`` (it is copied); blocks while the link is slower than the caller."""
        if self._ended:
            message = "write to a stream that has ended"
            raise ValueError(message)
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            if self._buffer is None:
                self._buffer = self._next_buffer()
                self._have = 0
            count = min(len(view), CHUNK_SIZE - self._have)
            self._buffer[self._have : self._have + count] = view[:count]
            self._have += count
            view = view[count:]
            if self._have == CHUNK_SIZE:
                self._push()
        self.bytes_written += size
        return size

    def _next_buffer(self) -> bytearray:
        buffer = self._free.get()
        self._check()
        if not buffer:
            buffer = bytearray(CHUNK_SIZE)
        return buffer

    def _check(self) -> None:
        self._refused()  # first: it is the reason for a failure to send, if there is one
        if self._failure is not None:
            raise self._failure

    def _push(self) -> None:
        if self._buffer is None:
            return
        piece = memoryview(self._buffer)[: self._have]
        level, packing = self._choice.level, None
        if level is not None:
            packing = self._pool.submit(compression.compress, piece, level=level)
        self._full.put(_Filled(self._buffer, self._have, level, packing))
        self._buffer = None

    def _send_all(self) -> None:
        while (item := self._full.get()) is not None:
            if self._failure is None:
                try:
                    packed = None if item.packing is None else item.packing.result()
                    if packed is None:
                        piece = memoryview(item.buffer)[: item.size]
                        self._link.send(Frame(Kind.DATA, piece, number=self._frames))
                    else:
                        self._link.send(Frame(Kind.DATA, packed, Flag.ZSTD, self._frames))
                    self._frames += 1
                    self._choice.sent(item.size, time.monotonic(), level=item.level)
                except BaseException as error:
                    # Raised in the caller's thread, by _check.
                    self._failure = error
            self._free.put(item.buffer)

    def flush(self) -> None:
        """Do nothing: pieces go when they are full, or at the end."""

    def close(self) -> None:
        """Send what is left and the END frame; returns when the channel has taken all."""
        if self._ended:
            return
        self._push()
        self._stop_sender()
        self._check()
        self._link.send(Frame(Kind.END, _END.pack(self.bytes_written, self._frames)))

    def abort(self) -> None:
        """Tell the reader to throw everything away; nothing happens after ``close``."""
        if self._ended:
            return
        self._stop_sender()
        end = _END.pack(self.bytes_written, self._frames)
        self._link.send(Frame(Kind.END, end, Flag.ABORTED))

    def _stop_sender(self) -> None:
        self._ended = True
        self._full.put(None)
        self._sender.join()

    @property
    def closed(self) -> bool:
        """Say whether the stream has ended."""
        return self._ended

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close, or abort if the block failed."""
        if error is None:
            self.close()
            return
        try:
            self.abort()
        except TransportError as lost:
            error.add_note(f"the other side could not be told: {lost.message}")

    def __del__(self) -> None:
        """Do nothing: an END must never be sent because an object was forgotten."""


class Reader(io.BufferedIOBase, BinaryIO):
    """Gives what the other side's Writer was given. For one thread.

    Reading raises Unreachable if the line is cut, Aborted if the writer gave up, Corrupted if
    pieces are damaged or missing. End of file is reported only after END was seen and agreed.
    """

    def __init__(self, link: Link, *, empty: bool = False) -> None:
        """Read the stream that follows on ``link``; ``empty`` if there is none."""
        self.bytes_read = 0  # given to the caller
        self._link = link
        self._piece = memoryview(b"")
        self._arrived = 0
        self._frames = 0
        self._at_end = empty

    def readable(self) -> bool:
        """Yes."""
        return True

    def _fill(self) -> bool:
        """Make sure that there is something in the piece; False at the end of the stream."""
        while not self._piece:
            if self._at_end:
                return False
            frame = self._link.receive()
            if frame.kind is Kind.DATA:
                self._take(frame)
            elif frame.kind is Kind.END:
                self._end(frame)
            elif frame.kind is not Kind.EVENT:
                message = f"{self._link.peer} sent {frame.kind.name} in the middle of a stream"
                raise ProtocolError(message)
        return True

    def _take(self, frame: Frame) -> None:
        if frame.number != self._frames:
            message = f"piece {self._frames} of the stream is missing, {frame.number} came"
            raise Corrupted(message)
        self._frames += 1
        payload = frame.payload
        if frame.flags & Flag.ZSTD:
            payload = compression.decompress(payload, MAX_PAYLOAD[Kind.DATA])
        self._piece = memoryview(payload)
        self._arrived += len(payload)

    def _end(self, frame: Frame) -> None:
        self._at_end = True
        if frame.flags & Flag.ABORTED:
            message = f"{self._link.peer} gave up in the middle of a stream"
            raise Aborted(message)
        if len(frame.payload) != _END.size:
            message = f"END of {len(frame.payload)} bytes"
            raise ProtocolError(message)
        size, frames = _END.unpack(frame.payload)
        if (size, frames) != (self._arrived, self._frames):
            message = (
                f"a stream of {size} bytes in {frames} pieces arrived"
                f" as {self._arrived} bytes in {self._frames}"
            )
            raise Corrupted(message)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read exactly ``size`` bytes, fewer only at the end.

        Without a size it raises ValueError: how long a stream is, is the other side's choice.
        """
        if size is None or size < 0:
            message = "read() of a peer's stream needs a size"
            raise ValueError(message)
        parts: list[bytes] = []
        while size and self._fill():
            part = bytes(self._piece[:size])
            self._piece = self._piece[len(part) :]
            self.bytes_read += len(part)
            size -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read1(self, size: int = -1, /) -> bytes:
        """Read at most ``size`` bytes, what is there; b"" only at the end."""
        if not self._fill():
            return b""
        return self.read(len(self._piece) if size < 0 else min(size, len(self._piece)))

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer``; fewer bytes only at the end."""
        target = memoryview(buffer).cast("B")
        have = 0
        while have < len(target) and self._fill():
            count = min(len(target) - have, len(self._piece))
            target[have : have + count] = self._piece[:count]
            self._piece = self._piece[count:]
            have += count
        self.bytes_read += have
        return have

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` with what is there."""
        target = memoryview(buffer).cast("B")
        return self.readinto(target[: len(self._piece)] if self._fill() else b"")

    def finish(self) -> int:
        """Read to the end and give the whole length: then the stream is known to be complete."""
        while self._fill():
            self._piece = memoryview(b"")
        return self._arrived

    def skip(self) -> None:
        """Throw away what is left, up to END: another stream follows on this link."""
        while not self._at_end:
            self._at_end = self._link.receive().kind is Kind.END

    def close(self) -> None:
        """Do nothing: the server reads the rest."""

    def __exit__(self, *_: object) -> None:
        """Do nothing, as ``close``."""
