"""The conversation about memory whose wanted pages are another process's business."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pytest

from pymigrate.migrate.lane_process import Asked, LaneProcess
from pymigrate.migrate.memory_sender import MemorySender
from pymigrate.runtime.errors import Unreachable
from pymigrate.transport import messages as m
from pymigrate.transport import pages
from pymigrate.transport.pages import News
from tests.unit.test_memory_sender import Target


class Lane:
    """Plays the process: says what it is told to, and keeps what it hears."""

    def __init__(self) -> None:
        self.served: list[Sequence[int]] = []
        self.words: queue.Queue[Asked | Exception | None] = queue.Queue()

    def serve(self, pids: Sequence[int]) -> None:
        self.served.append(pids)

    def hear(self) -> Asked | None:
        word = self.words.get()
        self.words.task_done()
        if isinstance(word, Exception):
            raise word
        return word

    def close(self) -> None:
        self.words.put(None)

    def release(self) -> None:
        pass


@contextmanager
def talking() -> Iterator[tuple[MemorySender, Target, Lane, list[BaseException]]]:
    target, lane = Target(), Lane()
    failures: list[BaseException] = []
    sender = MemorySender(
        target, m.PagesTaken, failures.append, ahead=True, lane=cast("LaneProcess", lane)
    )
    try:
        yield sender, target, lane, failures
    finally:
        sender.close()


def test_it_answers_once_nobody_writes_to_the_memory() -> None:
    with talking() as (sender, _, lane, _failures):
        sender.freeze([], traced=True)
        assert [] == lane.served  # there may be code of CRIU's in it

        sender.release()
        assert [[]] == lane.served


def test_of_processes_that_nobody_traces_it_answers_at_once() -> None:
    with talking() as (sender, _, lane, _failures):
        sender.freeze([])

        assert [[]] == lane.served


def test_what_it_was_asked_for_is_counted_and_holds_the_rest_back() -> None:
    with talking() as (sender, _, lane, _failures):
        lane.words.put(Asked(3, 3000))
        lane.words.put(Asked(5, 4000))
        lane.words.put(Asked(5, 4000))  # who hears this has dealt with those before
        lane.words.join()

        assert (5, 4000) == (sender.sent.wanted, sender.sent.wire)
        assert sender._pace._favours_until is not None


def test_its_end_is_that_of_the_conversation() -> None:
    with talking() as (sender, _, lane, failures):
        sender.freeze([])
        lane.words.put(Unreachable("the process has ended"))

        with pytest.raises(Unreachable, match="has ended"):
            sender.await_attached()

    assert ["the process has ended"] == [str(each) for each in failures]
    assert sender.has_failed


def test_it_is_ended_once_nobody_hears_the_target() -> None:
    """For whom its end is a failure, and theirs then would be one here: `undo` would not end."""
    with talking() as (sender, _, lane, failures):
        alive: list[bool] = []
        close = lane.close

        def note() -> None:
            alive.extend(thread.is_alive() for thread in sender._threads)
            close()

        lane.close = note  # type: ignore[method-assign]
        sender.freeze([])
        sender.close()

    assert [False] * 6 == alive  # it may be repeated
    assert [] == failures


def test_its_end_is_no_loss_once_all_was_sent() -> None:
    """The target hangs up when it has everything; that may be heard before its word."""
    with talking() as (sender, target, lane, failures):
        said = target.end

        def end() -> None:
            lane.words.put(Unreachable("beta: connection lost"))
            lane.words.join()
            said()

        target.end = end  # type: ignore[method-assign]
        sender.freeze([])
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.begin()
        sender.wait()

    assert [] == failures
