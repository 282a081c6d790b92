"""A conversation by several links in turn: its order, its end, and what the end of a link does."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime.errors import (
    Corrupted,
    PeerError,
    ProtocolError,
    PymigrateError,
    Unreachable,
)
from pymigrate.transport import compression, loopback, rotation, stream_count
from pymigrate.transport import messages as m
from pymigrate.transport.conversation import _END, Listener, Speaker
from pymigrate.transport.frames import Frame, Kind
from pymigrate.transport.link import INTERVAL, READ_AHEAD, SILENCE, Link
from pymigrate.transport.loopback import LoopbackChannel
from pymigrate.transport.rotation import Rotation
from tests.fakes import tls_pair
from tests.lab.registry import wait_for

WAIT = 10.0  # seconds, for what happens at once
COUNTS = (2, 3, 8)


class TestHowMany:
    """Decided without any connection."""

    @pytest.mark.parametrize(
        ("processors", "streams"),
        [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (8, 4), (9, 4), (256, 4)],
    )
    def test_by_default_half_of_the_processors_and_no_more_than_four(
        self, processors: int, streams: int
    ) -> None:
        assert streams == stream_count.usual(processors)
        assert 1 == stream_count.usual(processors, limited=True)

    @pytest.mark.parametrize(
        ("asked", "insists", "here", "streams"),
        [
            (0, False, 4, 1),  # an older source
            (4, False, 1, 1),
            (4, False, 2, 2),
            (2, False, 4, 2),
            (3, True, 1, 3),
            (8, True, 1, 8),
            (9, True, 4, 8),
            (2**32 - 1, True, 1, 8),
            (2**32 - 1, False, 4, 4),
            (0, True, 4, 1),
        ],
    )
    def test_a_target_lets_in_what_suits_it_unless_somebody_insists(
        self, asked: int, *, insists: bool, here: int, streams: int
    ) -> None:
        assert streams == stream_count.granted(asked, insists=insists, here=here)

    @pytest.mark.parametrize("streams", range(1, stream_count.MOST + 1))
    def test_all_links_together_read_ahead_as_much_as_one(self, streams: int) -> None:
        assert 1 <= rotation.read_ahead(streams)
        assert streams * rotation.read_ahead(streams) <= READ_AHEAD


class Ends:
    """Both ends of some links, which are closed in the end; no thread of theirs is left."""

    def __init__(
        self,
        pairs: Sequence[tuple[LoopbackChannel, LoopbackChannel]],
        interval: float = INTERVAL,
        silence: float = SILENCE,
    ) -> None:
        self.before = set(threading.enumerate())
        self.near = [Link(left, interval=interval, silence=silence) for left, _ in pairs]
        self.far = [Link(right, interval=interval, silence=silence) for _, right in pairs]
        self.rotation = Rotation(self.near)
        self.speaker = Speaker(self.near[0], rotation=self.rotation)

    def listener(self) -> Listener:
        return Listener(self.far[0], further=self.far[1:])

    def close(self) -> None:
        for link in (*self.near, *self.far):
            link.close()
        self.rotation.close()
        assert set(threading.enumerate()) <= self.before


def made(count: int) -> list[tuple[LoopbackChannel, LoopbackChannel]]:
    return [loopback.pair("beta", "alpha") for _ in range(count)]


@pytest.fixture(params=COUNTS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with contextlib.closing(Ends(made(request.param))) as ends:
        yield ends


@contextlib.contextmanager
def listening(ends: Ends) -> Iterator[list[bytes]]:
    """Listen in a thread until the end; what was heard is whole after the block."""
    heard: list[bytes] = []
    listener = ends.listener()

    def listen() -> None:
        while (piece := listener.hear()) is not None:
            heard.append(bytes(piece))

    thread = threading.Thread(target=listen)
    thread.start()
    yield heard
    thread.join(WAIT)
    assert not thread.is_alive()


class TestOrder:
    """Piece i goes by link i modulo their number, and is heard as the i-th."""

    @pytest.mark.parametrize("pieces", [0, 1, 2, 3, 7, 8, 9, 100])
    def test_pieces_are_heard_in_the_order_in_which_they_were_said(
        self, ends: Ends, pieces: int
    ) -> None:
        expected = [os.urandom(1 + 37 * number) for number in range(pieces)]
        with listening(ends) as heard:
            for piece in expected:
                ends.speaker.say(piece)
            ends.speaker.end()

        assert expected == heard
        by_each = [link.traffic.sent for link in ends.near]
        assert min(pieces + 1, len(ends.near)) == sum(1 for sent in by_each if sent)

    def test_packed_pieces_are_heard_unpacked(self, ends: Ends) -> None:
        packed = compression.compress(bytes(1000), level=1)
        assert packed is not None
        with listening(ends) as heard:
            for _ in range(20):
                assert len(packed) == ends.speaker.say(bytes(1000), packed)
            ends.speaker.end()

        assert [bytes(1000)] * 20 == heard

    def test_a_slow_link_changes_no_order(self) -> None:
        """The first one's pieces are read by nobody until all the others' lie there."""
        may_read = threading.Event()

        class Slow(LoopbackChannel):
            def receive(self, *, timeout: float | None = None) -> Frame:
                may_read.wait(WAIT)
                return super().receive(timeout=timeout)

        pairs = made(3)
        pairs[0][1].__class__ = Slow
        with contextlib.closing(Ends(pairs)) as ends:
            with listening(ends) as heard:
                for number in range(6):
                    ends.speaker.say(bytes([number]))
                ends.rotation.finish()
                assert [] == heard
                may_read.set()
                ends.speaker.end()
            assert [bytes([number]) for number in range(6)] == heard

    def test_news_takes_the_first_link_alone(self, ends: Ends) -> None:
        listener = ends.listener()
        for number in range(20):
            listener.tell(bytes([number]))

        assert [bytes([n]) for n in range(20)] == [ends.speaker.hear(WAIT) for _ in range(20)]
        assert not any(link.traffic.sent for link in ends.far[1:])

    def test_by_real_connections(self) -> None:
        with contextlib.ExitStack() as undo:
            pairs = [tls_pair.connected() for _ in range(3)]
            near = [undo.enter_context(Link(left)) for left, _ in pairs]
            far = [undo.enter_context(Link(right)) for _, right in pairs]
            turns = Rotation(near)
            speaker, listener = Speaker(near[0], rotation=turns), Listener(far[0], further=far[1:])
            expected = [os.urandom(1 << 20) for _ in range(20)]
            heard: list[bytes] = []

            def listen() -> None:
                while (piece := listener.hear()) is not None:
                    heard.append(bytes(piece))

            thread = threading.Thread(target=listen)
            thread.start()
            for piece in expected:
                speaker.say(piece)
            speaker.end()
            thread.join(WAIT)
            for link in near:
                link.close()
            turns.close()
        assert expected == heard


class Held(LoopbackChannel):
    """Sends nothing but PING until it may."""

    may_send: threading.Event

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        if frame.kind is not Kind.PING:
            self.may_send.wait(WAIT)
        super().send(frame, timeout=timeout)


class TestMemory:
    """What is said belongs to the links until they have sent it, and that is never much."""

    def test_it_is_given_back_when_its_link_has_sent_it(self) -> None:
        may_send = threading.Event()
        pairs = made(2)
        pairs[1][0].__class__ = Held
        vars(pairs[1][0])["may_send"] = may_send
        with contextlib.closing(Ends(pairs)) as ends, listening(ends) as heard:
            back: list[int] = []
            first, second = threading.Event(), threading.Event()

            def gone(number: int, event: threading.Event) -> Callable[[], None]:
                def note() -> None:
                    back.append(number)
                    event.set()

                return note

            ends.speaker.say(b"0", done=gone(0, first))
            ends.speaker.say(b"1", done=gone(1, second))
            assert first.wait(WAIT)
            assert [0] == back
            may_send.set()
            assert second.wait(WAIT)
            ends.speaker.end()
        assert [0, 1] == back
        assert [b"0", b"1"] == heard

    def test_who_speaks_waits_for_a_link_that_has_enough_to_send(self) -> None:
        may_send = threading.Event()
        pairs = made(2)
        pairs[1][0].__class__ = Held
        vars(pairs[1][0])["may_send"] = may_send
        with contextlib.closing(Ends(pairs)) as ends, listening(ends) as heard:
            said = threading.Semaphore(0)

            def speak() -> None:
                for number in range(8):
                    ends.speaker.say(bytes([number]))
                    said.release()

            thread = threading.Thread(target=speak)
            thread.start()
            # 0 to 4: of the second link one is being sent and one waits; its third has to be waited
            # for by whoever says it.
            for _ in range(5):
                assert said.acquire(timeout=WAIT)
            assert not said.acquire(timeout=0.1)
            may_send.set()
            thread.join(WAIT)
            ends.speaker.end()
        assert 8 == len(heard)

    def test_the_end_is_said_when_all_links_have_sent_what_they_have(self) -> None:
        may_send = threading.Event()
        pairs = made(2)
        pairs[1][0].__class__ = Held
        vars(pairs[1][0])["may_send"] = may_send
        with contextlib.closing(Ends(pairs)) as ends, listening(ends) as heard:
            for number in range(2):
                ends.speaker.say(bytes([number]))  # so the END goes by the link that sends
            ending, ends_by = outcome(ends.speaker.end)
            ending.join(0.1)
            assert ending.is_alive()
            may_send.set()
            ending.join(WAIT)
            assert [None] == ends_by
        assert 2 == len(heard)

    def test_by_one_link_there_is_no_other_thread(self) -> None:
        near, far = loopback.pair()
        with Link(near) as link, Link(far) as other:
            before = threading.active_count()
            speaker, here = Speaker(link), []
            speaker.say(b"x", done=lambda: here.append(threading.current_thread()))
            speaker.end()
            listener = Listener(other)
            assert b"x" == listener.hear()
            assert listener.hear() is None
            assert before == threading.active_count()
        assert [threading.current_thread()] == here


class TestCut:
    """The end of one link is the end of all, at both sides, and nobody is left waiting."""

    @pytest.mark.parametrize("count", COUNTS)
    @pytest.mark.parametrize("side", ["near", "far"])
    @pytest.mark.parametrize("at", range(10))
    def test_of_any_link_at_any_piece(self, count: int, side: str, at: int) -> None:
        for lost in range(count):
            with contextlib.closing(Ends(made(count))) as ends:
                listener = ends.listener()
                heard: list[bytes] = []

                def listen(listener: Listener = listener, heard: list[bytes] = heard) -> None:
                    while (piece := listener.hear()) is not None:
                        heard.append(bytes(piece))

                listening, listens = outcome(listen)
                hearing, hears = outcome(ends.speaker.hear)

                def speak(ends: Ends = ends, lost: int = lost) -> None:
                    for number in range(at):
                        ends.speaker.say(bytes([number]))
                    getattr(ends, side)[lost].channel.close()
                    for number in range(at, 1000):
                        ends.speaker.say(bytes([number % 256]) * 100_000)
                    ends.speaker.end()

                speaking, speaks = outcome(speak)
                for thread in (listening, hearing, speaking):
                    thread.join(WAIT)
                    assert not thread.is_alive()
                for said in (listens, hears, speaks):
                    assert isinstance(said[0], Unreachable), said
                assert [bytes([n]) for n in range(at)][: len(heard)] == heard[:at]
                for link in (*ends.near, *ends.far):
                    with pytest.raises(Unreachable):
                        link.check()

    @pytest.mark.parametrize("lost", range(3))
    def test_a_link_that_is_silent_while_the_others_are_busy_is_missed(self, lost: int) -> None:
        class Mute(LoopbackChannel):
            def send(self, frame: Frame, *, timeout: float | None = None) -> None:
                pass

        pairs = made(3)
        with contextlib.closing(Ends(pairs, interval=0.02, silence=0.3)) as ends:
            listener = ends.listener()
            done = threading.Event()

            def speak() -> None:
                while not done.is_set():
                    ends.speaker.say(bytes(10_000))

            speaking, speaks = outcome(speak)
            for _ in range(6):
                assert listener.hear() is not None
            pairs[lost][0].__class__ = Mute

            def listen() -> None:
                while listener.hear() is not None:
                    pass

            listening, listens = outcome(listen)
            for thread in (listening, speaking):
                thread.join(WAIT)
                assert not thread.is_alive()
            assert "no sign of life" in str(listens[0])
            assert isinstance(speaks[0], Unreachable)

    @pytest.mark.parametrize("blocked", range(3))
    def test_who_sends_to_one_that_reads_nothing_is_woken_by_the_end_of_another(
        self, blocked: int
    ) -> None:
        class Deaf(LoopbackChannel):
            def receive(self, *, timeout: float | None = None) -> Frame:
                closed.wait()
                return super().receive(timeout=timeout)

        closed = threading.Event()
        pairs = made(3)
        pairs[blocked][1].__class__ = Deaf
        # Without a PING, by which a reader would notice in the end that it is given up.
        with (
            contextlib.closing(Ends(pairs, interval=60)) as ends,
            contextlib.ExitStack() as undo,
        ):
            undo.callback(closed.set)

            def speak() -> None:
                while True:
                    ends.speaker.say(bytes(1 << 20))

            speaking, speaks = outcome(speak)
            way = pairs[blocked][0]._outgoing
            assert wait_for(lambda: way.size + (1 << 20) > loopback.CAPACITY, WAIT)  # it is full
            ends.near[(blocked + 1) % 3].channel.close()
            speaking.join(WAIT)
            assert not speaking.is_alive()
            assert isinstance(speaks[0], Unreachable)

    def test_a_reason_that_was_given_by_any_link_is_what_everybody_gets(self) -> None:
        for at in range(3):
            with contextlib.closing(Ends(made(3))) as ends:
                ends.far[at].send(Frame(Kind.ERROR, m.pack_error(0, Corrupted("altered"))))
                ends.far[at].close()
                with pytest.raises(PeerError, match="altered"):
                    ends.speaker.hear(WAIT)
                if at:
                    with pytest.raises(PeerError, match="altered"):
                        ends.near[0].check()

    def test_a_conversation_on_links_that_have_ended_does_not_begin(self) -> None:
        with contextlib.closing(Ends(made(3))) as ends:
            ends.near[2].close()
            with pytest.raises(Unreachable):
                ends.speaker.say(b"x")
            with pytest.raises(Unreachable):
                Listener(ends.far[0], further=ends.far[1:]).hear()

    def test_who_gives_up_ends_all(self) -> None:
        with contextlib.closing(Ends(made(3))) as ends:
            listener = ends.listener()
            listener.give_up(Unreachable("the lane is cut"))
            for link in ends.far:
                with pytest.raises(Unreachable, match="the lane is cut"):
                    link.check()
            with pytest.raises(Unreachable, match="the lane is cut"):
                listener.hear()


def outcome(act: Callable[[], object]) -> tuple[threading.Thread, list[BaseException | None]]:
    """Do it in a thread; return that, and, once it has ended, by what."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            act()
        except PymigrateError as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


class Change(Enum):
    """What a source may do otherwise than it should."""

    LEAVE_OUT = "leave out"
    NUMBER = "number"
    END = "end"
    ADD = "add"

    def make(self, frames: list[tuple[Kind, int]], at: int, value: int) -> None:
        if self is Change.ADD:
            frames.insert(at, (Kind.DATA, value))
        elif at < len(frames):
            kind, number = frames.pop(at)
            if self is Change.NUMBER:
                frames.insert(at, (kind, value))
            elif self is Change.END:
                frames.insert(at, (Kind.END, number))


class TestHostile:
    """A source or target that does not keep to the rotation."""

    @pytest.fixture
    def far(self) -> Iterator[Ends]:
        with contextlib.closing(Ends(made(3))) as ends:
            yield ends

    @pytest.mark.parametrize(
        ("sent", "error", "says"),
        [
            ({0: [(Kind.DATA, 1)]}, Corrupted, "piece 0 is missing"),
            ({0: [(Kind.DATA, 0)], 1: [(Kind.DATA, 0)]}, Corrupted, "piece 1 is missing, 0 came"),
            ({0: [(Kind.DATA, 0)], 1: [(Kind.DATA, 2)]}, Corrupted, "piece 1 is missing, 2 came"),
            ({0: [(Kind.DATA, 0)], 1: [(Kind.END, 2)]}, Corrupted, "other numbers"),
            ({0: [(Kind.DATA, 0)], 1: [(Kind.END, 0)]}, Corrupted, "other numbers"),
            ({0: [(Kind.END, 1)]}, Corrupted, "other numbers"),
            ({0: [(Kind.DATA, 0)], 1: [(Kind.REQUEST, 0)]}, ProtocolError, "sent REQUEST"),
            ({0: [(Kind.DATA, 0)], 1: [(Kind.REPLY, 0)]}, ProtocolError, "sent REPLY"),
        ],
    )
    def test_pieces_that_are_out_of_turn_are_refused(
        self,
        far: Ends,
        sent: dict[int, list[tuple[Kind, int]]],
        error: type[PymigrateError],
        says: str,
    ) -> None:
        for at, frames in sent.items():
            for kind, number in frames:
                far.near[at].send(frame(kind, number))
        listener = far.listener()
        with pytest.raises(error, match=says):
            hear_all(listener)
        assert not listener.ended

    @given(
        count=st.integers(2, 4),
        pieces=st.integers(0, 8),
        changes=st.lists(
            st.tuples(st.integers(0, 8), st.sampled_from([*Change]), st.integers(0, 9)), max_size=2
        ),
    )
    def test_whatever_is_sent_only_an_unbroken_sequence_is_heard(
        self, count: int, pieces: int, changes: list[tuple[int, Change, int]]
    ) -> None:
        """Against a reader that knows no threads: all is there, and then the links end."""
        links: list[list[tuple[Kind, int]]] = [[] for _ in range(count)]
        for turn in range(pieces):
            links[turn % count].append((Kind.DATA, turn))
        links[pieces % count].append((Kind.END, pieces))
        for at, change, value in changes:
            change.make(links[at % count], at // count, value)
        pieces = 0
        for turn in range(100):
            mine = links[turn % len(links)][turn // len(links) :][:1]
            ends = "cut" if not mine else "damaged"
            if mine != [(Kind.DATA, turn)]:
                ends = "whole" if mine == [(Kind.END, turn)] else ends
                break
            pieces += 1

        with contextlib.closing(Ends(made(len(links)))) as given_ends:
            for link, frames in zip(given_ends.near, links, strict=True):
                for kind, number in frames:
                    link.send(frame(kind, number))
            listener = given_ends.listener()
            heard = [listener.hear() for _ in range(pieces)]
            listening, listens = outcome(listener.hear)
            if ends == "cut":
                given_ends.near[-1].close()
            listening.join(WAIT)
        assert [b"x"] * pieces == heard
        kinds: dict[str, type] = {"cut": Unreachable, "damaged": Corrupted, "whole": type(None)}
        assert isinstance(listens[0], kinds[ends])
        assert (ends == "whole") == listener.ended

    def test_an_end_by_a_link_whose_turn_it_is_not_is_no_end(self, far: Ends) -> None:
        """What is missing may still come, so it is waited for; then it is an end too early."""
        far.near[0].send(frame(Kind.DATA, 0))
        far.near[2].send(frame(Kind.END, 1))
        listener = far.listener()
        assert b"x" == listener.hear()
        hearing, hears = outcome(listener.hear)
        far.near[1].send(frame(Kind.DATA, 1))
        hearing.join(WAIT)
        assert [None] == hears
        with pytest.raises(Corrupted, match="other numbers"):
            listener.hear()

    def test_an_end_by_the_wrong_link_and_then_nothing_ends_with_the_line(self, far: Ends) -> None:
        far.near[0].send(frame(Kind.DATA, 0))
        far.near[0].send(frame(Kind.END, 1))
        listener = far.listener()
        assert b"x" == listener.hear()
        hearing, hears = outcome(listener.hear)
        far.near[2].close()
        hearing.join(WAIT)
        assert isinstance(hears[0], Unreachable)
        assert not listener.ended

    @pytest.mark.parametrize("kind", [Kind.EVENT, Kind.REPLY, Kind.DATA, Kind.END, Kind.REQUEST])
    def test_a_target_that_speaks_by_another_link_than_the_first_is_refused(
        self, far: Ends, kind: Kind
    ) -> None:
        far.far[1].send(Frame(kind, b""))
        assert wait_for(lambda: far.near[1].waiting, WAIT)
        far.speaker.say(b"0")
        with pytest.raises(ProtocolError, match=f"sent {kind.name} by a connection that only"):
            say_many(far.speaker)
        with pytest.raises(ProtocolError, match="only takes pieces"):
            far.speaker.hear(WAIT)

    def test_events_of_the_source_are_nothing_by_any_link(self, far: Ends) -> None:
        for link in far.near:
            link.send(Frame(Kind.EVENT, b"news"))
        with listening(far) as heard:
            far.speaker.say(b"0")
            far.speaker.end()
        assert [b"0"] == heard

    def test_an_error_that_cannot_be_read_is_an_error_too(self, far: Ends) -> None:
        far.far[2].send(Frame(Kind.ERROR, b"\xff\xff"))
        far.far[2].close()
        with pytest.raises(ProtocolError, match="cannot be read"):
            far.speaker.hear(WAIT)


def hear_all(listener: Listener) -> None:
    while listener.hear() is not None:
        pass


def say_many(speaker: Speaker) -> None:
    for _ in range(1000):
        speaker.say(b"x")


def frame(kind: Kind, number: int) -> Frame:
    """Make one: DATA of one byte with a number, END that says it was so many of them."""
    if kind is Kind.DATA:
        return Frame(kind, b"x", number=number)
    return Frame(kind, _END.pack(number, number) if kind is Kind.END else b"")
