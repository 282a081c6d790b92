"""What a restore waits for when it is broken off; supervisor and kernel are played."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from pymigrate.checkpoint import load
from pymigrate.runtime import control, daemon, launch
from pymigrate.runtime.container import Container
from pymigrate.runtime.launch import Launch
from pymigrate.runtime.supervision import Supervision

pytest.importorskip("pycriu")


class Prepared:
    """A container of which there is nothing but that it is prepared by a launch."""

    def prepare(self, *, plugged: bool, launch: Launch) -> Supervision:
        return launch.ready(plugged=plugged)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Have each supervisor hear its order and never answer; gives their ends of connections."""
    ends: list[socket.socket] = []

    def start(
        program: str, arguments: Sequence[str], connection: socket.socket, **how: object
    ) -> None:
        ends.append(connection.dup())

    monkeypatch.setattr(daemon, "start", start)
    monkeypatch.setattr(launch, "READY_SECONDS", None)  # whoever waits for it waits for ever
    monkeypatch.setattr(load, "STUCK_SECONDS", 0)
    yield ends
    for each in ends:
        each.close()


def test_an_interrupted_restore_does_not_wait_for_a_supervisor_that_is_stuck(
    tmp_path: Path, stuck: list[socket.socket]
) -> None:
    begun = Launch(tmp_path)

    def interrupted() -> None:
        with load._surroundings(cast(Container, Prepared()), begun, inside=False):
            assert control.receive(stuck[0]) is not None  # it is waited for
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert control.receive(stuck[0]) is None  # and hears that nobody wants it any more
