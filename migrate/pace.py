"""How much may be on its way, and whether to compress: from what the other side has taken. Pure.

A wanted page waits behind everything that was sent before it. So no more is on its way than the
link carries in DELAY; a link that is the bottleneck gets its bytes compressed, and one that is not
does not, since the CPUs have better things to do. A limit on what is sent is a slow link.
"""

from __future__ import annotations

from collections import deque

DELAY = 0.008  # seconds of sending that may lie before a wanted page
LEAST = 1 << 20  # bytes on their way, so that a link with some delay is kept busy
MOST = 8 << 20
LEVEL = 1  # zstd's
SAMPLES = 64  # batches, of which the last are looked at
BUSY = 0.5  # part of the batches that had to wait for the link, above which they are compressed
IDLE = 0.1  # and below which they are not
WORTHWHILE = 300e6  # bytes a second; a faster link is not made faster by zstd on one thread


class Pace:
    """Counts what is sent and taken, in bytes of batches before compression."""

    def __init__(self, limit: float | None = None) -> None:
        """Begin with nothing on its way; ``limit`` in bytes a second is the most that may go."""
        self._limited = limit is not None and limit < WORTHWHILE
        self.level: int | None = LEVEL if self._limited else None
        self.rate = 0.0  # bytes a second that the other side takes
        self._sent = 0
        self._taken = 0
        self._since: float | None = None
        self._base = 0
        self._blocked: deque[bool] = deque(maxlen=SAMPLES)

    @property
    def window(self) -> int:
        """How many bytes may be on their way."""
        return int(min(MOST, max(LEAST, self.rate * DELAY)))

    @property
    def may_send(self) -> bool:
        """Say whether one more batch may go."""
        return self._sent - self._taken < self.window

    @property
    def all_taken(self) -> bool:
        """Say whether nothing is on its way."""
        return self._taken == self._sent

    def gone(self, size: int) -> None:
        """Note that a batch was sent."""
        self._sent += size

    def taken(self, total: int, now: float) -> None:
        """Note what the other side says, at a time in seconds; a lie slows or fills its link."""
        self._taken = max(self._taken, min(total, self._sent))
        if self._since is None:
            self._since, self._base = now, self._taken
        elif now - self._since >= 0.05:
            rate = (self._taken - self._base) / (now - self._since)
            self.rate = rate if not self.rate else (self.rate + rate) / 2
            self._since, self._base = now, self._taken

    def waits(self, *, blocked: bool) -> None:
        """Note whether the next batch has to wait for the link; choose whether to compress."""
        if self._limited:
            return  # the wait is ours, before the link
        self._blocked.append(blocked)
        part = sum(self._blocked) / len(self._blocked)
        slow = 0 < self.rate < WORTHWHILE
        if self.level is None and slow and len(self._blocked) >= SAMPLES // 4 and part > BUSY:
            self.level = LEVEL
            self._blocked.clear()
        elif self.level is not None and len(self._blocked) == SAMPLES and part < IDLE:
            self.level = None
            self._blocked.clear()
