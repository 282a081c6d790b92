"""Streams, log and attached clients: nothing is lost, and nobody holds up anybody."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymigrate.runtime import log, relay, stdio


class Bench:
    """A relay, the container's ends of its pipes, and a selector to drive it."""

    def __init__(self, directory: Path, *, with_stdin: bool) -> None:
        self.selector = selectors.DefaultSelector()
        self.path = directory / "log"
        self.relay = relay.Relay(self.selector, self.path)
        self.theirs, ours = stdio.make_pipes(with_stdin=with_stdin)
        self.relay.add_streams(ours)

    def turn(self) -> None:
        """React to all that is ready now, until nothing is."""
        while ready := self.selector.select(timeout=0):
            for key, events in ready:
                if self.selector.get_map().get(key.fd) is key:
                    key.data(events)

    def logged(self) -> bytes:
        return b"".join(entry.output for entry in log.Reader(self.path).entries())


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Bench] = []

    def build(*, with_stdin: bool = False) -> Bench:
        made.append(Bench(tmp_path, with_stdin=with_stdin))
        return made[-1]

    yield build
    for bench in made:
        bench.relay.close()
        bench.selector.close()
        bench.theirs.close()


def out(bench: Bench) -> int:
    assert bench.theirs.stdout is not None
    return bench.theirs.stdout


def test_output_is_logged_and_clients_are_told(make: Make) -> None:
    bench = make()
    with bench.relay.attach() as client:
        os.write(out(bench), b"hello\n")
        bench.turn()

        assert (relay.LOG_GREW, b"hello\n") == (client.recv(9), bench.logged())


def test_a_client_that_never_reads_holds_up_nothing(make: Make) -> None:
    bench = make()
    with bench.relay.attach():
        for _ in range(3000):
            os.write(out(bench), b"x" * 100)
            bench.turn()

    assert 300_000 == len(bench.logged())


def test_a_client_that_dies_is_forgotten(make: Make) -> None:
    bench = make()
    before = len(bench.selector.get_map())
    bench.relay.attach().close()
    bench.turn()

    assert before == len(bench.selector.get_map())


def test_input_waits_for_a_container_that_does_not_read(make: Make) -> None:
    bench = make(with_stdin=True)
    data = os.urandom(1 << 20)
    got = bytearray()
    with bench.relay.attach() as client:
        client.setblocking(False)
        packets = [
            relay.INPUT + data[start : start + relay.PACKET]
            for start in range(0, len(data), relay.PACKET)
        ]
        packets.append(relay.END_OF_INPUT)
        assert bench.theirs.stdin is not None
        ended = False
        while not ended:
            try:
                while packets:
                    client.send(packets[0])
                    packets.pop(0)
            except BlockingIOError:
                pass  # held back, which is the point
            bench.turn()
            piece = os.read(bench.theirs.stdin, 100_000)
            got += piece
            ended = not piece

    assert data == bytes(got)


def test_the_end_of_a_container_ends_its_clients(make: Make) -> None:
    bench = make()
    with bench.relay.attach() as client:
        bench.relay.close()

        assert b"" == client.recv(9)


def test_output_that_is_still_in_the_pipe_is_drained(make: Make) -> None:
    bench = make()
    os.write(out(bench), b"last words")
    bench.relay.drain()

    assert b"last words" == bench.logged()
