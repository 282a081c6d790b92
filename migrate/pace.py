"""How much may be on its way: from what the other side has taken. Pure.

A wanted page waits behind everything that is on its way. So that is no more than the link carries
in DELAY, from when on somebody may wait. Whether it is compressed is chosen in compressing.py.

A process that was just restored waits for a hundred pages one after the other, and would for each
behind what is on its way. So in its first second what nobody waits for is held back while it asks.
Where wanted pages have a lane they wait behind nothing, but for a processor: so what nobody waits
for goes more slowly after that, for as long as there are many. One processor is left to the
container; hosts that containers move between are taken to have about as many.
"""

from __future__ import annotations

from collections import deque

from pymigrate.migrate.compressing import Compressing

DELAY = 0.016  # seconds of sending that may lie before a wanted page
LEAST = 1 << 20  # bytes on their way, so that a link with some delay is kept busy
MOST = 8 << 20
EACH = 3 << 20  # bytes for each stream, if that is more: a batch that is sent, half of the next
BATCH = 1 << 20  # bytes in one; twice as many where nobody waits, or not for long
BEGINNING = 0.3  # seconds that say nothing of a link: both sides have just begun
CALM = 0.01  # seconds without a page that is wanted, after which what nobody waits for goes on
FAVOUR = 1.0  # seconds in which it is held back so, from the first page that is wanted
SHARE = 220e6  # bytes a second of it for each processor but one, while pages are wanted by a lane
SHARED = 30.0  # seconds after which all goes as fast as it can: there may be very much of it


class Pace:
    """Counts what is sent and taken: bytes of batches, and what these were on the wire."""

    def __init__(
        self,
        limit: float | None = None,
        *,
        lane: bool = False,
        processors: int = 2,
        streams: int = 1,
    ) -> None:
        """Begin with nothing on its way; ``limit`` in bytes a second is the most that may go.

        With a ``lane`` nothing that is wanted is counted here. ``processors`` are those that we
        may use, ``streams`` the connections that batches go by.
        """
        self._most = max(MOST, EACH * streams)
        self._share = SHARE * max(1, processors - 1)
        self._shared = SHARED if lane else 0.0
        self._compressing = Compressing(limit)
        self.rate = 0.0  # bytes a second that arrive
        self.somebody_waits = True
        self._sent = 0
        self._on_wire: deque[tuple[int, int]] = deque()  # sent with this one, its bytes on the wire
        self._in_flight = 0
        self._arrived = 0
        self._first: float | None = None  # when the first was taken
        self._has_begun = False  # and the rate is one of after that
        self._since: float | None = None
        self._base = 0
        self._taken = 0
        self._favours_until: float | None = None
        self._asked = 0.0  # when a page was wanted last
        self._next = 0.0  # before which nothing goes that nobody waits for, if pages are wanted

    @property
    def level(self) -> int | None:
        """Return zstd's level for the next batch; None for not at all."""
        return self._compressing.level

    @property
    def window(self) -> int:
        """How many bytes may be on their way."""
        if not self.somebody_waits:
            return self._most
        return int(min(self._most, max(LEAST, self.rate * DELAY)))

    @property
    def batch(self) -> int:
        """How many bytes a batch may have: each is work for both sides, whatever its size."""
        is_short = self.rate * DELAY >= 2 * BATCH
        return BATCH if self.somebody_waits and not is_short else 2 * BATCH

    @property
    def may_send(self) -> bool:
        """Say whether one more batch may go."""
        return self._in_flight < self.window

    @property
    def all_taken(self) -> bool:
        """Say whether nothing is on its way."""
        return not self._on_wire

    def gone(self, size: int, wire: int, now: float = 0.0, *, late: bool = False) -> None:
        """Note that a batch is sent, at a time in seconds.

        ``late`` says that it could have gone before, but was not compressed yet.
        """
        self._compressing.goes(late=late)
        self._next = now + size / self._share
        self._sent += size
        self._in_flight += wire
        self._on_wire.append((self._sent, wire))

    def taken(self, total: int, now: float) -> None:
        """Note what the other side says, at a time in seconds; a lie slows or fills its link."""
        batches = 0
        while self._on_wire and self._on_wire[0][0] <= total:
            _, wire = self._on_wire.popleft()
            self._in_flight -= wire
            self._arrived += wire
            batches += 1
        self._first = now if self._first is None else self._first
        self._taken = max(self._taken, min(total, self._sent))
        self._compressing.taken(batches, self._taken, now)
        if self._since is None:
            self._since, self._base = now, self._arrived
        elif now - self._since >= 0.05:
            rate = (self._arrived - self._base) / (now - self._since)
            is_first = not self.rate
            if not self._has_begun and self._since - self._first >= BEGINNING:
                is_first = self._has_begun = True
            self.rate = rate if is_first else (self.rate + rate) / 2
            self._compressing.carries(self.rate, rate, is_certain=self._has_begun)
            self._since, self._base = now, self._arrived

    def resumes(self) -> None:
        """Note that nothing was to be sent for a while: that time says nothing of any rate."""
        self._compressing.resumes()
        self._since = None

    def wanted(self, now: float) -> None:
        """Note that a process waits for a page: see `holds`."""
        if self._favours_until is None:
            self._favours_until = now + FAVOUR
        self._asked = now
        self.resumes()

    def holds(self, now: float) -> float:
        """Return for how many seconds what nobody waits for is to be held back; 0 if not."""
        if self._favours_until is None:
            return 0.0
        calm = self._asked + CALM
        held = min(calm, self._favours_until)
        slowed = min(calm, self._next, self._favours_until + self._shared)
        return max(0.0, held - now, (slowed - now) if self._shared else 0.0)

    def waits(self, now: float, *, blocked: bool) -> None:
        """Note whether the next batch has to wait until others went."""
        self._compressing.waits(now, blocked=blocked)
