"""Requests and replies over a channel: one asks, the other has a table of handlers.

::

    source                                   target
    REQUEST Hello          ─────────────▶    versions are compared
                           ◀─────────────    REPLY HelloReply, or ERROR
    REQUEST PutFiles       ─────────────▶    handler(request, stream) begins
    DATA 0, 1, 2 …         ─────────────▶    stream.read()
    END                    ─────────────▶    stream complete
                           ◀─────────────    REPLY Received, or ERROR (at any time)
    (either side: PING while it has nothing else to say)

One request is answered at a time. An ERROR with the id 0 is the other side's last word.

The DATA and END of a request that has the flag ASIDE come over a second connection, which was made
by OpenData (direct.py). If either connection is lost, both are given up.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, overload

from pymigrate.runtime.errors import (
    PeerError,
    ProtocolError,
    PymigrateError,
    TransportError,
    Unreachable,
)
from pymigrate.transport import messages as m
from pymigrate.transport.channel import Channel, Ended, Timeout
from pymigrate.transport.choice import Choice
from pymigrate.transport.compression import LEVEL
from pymigrate.transport.conversation import Listener, Speaker
from pymigrate.transport.frames import Flag, Frame, Kind
from pymigrate.transport.limit import RateLimit
from pymigrate.transport.link import INTERVAL, SILENCE, Link, Traffic
from pymigrate.transport.stream import Reader, Writer

if TYPE_CHECKING:
    from pymigrate.transport.direct import Door
    from pymigrate.transport.lane import Lane, Way

OPENING = 5.0  # seconds for a target to say where it listens
WORTHWHILE = 100e6  # bytes a second; under such a limit zstd always pays
PROBE = 1.0  # seconds in which that port must answer, or streams go where the requests go
Handler = Callable[[Any, Any], m.Message]
"""Takes a request and the Reader of its stream, or, for Pages, a Listener."""
Source = Callable[[Writer], object]

_ANSWERS: dict[type[m.Message], type[m.Message]] = {
    m.Hello: m.HelloReply,
    m.Reserve: m.Reserved,
    m.Prepare: m.Prepared,
    m.PutLayer: m.Received,
    m.PutFiles: m.Received,
    m.PutChanges: m.Received,
    m.PutImages: m.Received,
    m.PutImageFiles: m.Received,
    m.Restore: m.Restored,
    m.Resume: m.Resumed,
    m.Release: m.Released,
    m.Finish: m.Finished,
    m.Status: m.StatusReply,
    m.Keepalive: m.KeptAlive,
    m.OpenData: m.DataOpened,
    m.Pages: m.PagesTaken,
    m.AskRepository: m.RepositoryTold,
}


class Client:
    """Asks. Owns its channel. Calls from several threads take turns."""

    def __init__(
        self,
        channel: Channel,
        *,
        level: int | None = LEVEL,
        interval: float = INTERVAL,
        silence: float = SILENCE,
        address: str | None = None,
        limit: RateLimit | None = None,
        has_line: bool = True,
    ) -> None:
        """Watch the channel; ``level`` is zstd's for streams, where that pays; None for never.

        ``address`` is the other host's, for ``open_data``; ``limit`` is for all that is sent.
        ``has_line`` says that nobody else uses the connection that the channel goes by.
        """
        channel.limit = limit
        self.has_line = has_line
        self.limit = limit
        self.lane: Way | None = None
        """Where a lane can be made, once `open_data` has asked for one."""
        self._link = Link(channel, interval=interval, silence=silence)
        self._data: Link | None = None
        self._watching = (interval, silence)
        self._address = address
        self._choice = Choice(level, fixed=limit is not None and limit.rate < WORTHWHILE)
        self._turn = threading.Lock()
        self._identity = 0
        self._kept: m.Message | None = None  # a reply that came before the last news did
        self._pool: ThreadPoolExecutor | None = None

    @property
    def peer(self) -> str:
        """Name the other side, for messages."""
        return self._link.peer

    @property
    def traffic(self) -> Traffic:
        """Count the bytes on the wire, of both connections."""
        control, data = self._link.traffic, self._data.traffic if self._data else Traffic()
        return Traffic(control.sent + data.sent, control.received + data.received)

    def hello(
        self, migration_id: str = "", *, for_memory: bool = False, timeout: float | None = None
    ) -> m.HelloReply:
        """Introduce ourselves; the first call on a connection; see `messages.hello`.

        Raises ProtocolError or PeerError (43) if the versions do not fit.
        """
        reply = self.call(m.hello(migration_id, for_memory=for_memory), timeout=timeout)
        m.accept(reply)
        return reply

    def open_data(self, migration_id: str, *, probe: float = PROBE, lane: bool = False) -> str:
        """Have streams take a TLS connection of their own from now on; return why not, or "".

        With ``lane`` the target is asked to let in one more, see `lane`; older ones do not.
        After a no everything is as it was. Raises what ``call`` raises if our own connection is
        of no use any more.
        """
        from pymigrate.transport import tls  # ssl takes 10 ms to load
        from pymigrate.transport.lane import Way

        if self._address is None:
            return f"{self.peer} is reached through another host or a program"
        identity = tls.Identity.make()
        request = m.OpenData(
            migration_id=migration_id,
            certificate=identity.certificate,
            address=self._address,
            lane=lane,
        )
        try:
            opened = self.call(request, timeout=OPENING)
            channel = tls.connect(
                (self._address, opened.port),
                identity,
                opened.certificate,
                peer=self.peer,
                timeout=probe,
            )
        except TransportError as error:
            self._link.check()
            return error.message
        channel.limit = self.limit
        interval, silence = self._watching
        self._data = Link(channel, interval=interval, silence=silence)
        if lane and opened.lane:
            where = (self._address, opened.port)
            self.lane = Way(where, identity, opened.certificate, self.peer, interval, silence)
        return ""

    @overload
    def call(self, request: m.Hello, *, timeout: float | None = None) -> m.HelloReply: ...
    @overload
    def call(self, request: m.Reserve, *, timeout: float | None = None) -> m.Reserved: ...
    @overload
    def call(self, request: m.Prepare, *, timeout: float | None = None) -> m.Prepared: ...
    @overload
    def call(
        self,
        request: m.PutLayer | m.PutFiles | m.PutChanges | m.PutImages | m.PutImageFiles,
        stream: Source,
        *,
        timeout: float | None = None,
    ) -> m.Received: ...
    @overload
    def call(self, request: m.Restore, *, timeout: float | None = None) -> m.Restored: ...
    @overload
    def call(self, request: m.Resume, *, timeout: float | None = None) -> m.Resumed: ...
    @overload
    def call(self, request: m.Release, *, timeout: float | None = None) -> m.Released: ...
    @overload
    def call(self, request: m.Finish, *, timeout: float | None = None) -> m.Finished: ...
    @overload
    def call(self, request: m.Status, *, timeout: float | None = None) -> m.StatusReply: ...
    @overload
    def call(self, request: m.Keepalive, *, timeout: float | None = None) -> m.KeptAlive: ...
    @overload
    def call(
        self, request: m.AskRepository, *, timeout: float | None = None
    ) -> m.RepositoryTold: ...
    @overload
    def call(self, request: m.OpenData, *, timeout: float | None = None) -> m.DataOpened: ...

    def call(
        self, request: m.Message, stream: Source | None = None, *, timeout: float | None = None
    ) -> m.Message:
        """Send a request, with ``stream(writer)`` what belongs to it, and wait for the reply.

        ``timeout`` in seconds is for the answer, after the stream; without it only a silent link
        ends the wait. Raises PeerError for what the other side reports, Timeout, Unreachable,
        ProtocolError, Corrupted; and whatever ``stream`` raises, after the other side was told.
        After PeerError, Timeout and errors of ``stream`` the connection can still be used.
        """
        if (type(request) in m.STREAMED) != (stream is not None):
            message = f"{request.DESCRIPTOR.name} with{'out' if stream is None else ''} a stream"
            raise ValueError(message)
        with self._turn:
            self._identity += 1
            packed = m.pack_request(self._identity, request)
            data = self._data if stream is not None else None
            flags = Flag.NONE if data is None else Flag.ASIDE
            try:
                self._link.send(Frame(Kind.REQUEST, packed, flags))
                if stream is not None:
                    self._send_stream(stream, data or self._link)
            except Unreachable:
                self._refused()  # why the other side hung up, if it said so
                raise
            reply = self._answer(timeout)
        if type(reply) is not _ANSWERS[type(request)]:
            message = f"{self.peer} answered {request.DESCRIPTOR.name} with {reply.DESCRIPTOR.name}"
            raise ProtocolError(message)
        return reply

    def converse(self, request: m.Pages) -> Speaker:
        """Begin a conversation; nothing else can be asked here until it is concluded."""
        self._identity += 1
        flags = Flag.NONE if self._data is None else Flag.ASIDE
        self._link.send(Frame(Kind.REQUEST, m.pack_request(self._identity, request), flags))
        if self._data is None:
            return Speaker(self._link)
        return Speaker(self._data, self._refused, self._concluded)

    def conclude(self, *, timeout: float | None = None) -> m.PagesTaken:
        """Wait for the reply to a conversation that was ended. Raises what ``call`` raises."""
        kept, self._kept = self._kept, None
        reply = kept or self._answer(timeout)
        if not isinstance(reply, m.PagesTaken):
            message = f"{self.peer} answered Pages with {reply.DESCRIPTOR.name}"
            raise ProtocolError(message)
        return reply

    def _send_stream(self, stream: Source, link: Link) -> None:
        if self._pool is None:
            workers = max(2, min(4, os.cpu_count() or 1))
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="compress")
        writer = Writer(link, self._pool, choice=self._choice, refused=self._refused)
        with writer:
            stream(writer)

    def _refused(self) -> None:
        """Raise the error that the other side sent while we were still sending.

        Also the end of the connection that the answer would come by, if it is not the same.
        """
        if self._link.waiting:
            try:
                reply = self._answer(0)
            except Timeout:
                return  # that was the late answer to an earlier request
            message = f"{self.peer} sent {reply.DESCRIPTOR.name} before the stream was complete"
            raise ProtocolError(message)
        self._link.check()

    def _concluded(self) -> None:
        """Keep the reply to a conversation if it has come already; raise an error as it does."""
        if self._kept is None and self._link.waiting:
            with contextlib.suppress(Timeout):  # that was the late answer to an earlier request
                self._kept = self._answer(0)
        self._link.check()

    def _answer(self, timeout: float | None) -> m.Message:
        """Wait for the reply to the current request, dropping answers to those that timed out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            frame = self._link.receive(timeout=left)
            if frame.kind is Kind.EVENT:
                continue
            if frame.kind is Kind.ERROR:
                identity, error = m.unpack_error(frame.payload)
                if identity in (0, self._identity):
                    raise error
            elif frame.kind is Kind.REPLY:
                identity, reply = m.unpack_reply(frame.payload)
                if identity == self._identity:
                    return reply
            else:
                message = f"{self.peer} sent {frame.kind.name} instead of an answer"
                raise ProtocolError(message)
            if identity > self._identity:
                message = f"{self.peer} answered a request that was never made"
                raise ProtocolError(message)

    def give_up(self, error: PymigrateError) -> None:
        """Raise this in whoever waits for an answer; for a thread that knows there will be none."""
        self._link.give_up(error)

    def close(self) -> None:
        """Hang up; may be repeated."""
        if self._data is not None:
            self._data.close()
        self._link.close()
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Client:
        """Hang up at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.close()


class Server:
    """Answers, by a table from the class of a request to its handler. Owns its channel.

    A handler gets the request and a Reader of its stream (empty if the request has none), and
    returns the reply. A PymigrateError of a handler becomes the answer. Anything else that a
    handler raises is a defect: the other side gets code 1, and ``serve`` raises it again.
    What a handler keeps of a stream it must treat as incomplete until ``stream.finish()``
    returned; the server calls that too before it sends the reply.
    """

    def __init__(
        self,
        channel: Channel,
        handlers: Mapping[type[m.Message], Handler],
        *,
        interval: float = INTERVAL,
        silence: float = SILENCE,
    ) -> None:
        """Watch the channel; requests are answered in ``serve``."""
        self._link = Link(channel, interval=interval, silence=silence)
        self._handlers = handlers
        self._greeted = False
        self._watching = (interval, silence)
        self._door: Door | None = None
        self._data: Link | None = None
        self._lane: Lane | None = None
        self._refused: Reader | None = None  # a stream on _data, not read to its end

    def serve(self) -> None:
        """Answer until the other side hangs up between two requests.

        Raises Unreachable if the line was cut otherwise, ProtocolError, Corrupted, PeerError (the
        other side's last word), and whatever is not a PymigrateError in a handler.
        """
        with self._link, contextlib.ExitStack() as undo:
            undo.callback(self._close_data)
            while True:
                try:
                    frame = self._link.receive()
                except Ended:
                    return
                if frame.kind is Kind.REQUEST:
                    self._link.send(self._respond(frame))
                elif frame.kind is Kind.ERROR:
                    raise m.unpack_error(frame.payload)[1]
                elif frame.kind is Kind.REPLY:
                    message = f"{self._link.peer} sent a reply, and nothing was asked"
                    raise ProtocolError(message)
                # DATA and END here belong to a request that was refused before its stream ended.

    def _respond(self, frame: Frame) -> Frame:
        try:
            identity, request = m.unpack_request(frame.payload)
        except ProtocolError as error:
            return Frame(Kind.ERROR, m.pack_error(m.request_id(frame.payload), error))
        stream: Reader | None = None
        try:
            if isinstance(request, m.Pages):
                link = self._bulk(frame.flags)
                listener = Listener(link, self._made_lane() if request.lane else None)
                return Frame(Kind.REPLY, m.pack_reply(identity, self._handle(request, listener)))
            stream = self._stream(type(request) in m.STREAMED, frame.flags)
            reply = self._handle(request, stream)
            stream.finish()
            return Frame(Kind.REPLY, m.pack_reply(identity, reply))
        except PymigrateError as error:
            if self._data is not None:
                self._data.check()  # one connection is of no use without the other
            if stream is not None and frame.flags & Flag.ASIDE:
                self._refused = stream
            return Frame(Kind.ERROR, m.pack_error(identity, error))
        except BaseException as error:
            # Not swallowed: it ends the server. But the other side should not have to guess.
            self._tell_of_defect(identity, error)
            raise

    def _stream(self, expected: bool, flags: Flag) -> Reader:
        """Give the stream of a request, wherever it comes from."""
        if not expected or not flags & Flag.ASIDE:
            return Reader(self._link, empty=not expected)
        link = self._bulk(flags)
        if self._refused is not None:
            self._refused.skip()
            self._refused = None
        return Reader(link)

    def _bulk(self, flags: Flag) -> Link:
        """Give the connection by which what follows a request comes."""
        if not flags & Flag.ASIDE:
            return self._link
        if self._data is None:
            self._data = None if self._door is None else self._door.link()
        if self._data is None:
            message = f"{self._link.peer} sends a stream over a connection that it never made"
            raise ProtocolError(message)
        return self._data

    def _made_lane(self) -> Lane:
        """Give the second connection of the door, beside that for bulk data."""
        from pymigrate.transport.lane import Lane

        channel = None if self._door is None else self._door.lane()
        if channel is None:
            message = f"{self._link.peer} speaks of a lane that it never made"
            raise ProtocolError(message)
        interval, silence = self._watching
        self._lane = Lane(channel, interval=interval, silence=silence)
        return self._lane

    def _open_data(self, request: m.OpenData) -> m.DataOpened:
        """Listen for the source's second connection; an earlier one is given up."""
        from pymigrate.transport import direct  # cryptography takes 50 ms to load

        self._close_data()
        interval, silence = self._watching
        self._door = direct.open_door(
            request.address,
            request.certificate,
            lambda channel: Link(channel, interval=interval, silence=silence),
            peer=self._link.peer,
            lane=request.lane,
        )
        return m.DataOpened(
            port=self._door.port, certificate=self._door.certificate, lane=request.lane
        )

    def _close_data(self) -> None:
        door, self._door = self._door, None
        data, self._data = self._data, None
        lane, self._lane = self._lane, None
        self._refused = None
        if door is not None:
            door.close()
        if data is not None:
            data.close()
        if lane is not None:
            lane.close()

    def _handle(self, request: m.Message, stream: Reader | Listener) -> m.Message:
        handler = self._handlers.get(type(request))
        if isinstance(request, m.Hello):
            protocol = m.negotiate(request)
            self._greeted = True
            reply = m.HelloReply() if handler is None else handler(request, stream)
            if isinstance(reply, m.HelloReply):
                reply.protocol = protocol
                reply.protocol_min, reply.protocol_max = m.PROTOCOL_MIN, m.PROTOCOL
                reply.software = m.software()
                reply.serves.extend(sorted(kind.DESCRIPTOR.name for kind in self._handlers))
            return reply
        if not self._greeted:
            message = f"{request.DESCRIPTOR.name} before Hello"
            raise ProtocolError(message)
        if isinstance(request, m.OpenData):
            return self._open_data(request)
        if handler is None:
            message = f"{request.DESCRIPTOR.name} is not served here"
            raise ProtocolError(message)
        return handler(request, stream)

    def _tell_of_defect(self, identity: int, error: BaseException) -> None:
        what = "was stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        told = PymigrateError(
            f"the agent {what}: internal error ({type(error).__name__}: {error})",
            hint="this is a defect; the agent's own output has the traceback (--debug shows it)",
        )
        try:
            self._link.send(Frame(Kind.ERROR, m.pack_error(identity, told)))
        except PymigrateError as lost:
            error.add_note(f"the other side could not be told: {lost.message}")


__all__ = ["Client", "Handler", "PeerError", "Reader", "Server", "Source", "Traffic", "Writer"]
