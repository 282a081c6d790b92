"""The data connection beside SSH: who is let in, who is not, and what happens when it is cut."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.errors import (
    Corrupted,
    HostError,
    HostKeyMismatch,
    NoSpace,
    PeerError,
    ProtocolError,
    PymigrateError,
    Unreachable,
)
from pymigrate.transport import direct, loopback, tls
from pymigrate.transport import messages as m
from pymigrate.transport.channel import Ended
from pymigrate.transport.frames import Frame, Kind
from pymigrate.transport.link import Link
from pymigrate.transport.rpc import Client, Handler, Server
from pymigrate.transport.stream import Reader
from tests.fakes import tls_pair

HERE = "127.0.0.1"
WAIT = 10.0  # seconds, for what happens at once
PUT = m.PutFiles(migration_id="a", tree="upper")


@pytest.fixture(scope="module")
def ours() -> tls.Identity:
    return tls.Identity.make()


@pytest.fixture(scope="module")
def stranger() -> tls.Identity:
    return tls.Identity.make()


@pytest.fixture
def door(ours: tls.Identity) -> Iterator[direct.Door]:
    """Open a door for us."""
    with contextlib.closing(
        direct.open_door(HERE, ours.certificate, Link, peer="alpha", window=WAIT)
    ) as door:
        yield door


def knock(door: direct.Door, who: tls.Identity, *, timeout: float = WAIT) -> tls.TlsChannel:
    return tls.connect((HERE, door.port), who, door.certificate, peer="beta", timeout=timeout)


class TestDoor:
    """One port, for one caller, for a short time."""

    def test_who_was_expected_is_let_in(self, door: direct.Door, ours: tls.Identity) -> None:
        with contextlib.closing(knock(door, ours)) as channel:
            link = door.link()
            assert link is not None
            with link:
                channel.send(Frame(Kind.DATA, b"payload"))
                assert link.receive(timeout=WAIT) == Frame(Kind.DATA, b"payload")

    def test_another_certificate_is_turned_away_and_the_expected_one_still_gets_in(
        self, door: direct.Door, ours: tls.Identity, stranger: tls.Identity
    ) -> None:
        with pytest.raises((Unreachable, HostKeyMismatch)):
            knock(door, stranger)

        knock(door, ours).close()

    def test_no_certificate_is_turned_away(self, door: direct.Door) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        assert refused(door, context)

    def test_tls_1_2_is_turned_away(self, door: direct.Door, ours: tls.Identity) -> None:
        context = ours.context(door.certificate, server=False)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2

        assert refused(door, context)

    def test_an_impostor_with_our_name_is_turned_away(
        self, door: direct.Door, ours: tls.Identity
    ) -> None:
        """All names are the same, so a signature that does not fit is all that tells them."""
        impostor = tls.Identity.make()
        forged = tls.Identity(ours.certificate, impostor._pem)

        with pytest.raises((Unreachable, HostKeyMismatch)):
            knock(door, forged)

    def test_garbage_is_turned_away(self, door: direct.Door, ours: tls.Identity) -> None:
        with socket.create_connection((HERE, door.port), WAIT) as line:
            line.sendall(os.urandom(4096))
            with contextlib.suppress(ConnectionResetError):
                while line.recv(4096):
                    pass

        knock(door, ours).close()

    def test_a_caller_who_says_nothing_is_not_waited_for(
        self, door: direct.Door, ours: tls.Identity
    ) -> None:
        with socket.create_connection((HERE, door.port), WAIT):
            knock(door, ours, timeout=WAIT).close()

    def test_a_caller_who_hangs_up_at_once_does_no_harm(
        self, door: direct.Door, ours: tls.Identity
    ) -> None:
        socket.create_connection((HERE, door.port), WAIT).close()

        knock(door, ours).close()

    def test_after_one_nobody_listens(self, door: direct.Door, ours: tls.Identity) -> None:
        with contextlib.closing(knock(door, ours)):
            door._thread.join(WAIT)
            with pytest.raises(Unreachable, match="refused"):
                knock(door, ours)

    def test_after_its_time_nobody_listens(self, ours: tls.Identity) -> None:
        door = direct.open_door(HERE, ours.certificate, Link, peer="alpha", window=0.05)
        with contextlib.closing(door):
            door._thread.join(WAIT)
            with pytest.raises(Unreachable, match="refused"):
                knock(door, ours)
            assert door.link() is None

    def test_after_close_nobody_listens(self, door: direct.Door, ours: tls.Identity) -> None:
        door.close()
        door.close()

        with pytest.raises(Unreachable, match="refused"):
            knock(door, ours)

    def test_after_many_strangers_nobody_listens(
        self, door: direct.Door, ours: tls.Identity
    ) -> None:
        for _ in range(direct.CALLERS):
            with socket.create_connection((HERE, door.port), WAIT) as line:
                line.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    line.recv(100)
        door._thread.join(WAIT)

        with pytest.raises(Unreachable):
            knock(door, ours)

    @pytest.mark.parametrize("address", ["", "beta", "0x7f000001", "127.0.0.1;"])
    def test_what_is_no_address_is_refused(self, ours: tls.Identity, address: str) -> None:
        with pytest.raises(ProtocolError, match="is no address"):
            direct.open_door(address, ours.certificate, Link, peer="alpha")

    def test_an_address_of_another_host_is_refused(self, ours: tls.Identity) -> None:
        with pytest.raises(HostError, match=r"no port of 192\.0\.2\.1 can be opened"):
            direct.open_door("192.0.2.1", ours.certificate, Link, peer="alpha")

    @pytest.mark.parametrize("certificate", [b"", b"x", bytes(5000)])
    def test_what_is_no_certificate_is_refused(self, certificate: bytes) -> None:
        with pytest.raises(ProtocolError, match="certificate"):
            direct.open_door(HERE, certificate, Link, peer="alpha")


def refused(door: direct.Door, context: ssl.SSLContext) -> bool:
    """Say whether the door ends a TLS connection before it says anything."""
    with socket.create_connection((HERE, door.port), WAIT) as line:
        try:
            with context.wrap_socket(line) as secure:
                return not secure.recv(1)
        except (ssl.SSLError, ConnectionResetError):
            return True


class TestCaller:
    """The source is as suspicious as the target."""

    def test_a_target_with_another_certificate_is_not_believed(
        self, door: direct.Door, ours: tls.Identity, stranger: tls.Identity
    ) -> None:
        with pytest.raises(HostKeyMismatch, match="another certificate than was agreed"):
            tls.connect((HERE, door.port), ours, stranger.certificate, peer="beta", timeout=WAIT)

    def test_a_port_that_does_not_answer_costs_no_more_than_the_time_allowed(
        self, ours: tls.Identity, stranger: tls.Identity
    ) -> None:
        began = time.monotonic()
        with (
            socket.create_server((HERE, 0)) as silent,
            pytest.raises(Unreachable, match="in time"),
        ):
            tls.connect(silent.getsockname(), ours, stranger.certificate, peer="beta", timeout=0.2)
        assert time.monotonic() - began < 2

    def test_another_service_is_not_believed(
        self, ours: tls.Identity, stranger: tls.Identity
    ) -> None:
        with socket.create_server((HERE, 0)) as other:

            def answer() -> None:
                line, _ = other.accept()
                with line:
                    line.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                    line.recv(4096)

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises((ProtocolError, Unreachable)):
                tls.connect(
                    other.getsockname(), ours, stranger.certificate, peer="beta", timeout=WAIT
                )
            thread.join()

    @pytest.mark.parametrize("port", [0, 65536, 2**32 - 1])
    def test_an_impossible_port_is_refused(self, ours: tls.Identity, port: int) -> None:
        with pytest.raises(ProtocolError, match="announced the port"):
            tls.connect((HERE, port), ours, ours.certificate, peer="beta", timeout=WAIT)


class TestSecrets:
    """Keys leave no trace."""

    def test_a_key_is_in_no_file_and_no_text(self, ours: tls.Identity) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        ours.context(ours.certificate, server=True)

        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert "PRIVATE" not in repr(ours)

    def test_what_is_sent_cannot_be_read_on_the_way(self) -> None:
        left, right = tls_pair.connected()
        with contextlib.closing(left), contextlib.closing(right):
            sealed = left._tls.seal([memoryview(b"attack at dawn" * 1000)])

        assert b"attack" not in sealed

    def test_what_was_altered_on_the_way_is_corrupted(self) -> None:
        left, right = tls_pair.connected()
        with contextlib.closing(left), contextlib.closing(right):
            sealed = bytearray(left._tls.seal([memoryview(bytes(1000))]))
            sealed[500] ^= 1
            os.write(left._write_fd, sealed)

            with pytest.raises(Corrupted, match="altered"):
                right.receive(timeout=WAIT)

    def test_a_cut_without_a_goodbye_is_no_clean_end(self) -> None:
        left, right = tls_pair.connected()
        with contextlib.closing(left), contextlib.closing(right):
            with socket.socket(fileno=os.dup(left._write_fd)) as line:
                line.shutdown(socket.SHUT_WR)

            with pytest.raises(Unreachable) as caught:
                right.receive(timeout=WAIT)
            assert not isinstance(caught.value, Ended)


class Serving:
    """An agent in a thread, a client that has said hello, and how the agent ended."""

    def __init__(self, put: Handler) -> None:
        self.ended: BaseException | None = None
        left, right = loopback.pair("beta", "alpha")
        self.server = Server(right, {m.PutFiles: put, m.Keepalive: lambda *_: m.KeptAlive()})
        self.client = Client(left, address=HERE)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.client.hello("a")

    def _serve(self) -> None:
        try:
            self.server.serve()
        except BaseException as error:
            self.ended = error

    def close(self) -> None:
        self.client.close()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


Start = Callable[[Handler], Serving]


@pytest.fixture
def serve() -> Iterator[Start]:
    with contextlib.ExitStack() as undo:

        def start(put: Handler) -> Serving:
            return undo.enter_context(contextlib.closing(Serving(put)))

        yield start


def take(_: object, stream: Reader) -> m.Received:
    return m.Received(bytes=stream.finish())


def refuse(_: object, stream: Reader) -> m.Received:
    stream.read(10)
    message = "no room"
    raise NoSpace(message)


class TestCalls:
    """Requests go one way, streams the other; who calls or answers does not notice."""

    def test_streams_take_the_data_connection_and_are_counted(self, serve: Start) -> None:
        serving = serve(take)
        assert serving.client.open_data("a") == ""
        content = os.urandom(5_000_000)

        for _ in range(3):
            reply = serving.client.call(PUT, lambda w: w.write(content))
            assert reply.bytes == len(content)

        assert serving.client._link.traffic.sent < 1000
        assert serving.client.traffic.sent > 15_000_000

    def test_without_a_data_connection_streams_go_as_before(self, serve: Start) -> None:
        serving = serve(take)
        serving.client._address = None

        assert "through another host" in serving.client.open_data("a")
        assert serving.client.call(PUT, lambda w: w.write(b"x")).bytes == 1

    def test_a_target_that_cannot_listen_there_leaves_all_as_it_was(self, serve: Start) -> None:
        serving = serve(take)
        serving.client._address = "192.0.2.1"

        assert "can be opened" in serving.client.open_data("a")
        assert serving.client.call(PUT, lambda w: w.write(b"x")).bytes == 1

    def test_a_port_that_cannot_be_reached_leaves_all_as_it_was(
        self, serve: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        serving = serve(take)
        monkeypatch.setattr(tls, "connect", unreachable)

        assert serving.client.open_data("a") == "a firewall"
        assert serving.client.call(PUT, lambda w: w.write(b"x")).bytes == 1

    def test_a_refused_stream_is_no_part_of_the_next_one(self, serve: Start) -> None:
        answers = iter([refuse, take, refuse, refuse, take])

        def answer(request: object, stream: Reader) -> m.Message:
            return next(answers)(request, stream)

        serving = serve(answer)
        serving.client.open_data("a")
        content = os.urandom(20_000_000)

        for expected in (None, 20_000_000, None, None, 20_000_000):
            if expected is None:
                with pytest.raises(PeerError, match="no room"):
                    serving.client.call(PUT, lambda w: w.write(content))
            else:
                assert serving.client.call(PUT, lambda w: w.write(content)).bytes == expected

    def test_a_source_that_gives_up_can_go_on_with_another_stream(self, serve: Start) -> None:
        serving = serve(take)
        serving.client.open_data("a")

        def fail(stream: object) -> None:
            message = "a file cannot be read"
            raise PymigrateError(message)

        with pytest.raises(PymigrateError, match="cannot be read"):
            serving.client.call(PUT, fail)
        assert serving.client.call(PUT, lambda w: w.write(b"x")).bytes == 1

    def test_the_loss_of_the_data_connection_while_sending_is_unreachable(
        self, serve: Start
    ) -> None:
        serving = serve(take)
        serving.client.open_data("a")

        def cut(stream: Reader) -> None:
            stream.write(os.urandom(3_000_000))
            assert serving.client._data is not None
            serving.client._data.channel.close()
            for _ in range(100):
                stream.write(os.urandom(1_000_000))

        with pytest.raises(Unreachable) as caught:
            serving.client.call(PUT, cut)  # type: ignore[arg-type]
        assert caught.value.temporary

    def test_the_loss_of_the_data_connection_ends_the_agent(self, serve: Start) -> None:
        """So that whoever reads half a stream is told, and the source too."""
        begun = threading.Event()

        def put(request: object, stream: Reader) -> m.Received:
            stream.read(10)
            begun.set()
            return take(request, stream)

        serving = serve(put)
        serving.client.open_data("a")

        def cut(stream: Reader) -> None:
            stream.write(os.urandom(1 << 20))
            assert begun.wait(WAIT)
            assert serving.server._beside.data is not None
            serving.server._beside.data.channel.close()
            for _ in range(100):
                stream.write(os.urandom(1_000_000))

        with pytest.raises(Unreachable):
            serving.client.call(PUT, cut)  # type: ignore[arg-type]
        serving.close()
        assert isinstance(serving.ended, Unreachable)

    def test_the_loss_of_the_control_connection_ends_a_stream(self, serve: Start) -> None:
        serving = serve(take)
        serving.client.open_data("a")

        def cut(stream: Reader) -> None:
            stream.write(b"x")
            serving.client._link.channel.close()
            for _ in range(1000):
                stream.write(os.urandom(1_000_000))

        with pytest.raises(Unreachable):
            serving.client.call(PUT, cut)  # type: ignore[arg-type]

    def test_a_stream_by_a_connection_that_was_never_made_is_refused(self, serve: Start) -> None:
        serving = serve(take)
        left, right = tls_pair.connected()
        with contextlib.closing(right):
            serving.client._data = Link(left)

            with pytest.raises(PeerError, match="never made"):
                serving.client.call(PUT, lambda w: w.write(b"x"))

    def test_nothing_listens_after_the_agent_ended(self, serve: Start) -> None:
        serving = serve(take)
        identity = tls.Identity.make()
        request = m.OpenData(migration_id="a", certificate=identity.certificate, address=HERE)
        opened = serving.client.call(request)
        serving.close()

        with pytest.raises(Unreachable, match="refused"):
            tls.connect(
                (HERE, opened.port), identity, opened.certificate, peer="beta", timeout=WAIT
            )

    def test_nothing_is_left_open(self) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        serving = Serving(take)
        serving.client.open_data("a")
        serving.client.call(PUT, lambda w: w.write(b"x"))
        serving.close()

        assert len(list(Path("/proc/self/fd").iterdir())) == before


def unreachable(*_: object, **__: object) -> tls.TlsChannel:
    message = "a firewall"
    raise Unreachable(message)
