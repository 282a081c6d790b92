"""A request during which both sides speak: pieces go one way, news the other, until one END.

::

    source                                   target
    REQUEST Pages          ─────────────▶    handler(request, Listener) begins
    DATA 0, 1, 2 …         ─────────────▶    listener.hear()
                           ◀─────────────    EVENT, at any time
    END                    ─────────────▶    hear() returns None
                           ◀─────────────    REPLY, or ERROR (at any time)

A piece arrives whole, as it was said, unlike those of a stream (stream.py), and none waits for
another: who asks for something by an EVENT has it with the next piece.

Pieces, and the END after them, may take several connections in turn (rotation.py); an EVENT only
ever takes the first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pymigrate.runtime.errors import Corrupted, ProtocolError, PymigrateError
from pymigrate.transport import compression, messages
from pymigrate.transport.channel import Timeout
from pymigrate.transport.frames import MAX_PAYLOAD, Buffer, Flag, Frame, Kind
from pymigrate.transport.link import Link
from pymigrate.transport.rotation import Rotation, bind

if TYPE_CHECKING:
    from pymigrate.transport.lane import Lane

_END = struct.Struct(">QI")  # bytes of all pieces, and how many they were
PATIENCE = 0.2  # seconds after which the other connection is looked at, where an ERROR would be


def _nothing() -> None:
    pass


class Speaker:
    """The source's side. One thread may speak while another one hears."""

    def __init__(
        self,
        link: Link,
        refused: Callable[[], None] = lambda: None,
        concluded: Callable[[], None] = lambda: None,
        rotation: Rotation | None = None,
    ) -> None:
        """Speak on ``link``; ``refused`` raises what came by another connection, if anything.

        So does ``concluded`` after our END, but then a REPLY is no refusal: by its own connection
        it may overtake the last news. With a ``rotation`` pieces go by its links, of which ``link``
        is the first.
        """
        self._link = link
        self._rotation = rotation
        self._refused = refused
        self._concluded = concluded
        self._ended = False
        self._pieces = 0
        self._bytes = 0

    def say(
        self, piece: Buffer, packed: bytes | None = None, done: Callable[[], None] = _nothing
    ) -> int:
        """Send one piece, or ``packed``, which is it compressed by zstd; return the bytes to send.

        ``done`` is called when its memory may be used again: by one link before this returns, by
        several in another thread, after it was sent.
        """
        if packed is None:
            frame = Frame(Kind.DATA, piece, number=self._pieces)
        else:
            frame = Frame(Kind.DATA, packed, Flag.ZSTD, self._pieces)
        self._send(frame, done)
        self._pieces += 1
        self._bytes += len(piece)
        return frame.size

    def end(self) -> None:
        """Say that nothing more comes; returns when all has been sent."""
        self._ended = True
        self._send(Frame(Kind.END, _END.pack(self._bytes, self._pieces)), _nothing)
        if self._rotation is not None:
            self._rotation.finish()

    def _send(self, frame: Frame, done: Callable[[], None]) -> None:
        if self._rotation is None:
            self._link.send(frame)
            done()
        else:
            self._rotation.send(self._pieces, frame, done)

    def hear(self, timeout: float | None = None) -> Buffer | None:
        """Wait for news; None if there is none within ``timeout`` seconds.

        Raises PeerError if the target ended the conversation, Unreachable if the line is cut.
        """
        waited = 0.0
        while timeout is None or waited <= timeout:
            wait = PATIENCE if timeout is None else min(PATIENCE, timeout - waited)
            try:
                frame = self._link.receive(timeout=wait)
            except Timeout:
                waited += wait
                (self._concluded if self._ended else self._refused)()
                if timeout is not None and waited >= timeout:
                    return None
                continue
            if frame.kind is Kind.ERROR:
                raise messages.unpack_error(frame.payload)[1]
            if frame.kind is not Kind.EVENT:
                message = f"{self._link.peer} sent {frame.kind.name} in a conversation"
                raise ProtocolError(message)
            return frame.payload
        return None


class Listener:
    """The target's side. One thread may hear while others tell."""

    def __init__(
        self, link: Link, lane: Lane | None = None, *, further: Sequence[Link] = ()
    ) -> None:
        """Listen to ``link``; by ``lane``, which is the caller's, goes what is waited for.

        Pieces come by ``link`` and the ``further`` ones in turn.
        """
        self.lane = lane
        self._link = link
        self._links = (link, *further)
        if further:
            bind(self._links)
        self._pieces = 0
        self._bytes = 0
        self.ended = False

    def hear(self, idle: Callable[[], None] | None = None) -> Buffer | None:
        """Wait for the next piece; None after the last one. ``idle`` is called before each wait.

        Raises Unreachable if the line is cut, Corrupted if a piece is damaged or missing.
        """
        while not self.ended:
            link = self._links[self._pieces % len(self._links)]
            if idle is not None and not link.waiting:
                idle()
            frame = link.receive()
            if frame.kind is Kind.DATA:
                return self._take(frame)
            if frame.kind is Kind.END:
                self._end(frame)
            elif frame.kind is not Kind.EVENT:
                message = f"{self._link.peer} sent {frame.kind.name} in a conversation"
                raise ProtocolError(message)
        return None

    def _take(self, frame: Frame) -> Buffer:
        if frame.number != self._pieces:
            message = f"piece {self._pieces} is missing, {frame.number} came"
            raise Corrupted(message)
        self._pieces += 1
        payload = frame.payload
        if frame.flags & Flag.ZSTD:
            payload = compression.decompress(payload, MAX_PAYLOAD[Kind.DATA])
        self._bytes += len(payload)
        return payload

    def _end(self, frame: Frame) -> None:
        if len(frame.payload) != _END.size:
            message = f"END of {len(frame.payload)} bytes"
            raise ProtocolError(message)
        if _END.unpack(frame.payload) != (self._bytes, self._pieces):
            message = "the conversation ended with other numbers than it had"
            raise Corrupted(message)
        self.ended = True

    def tell(self, news: Buffer) -> None:
        """Send news."""
        self._link.send(Frame(Kind.EVENT, news))

    def give_up(self, error: PymigrateError) -> None:
        """Raise this in whoever hears or tells; for a thread that knows that it is of no use."""
        self._link.give_up(error)
