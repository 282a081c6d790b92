"""The client of the benchmark `live`, which writes all the while, and what its answers show.

Built from workloads/writers.c. What is calculated here is pure; nothing asks a server.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from bench.harness import BenchError
from tests.lab import Place

CONNECTIONS = 10
RATE = 2000  # writes a second, of all connections together
PATIENCE = 120.0  # seconds for any answer
PROGRAM = "/tmp/writers"  # in the client's own /tmp


@dataclass(frozen=True)
class Answer:
    """One write: when it was sent and answered (time.monotonic), and over which connection."""

    sent: float
    answered: float
    connection: int


@dataclass(frozen=True)
class Seen:
    """What the clients saw of a move, in seconds.

    ``blackout`` is the longest time between two answers of one connection; ``stall`` the longest
    that a write took which was sent after its connection's longest gap; ``p99_before`` and
    ``p99_rounds`` are of how long writes took before the move, and from its beginning until the
    blackout.
    """

    blackout: float
    stall: float
    p99_before: float
    p99_rounds: float


def seen(answers: Sequence[Answer], began: float) -> Seen:
    """Read off what a move that began at `began` did to the clients.

    Raises:
        BenchError: there are no answers before it, or after it.

    """
    by_connection: dict[int, list[Answer]] = {}
    for answer in answers:
        by_connection.setdefault(answer.connection, []).append(answer)
    gaps = {}
    for connection, own in by_connection.items():
        own.sort(key=lambda answer: answer.answered)
        pairs = [pair for pair in pairwise(own) if pair[1].answered > began]
        if pairs:
            gaps[connection] = max(pairs, key=lambda pair: pair[1].answered - pair[0].answered)
    before = [each.answered - each.sent for each in answers if each.answered <= began]
    if not before or not gaps:
        raise BenchError("no write was answered before the move, or after it")
    last, first = max(gaps.values(), key=lambda pair: pair[1].answered - pair[0].answered)
    rounds = [
        each.answered - each.sent
        for each in answers
        if each.sent > began and each.answered <= last.answered
    ]
    after = [
        each.answered - each.sent
        for connection, (_, end) in gaps.items()
        for each in by_connection[connection]
        if each.sent >= end.answered
    ]
    return Seen(
        blackout=first.answered - last.answered,
        stall=max(after, default=0.0),
        p99_before=percentile(before, 99),
        p99_rounds=percentile(rounds, 99) if rounds else 0.0,
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that so many per cent of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


class Writers:
    """The client program, in its place; it writes from its start on."""

    def __init__(self, place: Place, address: str, port: int, mib: int) -> None:
        self.answers: list[Answer] = []
        self.dropped = 0
        self._unread = b""
        self._lines: deque[str] = deque()
        argv = [PROGRAM, address, port, CONNECTIONS, RATE, mib]
        self._process = place.popen(
            [str(word) for word in argv], stdin=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            if self._line() != "ready":
                raise BenchError("the writers did not begin")
        except BaseException:
            self.close()
            raise

    def look(self) -> None:
        """Take in what was answered since the last time."""
        self._order("report")
        while not (line := self._line()).startswith("end "):
            _, sent, answered, connection = line.split()
            self.answers.append(Answer(int(sent) / 1e9, int(answered) / 1e9, int(connection)))
        self.dropped = int(line.split()[1])

    def await_answers(self, since: float) -> None:
        """Wait until every connection that is open had an answer after `since`.

        Raises:
            BenchError: that takes too long.

        """
        deadline = time.monotonic() + PATIENCE
        while True:
            self.look()
            heard = {each.connection for each in self.answers if each.answered > since}
            if len(heard) >= CONNECTIONS - self.dropped:
                return
            if time.monotonic() > deadline:
                raise BenchError(f"only {len(heard)} of {CONNECTIONS} connections go on")
            select.select([], [], [], 0.02)

    def lost(self) -> int:
        """Read back all that was acknowledged; return how much is not there any more."""
        self._order("verify")
        word, checked, lost = self._line().split()
        if word != "verified" or not int(checked):
            raise BenchError("nothing could be read back")
        return int(lost)

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError("the writers have ended") from None

    def _line(self) -> str:
        said = self._process.stdout
        assert said is not None
        while not self._lines:
            readable, _, _ = select.select([said], [], [], PATIENCE)
            if not readable:
                raise BenchError(f"the writers said nothing for {PATIENCE:.0f} s")
            data = os.read(said.fileno(), 1 << 20)
            if not data:
                raise BenchError(f"the writers ended and said {self._unread.decode()!r}")
            *lines, self._unread = (self._unread + data).split(b"\n")
            self._lines.extend(line.decode() for line in lines)
        return self._lines.popleft()

    def close(self) -> None:
        """End them. May be repeated."""
        self._process.kill()
        with self._process:
            pass

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them."""
        self.close()
