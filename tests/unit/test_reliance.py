"""What a supervisor does when the program that brings a container's memory is lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pymigrate.runtime.clients import Reply
from pymigrate.runtime.errors import WrongState
from pymigrate.runtime.reliance import Reliance


class Scene:
    """A reliance, with its program and somebody who waits, and what it does to the container."""

    def __init__(self) -> None:
        self.program, self.waiter, *self._ends = (*socket.socketpair(), *socket.socketpair())
        self.ended = 0
        self.answered: list[socket.socket] = []
        self.reliance = Reliance(self._end, self._answer)

    def _end(self) -> None:
        assert not self.answered  # who is told that it is over must find it ended
        self.ended += 1

    def _answer(self, client: socket.socket, _reply: Reply) -> None:
        self.answered.append(client)

    def ask(self, op: str, client: socket.socket) -> Reply | None:
        return self.reliance.operations()[op](client, {}, [])

    def close(self) -> None:
        self.reliance.forget()
        for each in (self.program, self.waiter, *self._ends):
            each.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.close()


def test_a_lost_program_ends_the_container_before_who_waits_is_told(scene: Scene) -> None:
    scene.ask("rely", scene.program)
    assert scene.ask("wait_relied", scene.waiter) is None

    scene.reliance.on_gone(scene.program)

    assert (1, [scene.waiter]) == (scene.ended, scene.answered)
    assert "killed" in str(scene.reliance.reason)


def test_one_that_is_needed_no_more_may_go(scene: Scene) -> None:
    scene.ask("rely", scene.program)
    scene.ask("wait_relied", scene.waiter)

    scene.ask("rely_no_more", scene.program)
    assert [scene.waiter] == scene.answered
    scene.reliance.on_gone(scene.program)

    assert (0, None) == (scene.ended, scene.reliance.reason)
    assert scene.ask("wait_relied", scene.waiter) is not None


def test_others_that_go_are_nothing_and_are_not_answered(scene: Scene) -> None:
    scene.ask("rely", scene.program)
    scene.ask("wait_relied", scene.waiter)

    scene.reliance.on_gone(scene.waiter)
    scene.ask("rely_no_more", scene.waiter)
    scene.reliance.on_gone(scene.program)

    assert (1, []) == (scene.ended, scene.answered)


def test_the_first_reason_stays_until_it_runs_anew(scene: Scene) -> None:
    scene.ask("rely", scene.program)
    scene.reliance.operations()["fail"](scene.waiter, {"reason": "the disk is gone"}, [])
    scene.reliance.on_gone(scene.program)
    assert "the disk is gone" == scene.reliance.reason
    scene.reliance.forget()
    assert scene.reliance.reason is None


def test_there_is_one_program_at_a_time(scene: Scene) -> None:
    scene.ask("rely", scene.program)
    with pytest.raises(WrongState, match="another process"):
        scene.ask("rely", scene.waiter)
