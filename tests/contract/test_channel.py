"""What every channel promises: in one process, over pipes, over a socket, over SSH, over TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.errors import Corrupted, ProtocolError, PymigrateError, Unreachable
from pymigrate.transport import loopback, ssh
from pymigrate.transport import messages as m
from pymigrate.transport.channel import Channel, Ended, StreamChannel, Timeout
from pymigrate.transport.destination import Destination
from pymigrate.transport.frames import MAX_PAYLOAD, Flag, Frame, Kind, encode
from pymigrate.transport.limit import RateLimit
from pymigrate.transport.rpc import Client, Server
from pymigrate.transport.stream import Reader
from pymigrate.transport.tls import TlsChannel
from tests.fakes import sshd as fake_sshd
from tests.fakes import tls_pair

HANDOFF = Path(__file__).parents[1] / "fakes" / "handoff.py"
Ends = tuple[Channel, Channel]
WAIT = 10.0  # seconds, for what happens at once


class HandedOver(StreamChannel):
    """The far end of an SSH channel, whose program ends with it."""

    def __init__(self, line: socket.socket, read_fd: int, write_fd: int) -> None:
        super().__init__(read_fd, write_fd, peer="ours")
        self._line = line

    def close(self) -> None:
        super().close()
        self._line.close()


@contextlib.contextmanager
def _loopback(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    yield loopback.pair("beta", "ours")


@contextlib.contextmanager
def _pipes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    (read_a, write_b), (read_b, write_a) = os.pipe(), os.pipe()
    yield StreamChannel(read_a, write_a, peer="beta"), StreamChannel(read_b, write_b, peer="ours")


@contextlib.contextmanager
def _socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    left, right = (end.detach() for end in socket.socketpair())
    yield StreamChannel(left, left, peer="beta"), StreamChannel(right, right, peer="ours")


@contextlib.contextmanager
def _ssh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    server: fake_sshd.Sshd = request.getfixturevalue("sshd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(WAIT)
        with ssh.connect(
            Destination.parse(server.name),
            identity=server.user_key,
            known_hosts=server.known_hosts,
        ) as connection:
            left = connection.open_agent([sys.executable, str(HANDOFF), str(tmp_path / "socket")])
            line, _ = listener.accept()
            _, (read_fd, write_fd), _, _ = socket.recv_fds(line, 1, 2)
            yield left, HandedOver(line, read_fd, write_fd)


@contextlib.contextmanager
def _tls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    yield tls_pair.connected()


KINDS = {"loopback": _loopback, "pipes": _pipes, "socket": _socket, "ssh": _ssh, "tls": _tls}


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    """Two ends of one channel: the source's and the target's."""
    with KINDS[request.param](request, tmp_path) as (left, right):
        yield left, right
        left.close()
        right.close()


@pytest.fixture
def wire(ends: Ends) -> tuple[Channel, Callable[[bytes], None]]:
    """Give the source's end, and a way to send it bytes that need not be frames."""
    left, right = ends
    if isinstance(right, TlsChannel):
        return left, lambda data: right._put([data], WAIT)
    if isinstance(right, StreamChannel):
        fd = right._write_fd
        return left, lambda data: _write_all(fd, data)
    assert isinstance(right, loopback.LoopbackChannel)
    lane = right._outgoing

    def queue(data: bytes) -> None:
        with lane.changed:
            lane.frames.append(data)
            lane.changed.notify_all()

    return left, queue


def _write_all(fd: int, data: bytes) -> None:
    assert len(data) == os.write(fd, data)


def in_background(work: Callable[[], object]) -> Callable[[], BaseException | None]:
    """Start; the result waits for the end and gives what was raised."""
    raised: list[BaseException | None] = [None]

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised[0] = error

    thread = threading.Thread(target=run)
    thread.start()

    def outcome() -> BaseException | None:
        thread.join(WAIT)
        assert not thread.is_alive()
        return raised[0]

    return outcome


class Counting(RateLimit):
    """Lets everything go at once, and remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(1e6)
        self.asked: list[int] = []

    def reserve(self, size: int) -> float:
        self.asked.append(size)
        return 0.0


class TestLimit:
    """Nothing goes that was not asked for."""

    def test_all_bytes_of_frames_are_asked_for_in_small_pieces(self, ends: Ends) -> None:
        left, right = ends
        limit = Counting()
        frames = [Frame(Kind.DATA, bytes(300_000)), Frame(Kind.DATA, b"little", number=1)]
        left.limit = limit

        def send() -> None:
            for frame in frames:
                left.send(frame)

        outcome = in_background(send)
        arrived = [right.receive(timeout=WAIT) for _ in frames]

        assert None is outcome()
        assert [frame.size for frame in frames] == [frame.size for frame in arrived]
        assert sum(map(len, map(encode, frames))) <= sum(limit.asked) < 310_000
        if not isinstance(left, loopback.LoopbackChannel):  # whose wire is a queue of frames
            assert limit.piece >= max(limit.asked)

    def test_closing_ends_the_wait_for_a_turn(self, ends: Ends) -> None:
        left, _ = ends
        if isinstance(left, loopback.LoopbackChannel):
            return  # it has no thread that could close it meanwhile
        asked = threading.Event()

        class Hour(RateLimit):
            def reserve(self, size: int) -> float:
                asked.set()
                return 3600.0

        left.limit = Hour(1.0)
        outcome = in_background(lambda: left.send(Frame(Kind.DATA, b"never")))
        asked.wait(WAIT)

        left.close()

        assert isinstance(outcome(), Unreachable)


class TestFrames:
    """Complete, in order, once."""

    def test_frames_arrive_in_order_both_ways(self, ends: Ends) -> None:
        left, right = ends
        sent = [
            Frame(Kind.REQUEST, b"one"),
            Frame(Kind.DATA, b"", number=0),
            Frame(Kind.DATA, b"\x00" * 3000, Flag.ZSTD, 4_000_000_000),
            Frame(Kind.PING),
            Frame(Kind.END, b"end", Flag.ABORTED),
        ]

        for source, target in ((left, right), (right, left)):
            for frame in sent:
                source.send(frame)
            assert [target.receive(timeout=WAIT) for _ in sent] == sent

    @pytest.mark.parametrize("kind", [Kind.DATA, Kind.REQUEST])
    def test_the_biggest_frames_pass(self, ends: Ends, kind: Kind) -> None:
        left, right = ends
        frame = Frame(kind, os.urandom(MAX_PAYLOAD[kind]))

        for source, target in ((left, right), (right, left)):
            outcome = in_background(lambda source=source: source.send(frame))  # type: ignore[misc]
            assert target.receive(timeout=WAIT) == frame
            assert outcome() is None

    def test_a_payload_may_be_a_view_and_is_not_needed_after_send(self, ends: Ends) -> None:
        left, right = ends
        place = bytearray(b"first" * 20_000)

        def send_and_overwrite() -> None:
            left.send(Frame(Kind.DATA, memoryview(place)[5:]))
            place[:] = bytes(len(place))

        outcome = in_background(send_and_overwrite)

        assert right.receive(timeout=WAIT).payload == b"first" * 19_999
        assert outcome() is None

    def test_much_in_both_directions_at_once_does_not_lock_up(self, ends: Ends) -> None:
        left, right = ends
        frames = [Frame(Kind.DATA, bytes([n]) * 700_000, number=n) for n in range(20)]

        def send(channel: Channel) -> None:
            for frame in frames:
                channel.send(frame)

        senders = [in_background(lambda c=c: send(c)) for c in ends]  # type: ignore[misc]
        got: list[Frame] = []
        taker = in_background(lambda: got.extend(left.receive(timeout=WAIT) for _ in frames))
        arrived = [right.receive(timeout=WAIT) for _ in frames]

        assert [None, None, None] == [senders[0](), senders[1](), taker()]
        assert arrived == frames
        assert got == frames


class TestEnds:
    """Whatever ends a connection is noticed, on both sides, by whoever waits."""

    def test_a_time_out_leaves_the_channel_usable(self, ends: Ends) -> None:
        left, right = ends

        with pytest.raises(Timeout, match=r"has sent nothing for 0\.05 s"):
            left.receive(timeout=0.05)
        right.send(Frame(Kind.PING))

        assert left.receive(timeout=WAIT) == Frame(Kind.PING)

    def test_what_was_sent_before_the_end_arrives_before_the_end(self, ends: Ends) -> None:
        left, right = ends
        frame = Frame(Kind.DATA, b"last words" * 2000)

        right.send(frame)
        right.close()

        assert left.receive(timeout=WAIT) == frame
        with pytest.raises(Ended, match="connection lost"):
            left.receive(timeout=WAIT)

    def test_the_target_sees_the_sources_end(self, ends: Ends) -> None:
        left, right = ends

        left.close()

        with pytest.raises(Ended, match="connection lost"):
            right.receive(timeout=WAIT)

    def test_sending_to_a_closed_end_fails(self, ends: Ends) -> None:
        left, right = ends
        right.close()

        def send_until_it_fails() -> None:
            for _ in range(1000):
                left.send(Frame(Kind.DATA, bytes(100_000)), timeout=WAIT)

        assert isinstance(in_background(send_until_it_fails)(), Unreachable)

    def test_nobody_reads_and_a_time_out_ends_the_sending(self, ends: Ends) -> None:
        left, _ = ends

        def send_for_ever() -> None:
            while True:
                left.send(Frame(Kind.DATA, bytes(1_000_000)), timeout=0.3)

        error = in_background(send_for_ever)()
        assert isinstance(error, Unreachable)
        assert "has taken nothing for 0.3 s" in error.message

    @pytest.mark.parametrize("which", [0, 1])
    def test_close_wakes_a_receiver(self, ends: Ends, which: int) -> None:
        outcome = in_background(ends[which].receive)
        time.sleep(0.05)  # so that it waits; not needed for the result

        ends[which].close()

        error = outcome()
        assert isinstance(error, Unreachable)
        assert "closed" in error.message

    @pytest.mark.parametrize("which", [0, 1])
    def test_close_wakes_a_sender(self, ends: Ends, which: int) -> None:
        def send_for_ever() -> None:
            while True:
                ends[which].send(Frame(Kind.DATA, bytes(1_000_000)))

        outcome = in_background(send_for_ever)
        time.sleep(0.3)  # so that it waits; not needed for the result

        ends[which].close()

        assert isinstance(outcome(), Unreachable)

    def test_after_close_nothing_works_and_close_may_be_repeated(self, ends: Ends) -> None:
        for channel in ends:
            channel.close()
            channel.close()
            with pytest.raises(Unreachable):
                channel.send(Frame(Kind.PING))
            with pytest.raises(Unreachable):
                channel.receive()


class TestHostileBytes:
    """Bytes that are no frames give a typed error at once."""

    def test_noise_is_a_protocol_error(self, wire: tuple[Channel, Callable[[bytes], None]]) -> None:
        left, write = wire
        write(b"Welcome to beta!\nLast login: never\n")

        with pytest.raises(ProtocolError, match="Welcome"):
            left.receive(timeout=WAIT)

    def test_a_giant_is_refused_by_its_header(
        self, wire: tuple[Channel, Callable[[bytes], None]]
    ) -> None:
        left, write = wire
        write(encode(Frame(Kind.PING)))
        write(struct.pack(">2sBBIII", b"pM", 5, 0, 0, 2**32 - 1, 0))

        assert left.receive(timeout=WAIT).kind is Kind.PING
        with pytest.raises(ProtocolError, match="announces 4294967295 bytes"):
            left.receive(timeout=WAIT)

    def test_damage_is_corrupted(self, wire: tuple[Channel, Callable[[bytes], None]]) -> None:
        left, write = wire
        write(encode(Frame(Kind.DATA, b"payload")).replace(b"payload", b"payloud"))

        with pytest.raises(Corrupted, match="arrived damaged"):
            left.receive(timeout=WAIT)

    def test_a_frame_in_pieces_with_time_outs_between_is_one_frame(
        self, wire: tuple[Channel, Callable[[bytes], None]]
    ) -> None:
        left, write = wire
        if isinstance(left, loopback.LoopbackChannel):
            pytest.skip("a loopback carries whole frames")
        frame = Frame(Kind.DATA, b"payload", number=3)
        data = encode(frame)

        for cut in range(0, len(data) - 1, 7):
            write(data[cut : cut + 7])
            if cut + 7 < len(data):
                with pytest.raises(Timeout):
                    left.receive(timeout=0.02)

        assert left.receive(timeout=WAIT) == frame

    def test_a_cut_inside_a_frame_is_no_clean_end(self, ends: Ends) -> None:
        left, right = ends
        if not isinstance(right, StreamChannel):
            pytest.skip("a loopback carries whole frames")
        right._put([encode(Frame(Kind.PING)) + encode(Frame(Kind.DATA, b"x"))[:9]], WAIT)
        right.close()

        assert left.receive(timeout=WAIT).kind is Kind.PING
        with pytest.raises(Unreachable, match="connection lost") as caught:
            left.receive(timeout=WAIT)
        assert not isinstance(caught.value, Ended)


def test_a_whole_conversation(ends: Ends) -> None:
    left, right = ends
    content = os.urandom(3_000_000) + bytes(5_000_000)
    got: list[bytes] = []

    def put(_: m.PutImages, stream: Reader) -> m.Received:
        while part := stream.read(1_000_000):
            got.append(part)
        return m.Received(bytes=stream.finish())

    def fail(_: m.Restore, __: Reader) -> m.Restored:
        message = "no room"
        raise PymigrateError(message)

    outcome = in_background(Server(right, {m.PutImages: put, m.Restore: fail}).serve)
    with Client(left) as client:
        assert client.hello("mig-1").protocol == m.PROTOCOL
        reply = client.call(m.PutImages(migration_id="mig-1"), lambda w: w.write(content))
        with pytest.raises(PymigrateError, match="no room"):
            client.call(m.Restore(migration_id="mig-1"))

    assert outcome() is None
    assert reply.bytes == len(content)
    assert b"".join(got) == content
