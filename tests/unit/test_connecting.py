"""A connection that is made beside something else: taken, refused, or never wanted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pymigrate.migrate.connecting import Connecting
from pymigrate.migrate.peer import Peer
from pymigrate.runtime.errors import ProtocolError, Unreachable
from pymigrate.transport import loopback
from pymigrate.transport import messages as m
from pymigrate.transport.rpc import Client, Server


class Target:
    """An agent that can be connected to again and again; it counts who came and who hung up."""

    def __init__(self) -> None:
        self.came = 0
        self.hung_up = 0
        self.refusal: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._threads: list[threading.Thread] = []

    def connect(self, undo: ExitStack) -> Client:
        self.may_answer.wait(10)
        self.came += 1
        undo.callback(self._gone)
        if self.refusal is not None:
            raise self.refusal
        left, right = loopback.pair("beta", "alpha")
        thread = threading.Thread(target=self._serve, args=(right,))
        thread.start()
        self._threads.append(thread)
        return undo.enter_context(Client(left))

    def _gone(self) -> None:
        self.hung_up += 1

    def _serve(self, channel: loopback.LoopbackChannel) -> None:
        status = m.StatusReply(phase="reserved")
        with contextlib.suppress(Unreachable):  # the client's end of it
            Server(channel, {m.Status: lambda *_: status}).serve()

    def close(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def target() -> Iterator[Target]:
    with contextlib.closing(Target()) as made:
        yield made


def test_what_was_begun_is_what_is_asked(target: Target) -> None:
    with Peer(target.connect, "mig-1") as peer:
        peer.expect()
        peer.expect()
        assert peer.status().phase == "reserved"
        assert target.came == 1
    assert target.hung_up == 1


def test_what_nobody_asked_is_hung_up(target: Target) -> None:
    with Peer(target.connect, "mig-1") as peer:
        peer.expect()
        peer.expect_memory(tls=True)
    assert (target.came, target.hung_up) == (2, 2)


def test_it_is_made_while_its_user_does_something_else(target: Target) -> None:
    target.may_answer.clear()
    connecting = Connecting(target.connect, "mig-1")
    assert target.came == 0
    target.may_answer.set()
    line = connecting.take()
    connecting.close()
    assert (target.came, target.hung_up) == (1, 0)
    line.undo.close()
    assert target.hung_up == 1


def test_who_asks_gets_what_went_wrong_and_the_next_one_tries_again(target: Target) -> None:
    target.refusal = Unreachable("beta does not answer")
    with Peer(target.connect, "mig-1") as peer:
        peer.expect()
        with pytest.raises(Unreachable, match="beta does not answer"):
            peer.status()
        target.refusal = None
        assert peer.status().phase == "reserved"
    assert (target.came, target.hung_up) == (2, 2)


def test_nobody_hears_of_a_failure_that_nobody_asked_for(target: Target) -> None:
    target.refusal = ProtocolError("that is no agent")
    with Peer(target.connect, "mig-1") as peer:
        peer.expect_memory(tls=False)
    assert (target.came, target.hung_up) == (1, 1)
