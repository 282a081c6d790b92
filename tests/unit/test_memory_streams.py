"""Memory that goes by several links in turn: a real process, a conversation, its far end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.migrate.memory_sender import MemorySender
from pymigrate.migrate.outbox import BUFFERS, FURTHER, SPARE, Outbox, buffers
from pymigrate.migrate.pace import EACH, MOST, Pace
from pymigrate.runtime.errors import PymigrateError, Unreachable
from pymigrate.transport import loopback, pages, stream_count
from pymigrate.transport import messages as m
from pymigrate.transport.conversation import Listener, Speaker
from pymigrate.transport.link import Link
from pymigrate.transport.pages import News, Stage
from pymigrate.transport.rotation import Rotation
from tests.unit.test_memory_sender import memory_of, pid

__all__ = ["pid"]
WAIT = 30.0  # seconds, for what takes one at the most


class Far:
    """Takes all pieces, and says so, as a target does; may lose a link after so many of them."""

    def __init__(self, streams: int, *, lose: int | None = None, after: int = 0) -> None:
        pairs = [loopback.pair("beta", "alpha") for _ in range(streams)]
        self.near = [Link(left) for left, _ in pairs]
        self._far = [Link(right) for _, right in pairs]
        self.rotation = Rotation(self.near)
        self.listener = Listener(self._far[0], further=self._far[1:])
        self.pages: dict[int, bytes] = {}
        self.stages: list[Stage] = []
        self.failure: PymigrateError | None = None
        self._lose, self._after = lose, after
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def speaker(self) -> Speaker:
        return Speaker(self.near[0], rotation=self.rotation)

    def _run(self) -> None:
        try:
            self._take()
        except PymigrateError as error:
            self.failure = error

    def _take(self) -> None:
        taken = 0
        while (piece := self.listener.hear()) is not None:
            taken += len(piece)
            batch = pages.decode(piece)
            self.stages.append(batch.stage)
            content = [batch.content[at : at + 4096] for at in range(0, len(batch.content), 4096)]
            with_content = [run for run in batch.runs if run.kind is pages.Kind.CONTENT]
            places = [run.address + n * 4096 for run in with_content for n in range(run.pages)]
            self.pages |= dict(zip(places, map(bytes, content), strict=True))
            if len(self.stages) == self._after and self._lose is not None:
                self._far[self._lose].channel.close()
            self.listener.tell(pages.news(News.TAKEN, value=taken))
        self.listener.tell(pages.news(News.COMPLETE))

    def close(self) -> None:
        for link in (*self.near, *self._far):
            link.close()
        self.rotation.close()
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def sending(far: Far, streams: int, *, ahead: bool = True) -> Iterator[MemorySender]:
    threads = set(threading.enumerate())
    sender = MemorySender(far.speaker(), m.PagesTaken, ahead=ahead, streams=streams)
    try:
        yield sender
    finally:
        sender.close()
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("streams", [2, 3, 8])
def test_a_round_and_the_rest_arrive_whole(pid: int, streams: int) -> None:
    with contextlib.closing(Far(streams)) as far, sending(far, streams) as sender:
        sender.await_pager()
        sender.round([pid])
        early = dict(far.pages)
        sender.freeze([pid])
        far.listener.tell(pages.news(News.ATTACHED, value=1))
        sender.begin()
        sender.wait()
        expected = memory_of(pid)
        assert expected == early == far.pages
        assert {Stage.EARLY, Stage.FINAL} == set(far.stages)
        assert sender.sent.same == sender.sent.early
        by_each = [link.traffic.sent for link in far.near]
        assert min(by_each) > 0
        assert sender._outbox.is_idle


@pytest.mark.parametrize("streams", [2, 3])
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_cut_of_any_link_after_any_piece_a_round_goes_on_with_the_next_conversation(
    pid: int, streams: int, after: int
) -> None:
    for lost in range(streams):
        with contextlib.closing(Far(streams, lose=lost, after=after)) as far:
            with sending(far, streams) as first, pytest.raises(Unreachable):
                first.round([pid])
            held = far.pages
        assert isinstance(far.failure, Unreachable)

        with contextlib.closing(Far(streams)) as far:
            far.pages = held
            known = first._reader.known.processes()
            with contextlib.closing(
                MemorySender(far.speaker(), m.PagesTaken, ahead=True, after=first, streams=streams)
            ) as second:
                for each in known:
                    far.listener.tell(pages.news(News.HELD, inner=each))
                second.await_pager()
                second.round([pid])
            assert memory_of(pid) == far.pages


def test_one_that_is_lost_once_frozen_is_told_and_ends_the_wait(pid: int) -> None:
    with contextlib.closing(Far(3, lose=1, after=4)) as far:
        failures: list[BaseException] = []
        sender = MemorySender(far.speaker(), m.PagesTaken, failures.append, ahead=True, streams=3)
        sender.freeze([pid])
        sender.begin()
        with pytest.raises(Unreachable):
            sender.wait()
        sender.close()
    assert 1 == len(failures)


def test_pages_that_are_wanted_are_simply_next(pid: int) -> None:
    """Where there is no lane. They overtake what waits to be sent, and nothing that a link has."""
    with contextlib.closing(Far(3)) as far, sending(far, 3, ahead=False) as sender:
        sender.freeze([pid])
        memory = memory_of(pid)
        asked = sorted(memory)[::400]
        inner = inner_of(pid)
        far.listener.tell(b"".join(pages.news(News.WANTED, inner=inner, value=at) for at in asked))
        sender._await(lambda: sender.sent.wanted >= len(asked))
        far.listener.tell(pages.news(News.ATTACHED, value=1))
        sender.begin()
        sender.wait()
        assert memory == far.pages


def inner_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [each for each in status if each.startswith("NSpid:")]
    return int(line.split()[-1])


class TestHowMuch:
    """More links may have more on their way, within bounds; one has what it had."""

    def test_by_one_all_is_as_it_was(self) -> None:
        assert BUFFERS == buffers(1)
        pace = Pace(streams=1)
        pace.somebody_waits = False
        assert MOST == pace.window

    @pytest.mark.parametrize("streams", range(2, stream_count.MOST + 1))
    def test_each_of_several_has_something_to_send(self, streams: int) -> None:
        outbox = Outbox(1, buffers(streams))
        assert BUFFERS + FURTHER * (streams - 1) + SPARE == outbox._count
        pace = Pace(streams=streams)
        pace.somebody_waits = False
        assert max(MOST, EACH * streams) == pace.window <= 24 << 20
        pace.somebody_waits = True
        assert 1 << 20 == pace.window  # whoever waits for a page does not wait longer
