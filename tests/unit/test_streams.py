"""Several connections for memory: how they are agreed upon and made, and what is said of them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.errors import PeerError, PymigrateError, Unreachable
from pymigrate.transport import direct, loopback, tls
from pymigrate.transport import messages as m
from pymigrate.transport.conversation import _END, Listener
from pymigrate.transport.frames import Flag, Frame, Kind
from pymigrate.transport.lane import Lane, Way
from pymigrate.transport.limit import RateLimit
from pymigrate.transport.link import Link
from pymigrate.transport.rpc import Client, Server
from pymigrate.transport.stream import Reader
from tests.lab.registry import wait_for

HERE = "127.0.0.1"
WAIT = 10.0  # seconds, for what happens at once
PIECES = [os.urandom(1000 + number) for number in range(40)]


@pytest.fixture(scope="module")
def ours() -> tls.Identity:
    return tls.Identity.make()


def knock(door: direct.Door, who: tls.Identity) -> tls.TlsChannel:
    return tls.connect((HERE, door.port), who, door.certificate, peer="beta", timeout=WAIT)


@contextlib.contextmanager
def opened(ours: tls.Identity, streams: int, *, lane: bool) -> Iterator[direct.Door]:
    with contextlib.closing(
        direct.open_door(
            HERE, ours.certificate, Link, peer="alpha", window=WAIT, lane=lane, streams=streams
        )
    ) as door:
        yield door


class TestDoor:
    """As many as were agreed upon come in, and who they are for is told by their order."""

    @pytest.mark.parametrize("lane", [True, False])
    @pytest.mark.parametrize("streams", [1, 2, 3, 8])
    def test_the_lane_is_the_second_and_the_further_ones_follow(
        self, ours: tls.Identity, streams: int, *, lane: bool
    ) -> None:
        with contextlib.ExitStack() as undo:
            door = undo.enter_context(opened(ours, streams, lane=lane))
            callers = [
                undo.enter_context(contextlib.closing(knock(door, ours)))
                for _ in range(streams + lane)
            ]
            for number, caller in enumerate(callers):
                caller.send(Frame(Kind.DATA, bytes([number])))
            door._thread.join(WAIT)
            with pytest.raises(Unreachable, match="refused"):
                knock(door, ours)

            link, second, further = door.link(), door.lane(), door.further()
            assert link is not None
            undo.callback(link.close)
            others = further if second is None else [second, *further]
            for channel in others:
                undo.callback(channel.close)
            assert (lane, streams - 1) == (second is not None, len(further))
            frames = [link.receive(timeout=WAIT), *(each.receive(timeout=WAIT) for each in others)]
            heard = [bytes(each.payload)[0] for each in frames]
            assert list(range(streams + lane)) == heard

    def test_strangers_take_nobodys_place(self, ours: tls.Identity) -> None:
        with contextlib.ExitStack() as undo:
            door = undo.enter_context(opened(ours, 3, lane=True))
            for _ in range(4):
                with pytest.raises(PymigrateError):
                    knock(door, tls.Identity.make())
                undo.callback(knock(door, ours).close)
            link, lane, further = door.link(), door.lane(), door.further()
            assert link is not None
            assert lane is not None
            assert 2 == len(further)
            link.close()
            for each in (lane, *further):
                each.close()

    @pytest.mark.parametrize("come", range(5))
    def test_fewer_may_come_and_nothing_of_them_is_left(
        self, ours: tls.Identity, come: int
    ) -> None:
        before, threads = descriptors(), threading.active_count()
        with contextlib.ExitStack() as undo:
            door = undo.enter_context(opened(ours, 4, lane=True))
            for _ in range(come):
                undo.callback(knock(door, ours).close)
            if come:
                link = door.link()
                assert link is not None
                undo.callback(link.close)
        assert before == descriptors()
        assert threads == threading.active_count()


def end(pieces: list[bytes]) -> Frame:
    return Frame(Kind.END, _END.pack(sum(map(len, pieces)), len(pieces)))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Serving:
    """An agent that hears a conversation to its end, and a client that has said hello."""

    def __init__(self, streams: int = 1, limit: RateLimit | None = None) -> None:
        self.heard: list[bytes] = []
        self.lane: list[bytes | None] = []
        self.ended: BaseException | None = None
        left, right = loopback.pair("beta", "alpha")
        self.server = Server(right, {m.Pages: self._take, m.PutFiles: _put}, streams=streams)
        self.client = Client(left, address=HERE, limit=limit)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.client.hello("a")

    def _serve(self) -> None:
        try:
            self.server.serve()
        except PymigrateError as error:
            self.ended = error

    def _take(self, _: m.Pages, listener: Listener) -> m.PagesTaken:
        lane = listener.lane
        self.lane.append(None if lane is None else bytes(lane.hear(Kind.DATA)))
        while (piece := listener.hear()) is not None:
            self.heard.append(bytes(piece))
            listener.tell(b"taken")
        return m.PagesTaken(pages=len(self.heard))

    def converse(self) -> int:
        """Say all pieces; return how many the agent says that it took."""
        speaker = self.client.converse(m.Pages(migration_id="a"))
        for piece in PIECES:
            speaker.say(piece)
        speaker.end()
        for _ in PIECES:
            assert b"taken" == speaker.hear(WAIT)
        return self.client.conclude(timeout=WAIT).pages

    def ask(self, request: m.Pages, *, aside: bool = True) -> None:
        """Begin a conversation by any request, and have it refused."""
        client = self.client
        client._identity += 1
        flags = Flag.ASIDE if aside else Flag.NONE
        client._link.send(Frame(Kind.REQUEST, m.pack_request(client._identity, request), flags))
        client.conclude(timeout=WAIT)

    def close(self) -> None:
        self.client.close()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


def _put(_: m.PutFiles, stream: Reader) -> m.Received:
    return m.Received(bytes=stream.finish())


@contextlib.contextmanager
def serving(streams: int = 1, limit: RateLimit | None = None) -> Iterator[Serving]:
    """Serve; nothing is left of it in the end."""
    before, threads = descriptors(), set(threading.enumerate())
    with contextlib.closing(Serving(streams, limit)) as made:
        yield made
    assert set(threading.enumerate()) <= threads
    assert before == descriptors()


class TestAgreement:
    """The source asks, the target lets in, and the source says how many it made of these."""

    @pytest.mark.parametrize(
        ("asked", "insists", "here", "made"),
        [
            (1, False, 4, 1),
            (3, False, 4, 3),
            (4, False, 2, 2),
            (4, False, 1, 1),
            (3, True, 1, 3),
            (8, True, 1, 8),
        ],
    )
    def test_memory_comes_whole_and_in_order_by_as_many_as_both_want(
        self, asked: int, *, insists: bool, here: int, made: int
    ) -> None:
        with serving(here) as each:
            assert "" == each.client.open_data("a", streams=asked, insists=insists)
            each.client.widen()

            assert made == each.client.streams
            assert len(PIECES) == each.converse()
            assert PIECES == each.heard
            links = [each.client._data, *each.client._further]
            assert all(link is not None and link.traffic.sent > 1000 for link in links)
            sent = sum(map(len, PIECES)) + 16 * len(PIECES)
            assert sent < each.client.traffic.sent < sent + 2000

    def test_beside_a_lane(self) -> None:
        with serving() as each:
            assert "" == each.client.open_data("a", lane=True, streams=3, insists=True)
            assert each.client.lane is not None
            with contextlib.closing(Lane(each.client.lane.connect(WAIT))) as lane:
                each.client.widen()
                assert 3 == each.client.streams
                speaker = each.client.converse(m.Pages(migration_id="a", lane=True))
                lane.say(Kind.DATA, b"a page")
                for piece in PIECES:
                    speaker.say(piece)
                speaker.end()
                assert len(PIECES) == each.client.conclude(timeout=WAIT).pages
            assert [b"a page"] == each.lane
            assert PIECES == each.heard

    def test_an_older_source_asks_for_none(self) -> None:
        with serving(4) as each:
            assert "" == each.client.open_data("a", streams=0)
            each.client.widen()
            assert 1 == each.client.streams
            assert len(PIECES) == each.converse()

    @pytest.mark.parametrize("streams", [0, 1])
    def test_a_request_without_a_number_means_the_first_connection(self, streams: int) -> None:
        with serving() as each:
            each.client.open_data("a", streams=2, insists=True)
            each.client.widen()
            assert each.client._data is not None
            for number, piece in enumerate(PIECES):
                each.client._data.send(Frame(Kind.DATA, piece, number=number))
            each.client._data.send(end(PIECES))
            each.ask(m.Pages(migration_id="a", streams=streams))
            assert PIECES == each.heard

    def test_an_older_target_lets_in_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It neither knows the fields nor answers by them."""
        made = Server._open_data

        def older(server: Server, request: m.OpenData) -> m.DataOpened:
            request.ClearField("streams")
            request.ClearField("insists")
            answer = made(server, request)
            answer.ClearField("streams")
            return answer

        monkeypatch.setattr(Server, "_open_data", older)
        with serving(4) as each:
            assert "" == each.client.open_data("a", streams=4, insists=True)
            each.client.widen()
            assert 1 == each.client.streams
            assert len(PIECES) == each.converse()

    def test_a_target_that_lets_in_more_than_were_asked_for_gets_no_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = Server._open_data

        def generous(server: Server, request: m.OpenData) -> m.DataOpened:
            request.streams, request.insists = 8, True
            answer = made(server, request)
            answer.streams = 2**32 - 1
            return answer

        monkeypatch.setattr(Server, "_open_data", generous)
        with serving() as each:
            each.client.open_data("a", streams=2)
            each.client.widen()
            assert 2 == each.client.streams
            assert len(PIECES) == each.converse()

    def test_any_number_may_be_asked_for_and_eight_are_let_in(self) -> None:
        with serving() as each:
            identity = tls.Identity.make()
            opened = each.client.call(
                m.OpenData(
                    migration_id="a",
                    certificate=identity.certificate,
                    address=HERE,
                    streams=2**32 - 1,
                    insists=True,
                )
            )
            assert 8 == opened.streams

    @pytest.mark.parametrize("came_in", [False, True])
    @pytest.mark.parametrize("made", [1, 2, 3])
    def test_where_one_cannot_be_made_those_before_it_are_used(
        self, monkeypatch: pytest.MonkeyPatch, made: int, *, came_in: bool
    ) -> None:
        """The target may have let it in all the same: then it is the last one, and is not used."""
        connect, tries = Way.connect, []

        def failing(way: Way, timeout: float) -> tls.TlsChannel:
            tries.append(timeout)
            if len(tries) < made:
                return connect(way, timeout)
            if came_in:
                connect(way, timeout).close()
            message = "a firewall"
            raise Unreachable(message)

        with serving() as each:
            each.client.open_data("a", streams=4, insists=True)
            monkeypatch.setattr(Way, "connect", failing)
            each.client.widen()

            assert made == each.client.streams == len(tries)
            assert len(PIECES) == each.converse()

    def test_the_limit_is_for_all_of_them(self) -> None:
        limit = RateLimit(1e9)
        with serving(limit=limit) as each:
            each.client.open_data("a", streams=3, insists=True)
            each.client.widen()
            links = [each.client._link, each.client._data, *each.client._further]
            assert [limit] * 4 == [link.channel.limit for link in links if link is not None]
            assert len(PIECES) == each.converse()

    def test_files_take_the_first_one_alone(self) -> None:
        with serving() as each:
            each.client.open_data("a", streams=3, insists=True)
            each.client.widen()
            content = os.urandom(3_000_000)
            put = m.PutFiles(migration_id="a", tree="upper")
            assert len(content) == each.client.call(put, lambda w: w.write(content)).bytes
            assert not any(link.traffic.sent for link in each.client._further)

    def test_one_conversation_may_follow_another(self) -> None:
        with serving() as each:
            each.client.open_data("a", streams=3, insists=True)
            each.client.widen()
            assert len(PIECES) == each.converse()
            assert 2 * len(PIECES) == each.converse()
            assert PIECES * 2 == each.heard


class TestHostile:
    """A source that says what is not so."""

    @pytest.mark.parametrize("streams", [3, 9, 2**32 - 1])
    @pytest.mark.parametrize("made", [1, 2])
    def test_more_than_it_made(self, made: int, streams: int) -> None:
        with serving() as each:
            each.client.open_data("a", streams=made, insists=True)
            each.client.widen()
            says = f"by {streams} connections, of which it made {made}"
            with pytest.raises(PeerError, match=says) as caught:
                each.ask(m.Pages(migration_id="a", streams=streams))
            assert 43 == caught.value.peer_code
            assert len(PIECES) == each.converse()  # what was made can still be used

    def test_several_beside_none_for_data(self) -> None:
        with serving(4) as each:
            with pytest.raises(PeerError, match="more connections than the one for requests"):
                each.ask(m.Pages(migration_id="a", streams=2), aside=False)
            with pytest.raises(PeerError, match="never made"):
                each.ask(m.Pages(migration_id="a", streams=2))

    def test_fewer_than_it_made(self) -> None:
        """Those that it does not speak of are not listened to."""
        with serving() as each:
            each.client.open_data("a", streams=4, insists=True)
            each.client.widen()
            more, each.client._further = each.client._further, each.client._further[:1]
            rotation, each.client._rotation = each.client._rotation, None
            assert rotation is not None
            for sender in rotation._senders[2:]:
                sender.close()
            rotation._senders = rotation._senders[:2]
            each.client._rotation = rotation
            more[2].send(Frame(Kind.DATA, b"nobody listens", number=7))
            assert len(PIECES) == each.converse()
            each.client._further = more
        assert PIECES == each.heard


class TestCut:
    """One of them that is lost ends the conversation at both sides."""

    @pytest.mark.parametrize("side", ["source", "target"])
    @pytest.mark.parametrize("lost", range(3))
    def test_of_any_one(self, lost: int, side: str) -> None:
        with serving() as each:
            each.client.open_data("a", streams=3, insists=True)
            each.client.widen()
            speaker = each.client.converse(m.Pages(migration_id="a"))
            for piece in PIECES:
                speaker.say(piece)
            for _ in PIECES:
                speaker.hear(WAIT)
            cut(each, side, lost)
            with pytest.raises(Unreachable):
                hear_and_say(speaker.hear, speaker.say)
            assert wait_for(lambda: each.ended is not None, WAIT)
            assert isinstance(each.ended, Unreachable)


def cut(each: Serving, side: str, lost: int) -> None:
    """Have one of the connections vanish, as seen from one of its ends."""
    beside = each.server._beside
    here = [each.client._data, *each.client._further]
    there = [beside.data, *beside._further]
    link = (here if side == "source" else there)[lost]
    assert link is not None
    link.channel.close()


def hear_and_say(hear: Callable[[float], object], say: Callable[[bytes], object]) -> None:
    """Go on until it is over."""
    while True:
        say(bytes(10_000))
        hear(0.01)
