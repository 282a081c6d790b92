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
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
from pymigrate.transport.beside import Beside
from pymigrate.transport.channel import Channel, Ended, Timeout
from pymigrate.transport.choice import Choice
from pymigrate.transport.compression import LEVEL
from pymigrate.transport.conversation import Listener, Speaker
from pymigrate.transport.frames import Flag, Frame, Kind
from pymigrate.transport.limit import RateLimit
from pymigrate.transport.link import INTERVAL, SILENCE, Link, Traffic
from pymigrate.transport.rotation import Rotation
from pymigrate.transport.stream import Reader, Writer

if TYPE_CHECKING:
    from pymigrate.transport.lane import Way

logger = logging.getLogger(__name__)

OPENING = 5.0  # seconds for a target to say where it listens
WORTHWHILE = 100e6  # bytes a second; under such a limit zstd always pays
PROBE = 1.0  # seconds in which that port must answer, or streams go where the requests go
Handler = Callable[[Any, Any], m.Message]
"""Takes a request and the Reader of its stream, or, for Pages, a Listener."""
Source = Callable[[Writer], object]


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
        self.has_line = has_line
        self.limit = limit
        self.lane: Way | None = None
        """Where a lane can be made, once `open_data` has asked for one."""
        self._watching = (interval, silence)
        self._link = self._watch(channel)
        self._data: Link | None = None
        self._further: list[Link] = []  # by which memory goes, in turn with the one for data
        self._rotation: Rotation | None = None
        self._ways: Sequence[Way] = ()  # of these, as many as are let in
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
        """Count the bytes on the wire, of all connections but the lane."""
        counted = [link.traffic for link in (self._link, *self._beside)]
        return Traffic(sum(each.sent for each in counted), sum(each.received for each in counted))

    @property
    def _beside(self) -> Sequence[Link]:
        return [*([] if self._data is None else [self._data]), *self._further]

    def hello(
        self, migration_id: str = "", *, for_memory: bool = False, timeout: float | None = None
    ) -> m.HelloReply:
        """Introduce ourselves; the first call on a connection; see `messages.hello`.

        Raises ProtocolError or PeerError (43) if the versions do not fit.
        """
        reply = self.call(m.hello(migration_id, for_memory=for_memory), timeout=timeout)
        m.accept(reply)
        return reply

    def open_data(
        self,
        migration_id: str,
        *,
        probe: float = PROBE,
        lane: bool = False,
        streams: int = 1,
        insists: bool = False,
    ) -> str:
        """Have streams take a TLS connection of their own from now on; return why not, or "".

        With ``lane`` the target is asked to let in one more, see `lane`, and with ``streams`` to
        let in those that `widen` makes; older ones do not. The target may lower that number unless
        somebody ``insists`` on it.
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
            streams=streams,
            insists=insists,
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
        self._data = self._watch(channel)
        where = (self._address, opened.port)
        way = Way(where, identity, opened.certificate, self.peer, *self._watching)
        self._ways = [way] * (min(streams, opened.streams) - 1)
        if lane and opened.lane:
            self.lane = way
        return ""

    def widen(self, *, probe: float = PROBE) -> None:
        """Make the further connections for memory that the target lets in, after the lane's.

        It knows them by their order, so the first that cannot be made is the last that is tried.
        """
        ways, self._ways = self._ways, ()
        for way in ways:
            try:
                self._further.append(self._watch(way.connect(probe)))
            except TransportError as error:
                logger.warning("memory goes by %d connections: %s", self.streams, error)
                break
        if self._data is not None and self._further:
            self._rotation = Rotation((self._data, *self._further))

    def _watch(self, channel: Channel) -> Link:
        channel.limit = self.limit
        interval, silence = self._watching
        return Link(channel, interval=interval, silence=silence)

    @property
    def streams(self) -> int:
        """Return how many connections a conversation takes in turn."""
        return 1 + len(self._further)

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
        if type(reply) is not m.ANSWERS[type(request)]:
            message = f"{self.peer} answered {request.DESCRIPTOR.name} with {reply.DESCRIPTOR.name}"
            raise ProtocolError(message)
        return reply

    def converse(self, request: m.Pages) -> Speaker:
        """Begin a conversation; nothing else can be asked here until it is concluded."""
        self._identity += 1
        flags = Flag.NONE if self._data is None else Flag.ASIDE
        request.streams = self.streams
        self._link.send(Frame(Kind.REQUEST, m.pack_request(self._identity, request), flags))
        if self._data is None:
            return Speaker(self._link)
        return Speaker(self._data, self._refused, self._concluded, self._rotation)

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
        for link in self._beside:
            link.close()
        if self._rotation is not None:
            self._rotation.close()
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
        streams: int = 1,
    ) -> None:
        """Watch the channel; requests are answered in ``serve``.

        So many ``streams`` are let in for memory where the source does not insist on a number.
        """
        self._link = Link(channel, interval=interval, silence=silence)
        self._handlers = handlers
        self._greeted = False
        self._beside = Beside(channel.peer, (interval, silence), streams)
        self._refused: Reader | None = None  # a stream beside, not read to its end

    def serve(self) -> None:
        """Answer until the other side hangs up between two requests.

        Raises Unreachable if the line was cut otherwise, ProtocolError, Corrupted, PeerError (the
        other side's last word), and whatever is not a PymigrateError in a handler.
        """
        with self._link, contextlib.ExitStack() as undo:
            undo.callback(self._beside.close)
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
                listener = self._listener(request, frame.flags)
                return Frame(Kind.REPLY, m.pack_reply(identity, self._handle(request, listener)))
            stream = self._stream(type(request) in m.STREAMED, frame.flags)
            reply = self._handle(request, stream)
            stream.finish()
            return Frame(Kind.REPLY, m.pack_reply(identity, reply))
        except PymigrateError as error:
            self._beside.check()  # one connection is of no use without the other
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
        link = self._beside.bulk()
        if self._refused is not None:
            self._refused.skip()
            self._refused = None
        return Reader(link)

    def _listener(self, request: m.Pages, flags: Flag) -> Listener:
        """Give the conversation that a request begins, by whatever connections it says."""
        if flags & Flag.ASIDE:
            link, further = self._beside.bulk(), self._beside.further(request.streams)
        elif request.streams > 1:
            message = (
                f"{self._link.peer} sends memory by more connections than the one for requests"
            )
            raise ProtocolError(message)
        else:
            link, further = self._link, ()
        lane = self._beside.lane() if request.lane else None
        return Listener(link, lane, further=further)

    def _open_data(self, request: m.OpenData) -> m.DataOpened:
        """Listen for the source's other connections; earlier ones are given up."""
        self._refused = None
        return self._beside.open(request)

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
