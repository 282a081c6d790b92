"""Whether a container that has ended is run again, and when.

The supervisor does it: nothing of it outlives a reboot, and nobody else starts a container by
himself. It never does while a migration holds the container, for then another copy may run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pymigrate.runtime.values import dataclass

NEVER, ON_FAILURE, ALWAYS = "no", "on-failure", "always"
FIRST_DELAY = 0.1
"""Seconds before the first run again; each further wait is twice as long as the one before."""
MOST_DELAY = 60.0
SETTLED = 10.0
"""Seconds that a run must last for the waits to begin anew."""
_PUT_OFF = 0.2  # until somebody who is at work on the container is done


@dataclass(frozen=True)
class Policy:
    """What is written ``no``, ``on-failure``, ``on-failure:5`` or ``always``."""

    when: str = NEVER
    most: int | None = None  # how often at most, counted from a person's start

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read it as it is written.

        Raises:
            ValueError: it is not one.

        """
        when, colon, most = text.partition(":")
        if when in (NEVER, ALWAYS, ON_FAILURE) and not colon:
            return cls(when)
        if when == ON_FAILURE and most.isascii() and most.isdigit() and 0 < int(most) < 1 << 31:
            return cls(when, int(most))
        raise ValueError(f"{text!r} is none of no, on-failure, on-failure:N and always")

    def wants(self, exit_code: int, count: int) -> bool:
        """Say whether what ended so is to run again, having been run again ``count`` times."""
        if self.when == ON_FAILURE:
            return exit_code != 0 and (self.most is None or count < self.most)
        return self.when == ALWAYS


class Again:
    """Counts the runs of one container, and knows when the next one is due."""

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with the run that a person asked for."""
        self.count = 0
        self.unwanted = False  # somebody ends it for good
        self._policy = policy
        self._clock = clock
        self._began = clock()
        self._delay = 0.0
        self._due: float | None = None

    def began(self) -> None:
        """Take note that it runs."""
        self._began = self._clock()
        self._due = None

    def ended(self, exit_code: int) -> bool:
        """Take note that it has ended, or could not be run; say whether it is to run again."""
        now = self._clock()
        if self.unwanted or not self._policy.wants(exit_code, self.count):
            self._due = None
            return False
        settled = self._due is None and now - self._began >= SETTLED
        self._delay = FIRST_DELAY if settled else min(self._delay * 2 or FIRST_DELAY, MOST_DELAY)
        self.count += 1
        self._due = now + self._delay
        return True

    def put_off(self) -> None:
        """Wait a little longer."""
        self._due = self._clock() + _PUT_OFF

    @property
    def seconds(self) -> float | None:
        """How long it is until the next run; None if none is to come."""
        return None if self._due is None else max(self._due - self._clock(), 0.0)
