"""How long something may take."""

from __future__ import annotations

import time


class Deadline:
    """A moment that is reached ``timeout`` seconds from now."""

    def __init__(self, timeout: float) -> None:
        """Start counting."""
        self.timeout = timeout
        self._end = time.monotonic() + timeout

    @property
    def left(self) -> float:
        """Return the seconds that are left, never less than 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Tell whether the moment has come."""
        return self.left == 0.0

    def back_off(self, attempt: int) -> None:
        """Wait 0.1 ms, 0.2 ms, … at most 10 ms and never past the deadline.

        Only for what the kernel gives no notification of.
        """
        time.sleep(min(0.0001 * 2 ** min(attempt, 7), 0.01, self.left))
