"""One limit of bytes a second over any number of channels.

Each channel asks before it sends a piece, and waits for as long as it is told::

    channel A   reserve(64 KiB) → 0.000 s
    channel B   reserve(64 KiB) → 0.005 s    behind A's
    channel A   reserve(64 KiB) → 0.010 s    behind B's

What was not used while nobody sent is lost but for a moment's worth, so no second carries much
more than a second's bytes. Only what leaves us is counted: headers and encryption included.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SPARE = 0.02  # seconds of sending that may be made up for: a sleeper wakes up late
_LEAST, _MOST = 4 << 10, 64 << 10  # bytes of a piece
_PIECE = 0.005  # seconds that a piece takes, within these bounds


class RateLimit:
    """Says when the next piece may go. Any number of threads may ask."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow ``rate`` bytes a second, by a clock in seconds."""
        self.rate = rate
        self.piece = int(min(_MOST, max(_LEAST, rate * _PIECE)))
        """Bytes that are best asked for at once."""
        self._clock = clock
        self._lock = threading.Lock()
        self._free = clock()  # when all that was reserved will have gone

    def reserve(self, size: int) -> float:
        """Take a turn for so many bytes; return the seconds to wait before they are sent."""
        with self._lock:
            now = self._clock()
            start = max(self._free, now - SPARE)
            self._free = start + size / self.rate
        return max(0.0, start - now)
