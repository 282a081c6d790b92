"""Calls and streams over a loopback: answers, errors that cross, damage, silence."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymigrate.runtime.errors import (
    Corrupted,
    NoSpace,
    PeerError,
    ProtocolError,
    PymigrateError,
    Unreachable,
)
from pymigrate.transport import compression, loopback
from pymigrate.transport import messages as m
from pymigrate.transport.channel import StreamChannel, Timeout
from pymigrate.transport.choice import Choice
from pymigrate.transport.conversation import Listener
from pymigrate.transport.frames import CHUNK_SIZE, MAX_PAYLOAD, Flag, Frame, Kind, encode
from pymigrate.transport.link import BEGINNING, Link
from pymigrate.transport.loopback import LoopbackChannel
from pymigrate.transport.rpc import Client, Handler, Server
from pymigrate.transport.stream import BUFFERS, Aborted, Reader, Writer
from tests.lab.registry import wait_for

Handlers = Mapping[type[m.Message], Handler]
PUT = m.PutFiles(migration_id="a", tree="upper")
END = struct.Struct(">QI")


class Served:
    """A server in a thread, and how it ended."""

    def __init__(self, handlers: Handlers, channel: LoopbackChannel, silence: float) -> None:
        self.ended: BaseException | None = None
        self._server = Server(channel, handlers, interval=silence / 4, silence=silence)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._server.serve()
        except BaseException as error:
            self.ended = error


@contextlib.contextmanager
def conversation(handlers: Handlers, *, silence: float = 20) -> Iterator[tuple[Client, Served]]:
    """Give a client that has said hello, and the server behind it; take both away afterwards."""
    left, right = loopback.pair("beta", "alpha")
    served = Served(handlers, right, silence)
    with Client(left, interval=silence / 4, silence=silence) as client:
        client.hello("a")
        yield client, served
    served.thread.join(10)
    assert not served.thread.is_alive()


@contextlib.contextmanager
def by_hand() -> Iterator[tuple[LoopbackChannel, Reader]]:
    """Send frames as one likes to a Reader."""
    left, right = loopback.pair()
    with contextlib.closing(left), Link(right) as link:
        yield left, Reader(link)


def received(_: object, stream: Reader) -> m.Received:
    return m.Received(bytes=stream.finish())


class TestCalls:
    """One question, one answer."""

    def test_a_request_gets_its_handlers_reply(self) -> None:
        def status(request: m.Status, _: Reader) -> m.StatusReply:
            return m.StatusReply(phase=request.migration_id, running=True)

        with conversation({m.Status: status}) as (client, served):
            reply = client.call(m.Status(migration_id="mig-7"))

        assert reply == m.StatusReply(phase="mig-7", running=True)
        assert served.ended is None

    def test_hello_fills_in_versions_and_keeps_the_handlers_facts(self) -> None:
        def hello(_: m.Hello, __: Reader) -> m.HelloReply:
            return m.HelloReply(hostname="beta", facts=m.Facts(cgroup="v2"))

        with conversation({m.Hello: hello}) as (client, _):
            reply = client.hello()

        assert (reply.hostname, reply.facts.cgroup) == ("beta", "v2")
        assert (reply.protocol, reply.software) == (m.PROTOCOL, m.software())

    def test_hello_says_what_is_served_so_that_no_stream_is_sent_in_vain(self) -> None:
        handlers = {m.PutFiles: lambda *_: m.Received(), m.Status: lambda *_: m.StatusReply()}
        with conversation(handlers) as (client, _):
            assert list(client.hello().serves) == ["PutFiles", "Status"]

    def test_nothing_is_answered_before_hello(self) -> None:
        left, right = loopback.pair()
        served = Served({m.Status: lambda *_: m.StatusReply()}, right, 20)

        with Client(left) as client, pytest.raises(PeerError, match="before Hello") as caught:
            client.call(m.Status(migration_id="a"))
        served.thread.join()

        assert caught.value.peer_code == ProtocolError.exit_code

    def test_an_older_peer_is_refused_with_both_versions(self) -> None:
        left, right = loopback.pair()
        served = Served({}, right, 20)
        old = m.Hello(protocol_min=90, protocol_max=91, software="pymigrate 7")

        with Client(left) as client, pytest.raises(PeerError, match="protocol 90 to 91") as caught:
            client.call(old)
        served.thread.join()

        assert caught.value.peer_code == ProtocolError.exit_code
        assert "older" in caught.value.hint

    def test_a_request_without_handler_is_refused_and_the_next_one_served(self) -> None:
        with conversation({m.Finish: lambda *_: m.Finished()}) as (client, _):
            with pytest.raises(PeerError, match="not served here"):
                client.call(m.Status(migration_id="a"))
            assert client.call(m.Finish(migration_id="a")) == m.Finished()

    def test_a_stream_is_given_to_the_requests_that_have_one_and_only_those(self) -> None:
        with conversation({}) as (client, _):
            with pytest.raises(ValueError, match="without a stream"):
                client.call(PUT)  # type: ignore[call-overload]
            with pytest.raises(ValueError, match="with a stream"):
                client.call(m.Status(migration_id="a"), lambda w: None)  # type: ignore[call-overload]

    def test_a_late_answer_is_not_taken_for_the_next_one(self) -> None:
        go_on = threading.Event()

        def restore(_: m.Restore, __: Reader) -> m.Restored:
            go_on.wait()
            return m.Restored(pid=1)

        handlers: Handlers = {m.Restore: restore, m.Status: lambda *_: m.StatusReply(name="web")}
        with conversation(handlers) as (client, _):
            with pytest.raises(Timeout, match=r"did not answer within 0\.05 s"):
                client.call(m.Restore(migration_id="a"), timeout=0.05)
            go_on.set()
            assert client.call(m.Status(migration_id="a")).name == "web"


class TestErrorsCross:
    """Message, hint and exit code; never a pickle or a traceback."""

    def test_an_error_of_a_handler_arrives_with_its_code_and_hint(self) -> None:
        def full(_: m.Reserve, __: Reader) -> m.Reserved:
            message = "beta: 3 GiB are missing"
            raise NoSpace(message, hint="make room")

        with conversation({m.Reserve: full, m.Finish: lambda *_: m.Finished()}) as (client, served):
            with pytest.raises(PeerError) as caught:
                client.call(m.Reserve(migration_id="a", name="web"))
            client.call(m.Finish(migration_id="a"))

        error = caught.value
        assert (error.message, error.hint, error.peer_code) == (
            "beta: 3 GiB are missing",
            "make room",
            24,
        )
        assert served.ended is None

    @pytest.mark.parametrize("defect", [ZeroDivisionError("x"), KeyboardInterrupt()])
    def test_a_defect_in_a_handler_is_told_and_ends_the_server(self, defect: BaseException) -> None:
        def broken(_: m.Status, __: Reader) -> m.StatusReply:
            raise defect

        with conversation({m.Status: broken}) as (client, served):
            with pytest.raises(PeerError, match="internal error") as caught:
                client.call(m.Status(migration_id="a"))
            served.thread.join()
            with pytest.raises(Unreachable):
                client.call(m.Status(migration_id="a"))

        assert caught.value.peer_code == 1
        assert served.ended is defect

    def test_an_error_in_the_middle_of_a_stream_stops_the_stream(self) -> None:
        def full(_: m.PutFiles, stream: Reader) -> m.Received:
            stream.read(1000)
            message = "disk full"
            raise NoSpace(message)

        written = 0

        def endless(writer: Writer) -> None:
            nonlocal written
            while True:
                written += writer.write(bytes(CHUNK_SIZE))

        with conversation({m.PutFiles: full, m.PutImages: received}) as (client, _):
            with pytest.raises(PeerError, match="disk full"):
                client.call(PUT, endless)
            reply = client.call(m.PutImages(migration_id="a"), lambda w: w.write(b"abc"))

        assert reply.bytes == 3
        assert written >= CHUNK_SIZE

    def test_an_error_of_the_source_reaches_the_handler_as_aborted_and_the_caller_as_itself(
        self,
    ) -> None:
        seen: list[PymigrateError] = []

        def put(_: m.PutFiles, stream: Reader) -> m.Received:
            try:
                stream.finish()
            except PymigrateError as error:
                seen.append(error)
                raise
            return m.Received()

        def unreadable(writer: Writer) -> None:
            writer.write(b"x" * 5_000_000)
            raise PermissionError("no")

        handlers: Handlers = {m.PutFiles: put, m.Status: lambda *_: m.StatusReply(name="on")}
        with conversation(handlers) as (client, _):
            with pytest.raises(PermissionError):
                client.call(PUT, unreadable)
            assert client.call(m.Status(migration_id="a")).name == "on"

        assert [Aborted] == [type(error) for error in seen]


class TestStreams:
    """What was written is what is read, or an error says so."""

    @settings(deadline=None, max_examples=30)
    @given(
        st.lists(st.binary(max_size=5000), max_size=8),
        st.lists(st.integers(1, 7000), min_size=1),
        st.sampled_from([None, 1]),
    )
    def test_any_writes_and_any_reads_give_the_same_bytes(
        self, writes: list[bytes], sizes: list[int], level: int | None
    ) -> None:
        got = bytearray()

        def put(_: m.PutFiles, stream: Reader) -> m.Received:
            turn = 0
            while part := stream.read(sizes[turn % len(sizes)]):
                got.extend(part)
                turn += 1
            return m.Received(bytes=stream.bytes_read)

        def write_all(writer: Writer) -> None:
            for part in writes:
                assert len(part) == writer.write(part)

        with conversation({m.PutFiles: put}) as (client, _):
            client._choice = Choice(level)
            reply = client.call(PUT, write_all)

        assert bytes(got) == b"".join(writes)
        assert reply.bytes == len(got)

    def test_a_big_stream_of_both_kinds_keeps_its_order(self) -> None:
        noise = os.urandom(CHUNK_SIZE // 2)
        pieces = [noise, b"text " * 100_000, bytes(3 * CHUNK_SIZE), noise] * 6
        got = bytearray()

        def put(_: m.PutFiles, stream: Reader) -> m.Received:
            place = bytearray(777_777)
            while count := stream.readinto(place):
                got.extend(place[:count])
            return m.Received(bytes=len(got))

        with conversation({m.PutFiles: put}) as (client, _):
            client._choice = Choice(1, fixed=True)
            client.call(PUT, lambda w: [w.write(piece) for piece in pieces])
            sent = client.traffic.sent

        assert got == b"".join(pieces)
        assert sent < len(got) / 3

    def test_what_a_handler_does_not_read_is_still_checked_and_passed_over(self) -> None:
        handlers: Handlers = {m.PutFiles: lambda *_: m.Received(), m.PutImages: received}
        with conversation(handlers) as (client, _):
            client.call(PUT, lambda w: w.write(bytes(20 * CHUNK_SIZE)))
            reply = client.call(m.PutImages(migration_id="a"), lambda w: w.write(b"12345"))

        assert reply.bytes == 5

    def test_a_slow_reader_bounds_what_the_writer_holds(self) -> None:
        may_read = threading.Event()
        taken: list[int] = []

        def put(_: m.PutFiles, stream: Reader) -> m.Received:
            may_read.wait()
            return received(_, stream)

        def write_much(writer: Writer) -> None:
            noise = os.urandom(CHUNK_SIZE)
            for number in range(60):
                taken.append(number)
                if number == 59:
                    raise AssertionError("nothing held the writer back")
                writer.write(noise)

        with conversation({m.PutFiles: put}) as (client, _):
            finished = threading.Thread(target=lambda: _expect_assertion(client, write_much))
            finished.start()
            finished.join(0.5)
            held = len(taken)
            may_read.set()
            finished.join(10)

        # The writer's buffers, the loopback's capacity and the reader's frames; no more.
        assert held <= BUFFERS + 4 + 8 + 3

    def test_reading_without_a_bound_is_refused(self) -> None:
        with by_hand() as (_, reader), pytest.raises(ValueError, match="needs a size"):
            reader.read()


def _expect_assertion(client: Client, source: Callable[[Writer], None]) -> None:
    with pytest.raises(AssertionError, match="held the writer back"):
        client.call(PUT, source)


class TestConversationsAside:
    """A conversation by a connection of its own, whose reply comes by the other one."""

    @pytest.fixture
    def ends(self) -> Iterator[tuple[Client, Link, Link]]:
        """Give a client with both connections, and the other ends of them."""
        (near, far), (data, far_data) = loopback.pair("beta", "alpha"), loopback.pair()
        with Client(near) as client, Link(far) as peer, Link(far_data) as aside:
            client._data = Link(data)
            yield client, peer, aside

    @staticmethod
    def reply(client: Client, peer: Link, body: m.Message) -> None:
        """Answer the request, and wait until the answer is there."""
        identity, _ = m.unpack_request(peer.receive().payload)
        peer.send(Frame(Kind.REPLY, m.pack_reply(identity, body)))
        assert wait_for(lambda: client._link.waiting, 30)

    def test_reply_that_overtakes_the_last_news_is_kept(
        self, ends: tuple[Client, Link, Link]
    ) -> None:
        client, peer, aside = ends
        speaker = client.converse(m.Pages(migration_id="a"))
        speaker.end()
        self.reply(client, peer, m.PagesTaken(pages=3))

        heard = speaker.hear(timeout=0.001)
        aside.send(Frame(Kind.EVENT, b"complete"))

        assert heard is None
        assert b"complete" == speaker.hear()
        assert 3 == client.conclude().pages

    def test_who_listens_does_something_before_each_wait_and_only_then(self) -> None:
        near, far = loopback.pair()
        with Link(near) as source, Link(far) as target:
            listener = Listener(target)
            for number in range(3):
                source.send(Frame(Kind.DATA, b"x", number=number))
            source.send(Frame(Kind.EVENT, b"nothing to hear"))
            assert wait_for(lambda: len(target._frames) == 4, 30)
            waits: list[str] = []

            def idle() -> None:
                waits.append("once")
                source.send(Frame(Kind.END, END.pack(3, 3)))

            assert [b"x"] * 3 == [listener.hear(idle) for _ in range(3)]
            assert [] == waits
            assert listener.hear(idle) is None
            assert ["once"] == waits

    def test_reply_before_the_end_is_a_refusal(self, ends: tuple[Client, Link, Link]) -> None:
        client, peer, _ = ends
        speaker = client.converse(m.Pages(migration_id="a"))
        self.reply(client, peer, m.PagesTaken())

        with pytest.raises(ProtocolError, match="before the stream was complete"):
            speaker.hear(timeout=0.001)


class TestHostileStreams:
    """A stream that is not what its END says is never taken for complete."""

    @pytest.mark.parametrize(
        ("sent", "error", "says"),
        [
            ([Frame(Kind.DATA, b"x", number=1)], Corrupted, "missing"),
            (
                [Frame(Kind.DATA, b"x"), Frame(Kind.DATA, b"x")],
                Corrupted,
                "piece 1 of the stream is missing",
            ),
            ([Frame(Kind.DATA, b"x"), Frame(Kind.END, END.pack(2, 1))], Corrupted, "arrived as 1"),
            ([Frame(Kind.DATA, b"x"), Frame(Kind.END, END.pack(1, 2))], Corrupted, "in 2 pieces"),
            ([Frame(Kind.END, b"")], ProtocolError, "END of 0 bytes"),
            ([Frame(Kind.END, END.pack(0, 0), Flag.ABORTED)], Aborted, "gave up"),
            ([Frame(Kind.REQUEST, b"")], ProtocolError, "in the middle of a stream"),
            ([Frame(Kind.DATA, b"not zstd", Flag.ZSTD)], Corrupted, "cannot be read"),
            ([Frame(Kind.DATA, b"", Flag.ZSTD)], Corrupted, "cannot be read"),
        ],
    )
    def test_it_is_refused(self, sent: list[Frame], error: type[PymigrateError], says: str) -> None:
        with by_hand() as (left, reader):
            for frame in sent:
                left.send(frame)
            with pytest.raises(error, match=says):
                reader.finish()

    def test_the_end_of_the_line_is_not_the_end_of_the_stream(self) -> None:
        with by_hand() as (left, reader):
            left.send(Frame(Kind.DATA, b"x"))
            left.close()
            with pytest.raises(Unreachable):
                reader.finish()

    def test_a_bomb_is_refused_by_the_size_it_states(self) -> None:
        bomb = compression.compress(bytes(64 << 20))
        assert bomb is not None

        with by_hand() as (left, reader):
            left.send(Frame(Kind.DATA, bomb, Flag.ZSTD))
            with pytest.raises(ProtocolError, match="states 67108864 bytes"):
                reader.read(1)

    def test_a_bomb_that_lies_about_its_size_is_bounded(self) -> None:
        bomb = bytearray(compression.compress(bytes(64 << 20)) or b"")
        # RFC 8878, 3.1.1.1: magic, descriptor, window, and here four bytes of content size.
        assert bomb[4] == 0b1000_0000
        bomb[6:10] = struct.pack("<I", 1000)

        with pytest.raises(Corrupted):
            compression.decompress(bytes(bomb), MAX_PAYLOAD[Kind.DATA])

    @given(st.binary(max_size=300))
    def test_arbitrary_compressed_bytes_raise_only_our_errors(self, noise: bytes) -> None:
        for data in (noise, b"\x28\xb5\x2f\xfd" + noise):
            with contextlib.suppress(Corrupted, ProtocolError):
                assert len(compression.decompress(data, 1000)) <= 1000


class Damaging(LoopbackChannel):
    """A channel whose receiver gets what `damage` makes of the bytes of the n-th frame."""

    def __init__(self, inner: LoopbackChannel, at: int, damage: Callable[[bytes], bytes]) -> None:
        super().__init__(inner._outgoing, inner._incoming, peer=inner.peer)
        self._at = at
        self._damage = damage
        self._sent = 0

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        self._sent += 1
        if self._sent == self._at:
            lane = self._outgoing
            with lane.changed:
                data = self._damage(encode(frame))
                lane.frames.append(data)
                lane.size += len(data)
                lane.changed.notify_all()
            return
        super().send(frame, timeout=timeout)


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("damage", [_flip, lambda d: d[:-1], lambda d: b"noise" + d])
def test_damage_of_any_frame_is_noticed_and_told(at: int, damage: Callable[[bytes], bytes]) -> None:
    """Hello, PutFiles, four pieces, END: whichever is hit, the call fails and the server ends."""
    left, right = loopback.pair("beta", "alpha")
    served = Served({m.PutFiles: received}, right, 20)

    def talk(client: Client) -> None:
        client.hello(timeout=0.3)
        client.call(PUT, lambda w: w.write(b"\x01" * (4 * CHUNK_SIZE)), timeout=0.3)

    client = Client(Damaging(left, at, damage), level=None)
    with client, pytest.raises(PymigrateError) as caught:
        talk(client)
    served.thread.join(10)

    assert not served.thread.is_alive()
    told = caught.value
    if isinstance(told, PeerError):
        assert told.peer_code in (ProtocolError.exit_code, Corrupted.exit_code)
        assert isinstance(served.ended, ProtocolError | Corrupted)
    else:
        assert isinstance(told, Unreachable)


class TestSilence:
    """Who says nothing for too long is gone."""

    def test_a_long_handler_keeps_the_connection_by_pings(self) -> None:
        def slow(_: m.Restore, __: Reader) -> m.Restored:
            threading.Event().wait(0.8)
            return m.Restored(pid=5)

        with conversation({m.Restore: slow}, silence=0.3) as (client, _):
            assert client.call(m.Restore(migration_id="a")).pid == 5

    def test_a_silent_server_is_unreachable(self) -> None:
        left, _right = loopback.pair("beta")

        with (
            Client(left, silence=0.1) as client,
            pytest.raises(Unreachable, match=r"beta: no sign of life for 0\.4 s") as caught,
        ):
            client.hello()

        assert caught.value.temporary

    def test_a_frame_that_takes_long_to_arrive_is_a_sign_of_life(self) -> None:
        near, far = socket.socketpair()
        data = encode(Frame(Kind.DATA, bytes(64)))
        channel = StreamChannel(near.detach(), os.dup(far.fileno()), peer="beta")
        with far, Link(channel, interval=10, silence=0.3) as link:
            for byte in data:  # 80 bytes at 50 a second: five times the silence
                far.send(bytes([byte]))
                threading.Event().wait(0.02)

            assert 64 == link.receive(timeout=5).size
            with pytest.raises(Unreachable, match=r"no sign of life for 0\.3 s"):
                link.receive()

    def test_time_in_which_we_did_not_run_is_not_their_silence(self) -> None:
        left, right = loopback.pair("beta")

        class Stopped(LoopbackChannel):
            """Its first wait takes far longer than asked; what came meanwhile is still unread."""

            def receive(self, *, timeout: float | None = None) -> Frame:
                if not waits:
                    waits.append(timeout)
                    threading.Event().wait(1.5)
                    message = "beta has sent nothing"
                    raise Timeout(message)
                return super().receive(timeout=timeout)

        waits: list[float | None] = []
        left.__class__ = Stopped
        with Link(left, interval=0.1, silence=0.1) as link:
            right.send(Frame(Kind.DATA, b"alive"))

            assert Frame(Kind.DATA, b"alive") == link.receive(timeout=5)
        assert [0.1 * BEGINNING] == waits

    def test_who_has_spoken_once_is_missed_sooner(self) -> None:
        left, right = loopback.pair("beta")
        with Link(left, interval=10, silence=0.1) as link:
            right.send(Frame(Kind.PING))

            with pytest.raises(Unreachable, match=r"no sign of life for 0\.1 s"):
                link.receive()

    def test_a_sender_that_nobody_reads_from_is_woken(self) -> None:
        left, _right = loopback.pair("beta")

        with (
            Client(left, silence=0.3, level=None) as client,
            pytest.raises(Unreachable, match="no sign of life"),
        ):
            client.call(PUT, lambda w: w.write(bytes(64 << 20)))

    def test_a_silent_client_ends_the_server(self) -> None:
        _left, right = loopback.pair()

        with pytest.raises(Unreachable, match="no sign of life"):
            Server(right, {}, silence=0.1).serve()
