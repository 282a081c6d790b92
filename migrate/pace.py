"""How much may be on its way, and whether to compress: from what the other side has taken. Pure.

A wanted page waits behind everything that is on its way. So that is no more than the link carries
in DELAY, from when on somebody may wait. Where sending is the bottleneck, compression is tried, and
kept if more pages arrive by it than before: on a fast link, or where the CPUs are busy, fewer do. A
limit is a slow link. On a link that may be a fast one, whose beginning was slow, it is tried later
and given up now and then.

A process that was just restored waits for a hundred pages one after the other, and would for each
behind what is on its way. So in its first second what nobody waits for is held back while it asks.
Where wanted pages have a lane they wait behind nothing, but for a processor: so what nobody waits
for goes more slowly after that, for as long as there are many. One processor is left to the
container; hosts that containers move between are taken to have about as many.
"""

from __future__ import annotations

from collections import deque

DELAY = 0.016  # seconds of sending that may lie before a wanted page
LEAST = 1 << 20  # bytes on their way, so that a link with some delay is kept busy
MOST = 8 << 20
EACH = 3 << 20  # bytes for each stream, if that is more: a batch that is sent, half of the next
BATCH = 1 << 20  # bytes in one; twice as many where nobody waits, or not for long
LEVEL = 1  # zstd's; on memory, 3 gives 2 % less for 1.6 times the CPU, 9 gives 4 % for 8 times
SAMPLES = 64  # batches, of which the last are looked at
BUSY = 0.5  # part of the batches that had to wait for the link, above which they are compressed
IDLE = 0.1  # and below which they are not
SURELY = 150e6  # bytes a second; on a slower link zstd gains far more than looking again costs
WORTHWHILE = (
    200e6  # bytes a second; on a faster link zstd, beside the rest of the work, gains nothing
)
BEGINNING = 0.3  # seconds that say nothing of a link: both sides have just begun
TRIAL = 24  # batches taken, after which it is seen what compression gave
GAIN = 1.1  # times as many pages as before, at least, or it is given up
REST = 512  # batches until it is tried again
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
        self._limited = limit is not None and limit < WORTHWHILE
        self.level: int | None = LEVEL if self._limited else None
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
        self._blocked: deque[bool] = deque(maxlen=SAMPLES)
        self._began: tuple[float, int] | None = None  # a time, and what was taken by then
        self._taken = 0
        self._trial: float | None = None  # the rate of pages before it
        self._since_change = 0  # batches taken
        self._resting = 0
        self._look_again = False  # whether it is still better, after a while of compressing
        self._favours_until: float | None = None
        self._asked = 0.0  # when a page was wanted last
        self._next = 0.0  # before which nothing goes that nobody waits for, if pages are wanted

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

    def gone(self, size: int, wire: int, now: float = 0.0) -> None:
        """Note that a batch is sent, at a time in seconds."""
        self._next = now + size / self._share
        self._sent += size
        self._in_flight += wire
        self._on_wire.append((self._sent, wire))

    def taken(self, total: int, now: float) -> None:
        """Note what the other side says, at a time in seconds; a lie slows or fills its link."""
        while self._on_wire and self._on_wire[0][0] <= total:
            _, wire = self._on_wire.popleft()
            self._in_flight -= wire
            self._arrived += wire
            self._since_change += 1
            self._resting = max(0, self._resting - 1)
        self._first = now if self._first is None else self._first
        self._taken = max(self._taken, min(total, self._sent))
        self._judge(now)
        if self._since is None:
            self._since, self._base = now, self._arrived
        elif now - self._since >= 0.05:
            rate = (self._arrived - self._base) / (now - self._since)
            is_first = not self.rate
            if not self._has_begun and self._since - self._first >= BEGINNING:
                is_first = self._has_begun = True
            self.rate = rate if is_first else (self.rate + rate) / 2
            self._since, self._base = now, self._arrived

    def resumes(self) -> None:
        """Note that nothing was to be sent for a while: that time says nothing of any rate."""
        self._began = None
        self._since_change = 0
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

    def _judge(self, now: float) -> None:
        """End a trial that has brought too little."""
        if self._began is None:
            self._began = now, self._taken
        elif self.level is None and self._since_change >= SAMPLES:
            # What came long ago, such as a slow beginning, says nothing of the rate to be beaten.
            self._began = now, self._taken
            self._since_change = 0
        elif self._look_again and self._trial is None and self._since_change >= REST:
            self._change(None)
        elif self._trial is not None and self._since_change >= TRIAL:
            if self._pages_rate(now) < GAIN * self._trial:
                self._change(None)
                self._resting = REST
            self._trial = None

    def _pages_rate(self, now: float) -> float:
        """Return how many bytes of batches were taken in a second since the last change."""
        if self._began is None or now <= self._began[0]:
            return 0.0
        return (self._taken - self._began[1]) / (now - self._began[0])

    def _change(self, level: int | None) -> None:
        self.level = level
        self._blocked.clear()
        self._began = None
        self._since_change = 0

    def waits(self, now: float, *, blocked: bool) -> None:
        """Note whether the next batch has to wait until others went; choose whether to compress."""
        if self._limited:
            return  # the wait is ours, before the link
        self._blocked.append(blocked)
        part = sum(self._blocked) / len(self._blocked)
        slow = self._has_begun and self.rate < WORTHWHILE and not self._resting
        enough = SAMPLES // 4 if self.rate < SURELY else SAMPLES
        if self.level is None and slow and len(self._blocked) >= enough and part > BUSY:
            self._look_again = self.rate >= SURELY
            self._trial = self._pages_rate(now) or self.rate
            self._change(LEVEL)
        elif self.level is not None and len(self._blocked) == SAMPLES and part < IDLE:
            self._change(None)
            self._trial = None
