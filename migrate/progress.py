"""What was sent, how far a move has come, how fast it goes on, how long that will take. Pure.

Memory is looked at in turns: once for each round, and once frozen. What is left of a turn is known,
how many turns there will be is not, so the time left is that of the turn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW = 3.0  # seconds over which a rate is taken


@dataclass
class Sent:
    """What was sent so far, in pages; ``wire`` in bytes after compression.

    ``sending`` is how many seconds passed in which nothing was read, since the link had to be
    waited for: what sending costs beyond looking at the memory. ``turn`` counts the times that all
    memory was begun to be looked at, and ``looked`` the pages of the last one.
    """

    turn: int = 0
    looked: int = 0
    early: int = 0
    content: int = 0
    zero: int = 0
    same: int = 0
    wanted: int = 0
    wire: int = 0
    sending: float = 0.0


@dataclass(frozen=True)
class Counters:
    """What a move has counted: bytes sent by all connections, pages of memory sent.

    ``looked`` of ``memory`` bytes were looked at in this ``turn``; no turn is 0.
    """

    sent: int = 0
    pages: int = 0
    turn: int = 0
    looked: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a move has come; ``left`` is the seconds for this turn, None if not known."""

    name: str
    phase: str
    counted: Counters
    rate: float
    left: float | None

    @property
    def part(self) -> float | None:
        """How much of this turn is done, from 0 to 1; None outside of one."""
        if not self.counted.turn or not self.counted.memory:
            return None
        return min(1.0, self.counted.looked / self.counted.memory)

    def to_document(self) -> dict[str, object]:
        """Return it as JSON; sizes in bytes, rates in bytes a second, times in seconds."""
        return {
            "event": "progress",
            "name": self.name,
            "phase": self.phase,
            "bytes_sent": self.counted.sent,
            "pages_sent": self.counted.pages,
            "turn": self.counted.turn,
            "memory_looked_at": self.counted.looked,
            "memory": self.counted.memory,
            "bytes_per_second": round(self.rate),
            "seconds_left": None if self.left is None else round(self.left, 1),
        }


class Gauge:
    """Remembers the last readings of one move."""

    def __init__(self, name: str) -> None:
        """Begin without any."""
        self._name = name
        self._readings: deque[tuple[float, Counters]] = deque()

    def take(self, now: float, phase: str, counted: Counters) -> Progress:
        """Add a reading at a time in seconds; return what all of them say."""
        self._readings.append((now, counted))
        while len(self._readings) > 2 and now - self._readings[1][0] >= WINDOW:
            self._readings.popleft()
        since, before = self._readings[0]
        passed = now - since
        rate = (counted.sent - before.sent) / passed if passed > 0 else 0.0
        return Progress(self._name, phase, counted, max(0.0, rate), self._left(now, counted))

    def _left(self, now: float, counted: Counters) -> float | None:
        if not counted.turn or not counted.memory:
            return None
        turn = [(at, each.looked) for at, each in self._readings if each.turn == counted.turn]
        since, looked = turn[0]
        if now <= since or counted.looked <= looked:
            return None
        speed = (counted.looked - looked) / (now - since)
        return max(0.0, counted.memory - counted.looked) / speed
