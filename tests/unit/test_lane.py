"""The connection of its own for what is waited for: who is let in, and what ends it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from pymigrate.runtime.errors import PeerError, ProtocolError, PymigrateError, Unreachable
from pymigrate.transport import direct, loopback, tls
from pymigrate.transport import messages as m
from pymigrate.transport.channel import Timeout
from pymigrate.transport.conversation import Listener
from pymigrate.transport.frames import Frame, Kind
from pymigrate.transport.lane import Lane, Way
from pymigrate.transport.link import Link
from pymigrate.transport.loopback import LoopbackChannel
from pymigrate.transport.rpc import Client, Server

HERE = "127.0.0.1"
WAIT = 10.0  # seconds, for what happens at once
PAGES = m.Pages(migration_id="a", lane=True)


@pytest.fixture(scope="module")
def ours() -> tls.Identity:
    return tls.Identity.make()


def knock(door: direct.Door, who: tls.Identity) -> tls.TlsChannel:
    return tls.connect((HERE, door.port), who, door.certificate, peer="beta", timeout=WAIT)


class TestDoor:
    """Two come in where both sides want it, and in this order."""

    def test_the_first_is_for_bulk_data_and_the_second_is_the_lane(
        self, ours: tls.Identity
    ) -> None:
        with contextlib.ExitStack() as undo:
            door = direct.open_door(HERE, ours.certificate, Link, peer="alpha", lane=True)
            undo.callback(door.close)
            bulk = undo.enter_context(contextlib.closing(knock(door, ours)))
            lane = undo.enter_context(contextlib.closing(knock(door, ours)))

            link, second = door.link(), door.lane()
            assert link is not None
            assert second is not None
            undo.callback(link.close)
            undo.callback(second.close)
            bulk.send(Frame(Kind.DATA, b"bulk"))
            lane.send(Frame(Kind.DATA, b"lane"))
            assert b"bulk" == bytes(link.receive(timeout=WAIT).payload)
            assert b"lane" == bytes(second.receive(timeout=WAIT).payload)
            with pytest.raises(Unreachable, match="refused"):
                knock(door, ours)

    def test_a_stranger_is_no_second_caller(self, ours: tls.Identity) -> None:
        with contextlib.ExitStack() as undo:
            door = direct.open_door(HERE, ours.certificate, Link, peer="alpha", lane=True)
            undo.callback(door.close)
            undo.callback(knock(door, ours).close)
            with pytest.raises(PymigrateError):
                knock(door, tls.Identity.make())

            link = door.link()
            assert link is not None
            undo.callback(link.close)
            assert door.lane() is None

    def test_nobody_is_let_in_twice_who_did_not_ask_for_it(self, ours: tls.Identity) -> None:
        with contextlib.ExitStack() as undo:
            door = direct.open_door(HERE, ours.certificate, Link, peer="alpha")
            undo.callback(door.close)
            undo.callback(knock(door, ours).close)
            with pytest.raises(Unreachable):
                knock(door, ours)


class Serving:
    """An agent that answers Pages by what it heard on the lane."""

    def __init__(self) -> None:
        self.heard: list[bytes | None] = []
        left, right = loopback.pair("beta", "alpha")
        self._server = Server(right, {m.Pages: self._take})
        self.client = Client(left, address=HERE)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.client.hello("a")

    def _serve(self) -> None:
        with contextlib.suppress(PymigrateError):
            self._server.serve()

    def _take(self, _: m.Pages, listener: Listener) -> m.PagesTaken:
        lane = listener.lane
        self.heard.append(None if lane is None else bytes(lane.hear(Kind.DATA)))
        while listener.hear() is not None:
            pass
        return m.PagesTaken(pages=5)

    def close(self) -> None:
        self.client.close()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


@pytest.fixture
def serving() -> Iterator[Serving]:
    with contextlib.closing(Serving()) as serving:
        yield serving


class TestAgreement:
    """A lane is there where both sides know of it, and it is asked for."""

    def test_what_is_waited_for_comes_by_the_second_connection(self, serving: Serving) -> None:
        assert "" == serving.client.open_data("a", lane=True)
        way = serving.client.lane
        assert way is not None
        with contextlib.closing(Lane(Way.unpack(way.pack()).connect(WAIT))) as lane:
            speaker = serving.client.converse(PAGES)
            lane.say(Kind.DATA, b"a page")
            speaker.end()

            assert 5 == serving.client.conclude(timeout=WAIT).pages
        assert [b"a page"] == serving.heard

    def test_an_older_source_asks_for_none(self, serving: Serving) -> None:
        assert "" == serving.client.open_data("a")
        assert serving.client.lane is None
        serving.client.converse(m.Pages(migration_id="a")).end()

        assert 5 == serving.client.conclude(timeout=WAIT).pages
        assert [None] == serving.heard

    def test_an_older_target_has_none(
        self, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It does not know the field, and so neither answers by it nor waits for a second."""
        made = Server._open_data

        def older(server: Server, request: m.OpenData) -> m.DataOpened:
            request.ClearField("lane")
            return made(server, request)

        monkeypatch.setattr(Server, "_open_data", older)
        assert "" == serving.client.open_data("a", lane=True)

        assert serving.client.lane is None

    @pytest.mark.parametrize("data", [True, False])
    def test_a_lane_that_was_never_made_is_refused(self, serving: Serving, data: bool) -> None:
        if data:
            assert "" == serving.client.open_data("a", lane=True)
        serving.client.converse(PAGES)

        with pytest.raises(PeerError, match="never made"):
            serving.client.conclude(timeout=WAIT)

    def test_a_way_shows_no_key(self, serving: Serving) -> None:
        serving.client.open_data("a", lane=True)

        assert "PRIVATE" not in repr(serving.client.lane)


class TestSilence:
    """One thread hears, says PING and notices that the other side does not."""

    def test_who_says_nothing_is_gone(self) -> None:
        left, _right = loopback.pair("beta")
        lane = Lane(left, interval=0.02, silence=0.1)

        with pytest.raises(Unreachable, match=r"beta: no sign of life for 0\.1 s"):
            lane.hear(Kind.DATA)

    def test_two_who_have_nothing_to_say_stay_connected(self) -> None:
        left, right = (Lane(end, interval=0.05, silence=0.5) for end in loopback.pair())
        heard: list[bytes] = []
        thread = threading.Thread(target=lambda: heard.append(bytes(right.hear(Kind.DATA))))
        thread.start()
        answering = threading.Timer(1.0, right.say, (Kind.EVENT, b"at last"))
        answering.start()

        assert b"at last" == bytes(left.hear(Kind.EVENT))
        left.say(Kind.DATA, b"a page")
        thread.join(WAIT)
        assert [b"a page"] == heard

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
        right.send(Frame(Kind.DATA, b"alive"))

        assert b"alive" == bytes(Lane(left, interval=0.1, silence=0.2).hear(Kind.DATA))

    def test_close_wakes_who_hears(self) -> None:
        left, right = loopback.pair("beta")
        lane = Lane(left)
        threading.Timer(0.05, lane.close).start()

        with pytest.raises(Unreachable):
            lane.hear(Kind.DATA)
        right.close()


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.EVENT, Kind.END, Kind.REPLY])
def test_another_word_than_is_waited_for_is_refused(kind: Kind) -> None:
    left, right = loopback.pair("beta")
    right.send(Frame(kind, b"x"))

    with pytest.raises(ProtocolError, match=f"beta sent {kind.name}"):
        Lane(left).hear(Kind.DATA)


def test_their_last_word_is_told() -> None:
    left, right = loopback.pair("beta")
    right.send(Frame(Kind.ERROR, m.pack_error(0, ProtocolError("no such thing"))))

    with pytest.raises(PeerError, match="no such thing"):
        Lane(left).hear(Kind.DATA)
