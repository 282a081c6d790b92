"""A command that is run in a container again and again, to tell whether it does its work.

The supervisor runs it, as ``exec`` would. It never does while somebody else is at work on the
container: what is to be written down must have no process that came from outside. So it takes the
container's lock for the moment of the start, and whoever freezes the container, holding that lock
or a fence, has a check that runs already ended first (``hush``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from pymigrate.runtime.errors import PymigrateError
from pymigrate.runtime.values import dataclass

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"


@dataclass(frozen=True)
class Health:
    """What to run and how often; times in seconds."""

    command: tuple[str, ...]
    interval: float = 30.0
    retries: int = 3  # failures in a row until it is unhealthy
    timeout: float = 30.0  # a check that takes longer is ended, and has failed


class Prober:
    """Runs the checks of one container, and knows when the next one is due."""

    def __init__(
        self,
        health: Health,
        start: Callable[[], int | None],
        changed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Do nothing before ``begin``.

        ``start`` starts a check and returns its PID, a child of ours and the leader of a process
        group; None means that it cannot be started now. ``changed`` is told each new verdict.
        """
        self._health = health
        self._start = start
        self._changed = changed
        self._clock = clock
        self._due: float | None = None  # the next check, or the end of what the one has that runs
        self._pid: int | None = None
        self._overdue = False
        self._failures = 0
        self.verdict = STARTING

    @property
    def seconds(self) -> float | None:
        """How long it is until `act` is to be called; None for never."""
        return None if self._due is None else max(self._due - self._clock(), 0.0)

    def begin(self) -> None:
        """Take note that the container runs from now on."""
        self._failures = 0
        self.verdict = STARTING
        self._due = self._clock() + self._health.interval

    def end(self) -> None:
        """Take note that the container has ended, and all that ran in it."""
        self._due = self._pid = None

    def act(self) -> None:
        """Start the check that is due, or end the one that takes too long."""
        if self._pid is not None:
            self._overdue = True
            self._due = None  # its end is seen
            self._kill(self._pid)
            return
        self._due = self._clock() + self._health.interval
        try:
            self._pid = self._start()
        except (OSError, PymigrateError):
            self._judge(passed=False)  # a command that is not there is no sign of health
            return
        if self._pid is not None:
            self._overdue = False
            self._due = self._clock() + self._health.timeout

    def runs(self, pid: int) -> bool:
        """Say whether this is the check that runs."""
        return pid == self._pid

    def ended(self, exit_code: int) -> None:
        """Take note that the check has ended."""
        self._pid = None
        self._due = self._clock() + self._health.interval
        self._judge(passed=exit_code == 0 and not self._overdue)

    def hush(self) -> None:
        """End the check that runs, which then says nothing; return when it is gone."""
        if self._pid is None:
            return
        pid, self._pid = self._pid, None
        self._due = self._clock() + self._health.interval
        self._kill(pid)
        os.waitpid(pid, 0)

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and is not reaped yet
            os.killpg(pid, signal.SIGKILL)

    def _judge(self, *, passed: bool) -> None:
        self._failures = 0 if passed else self._failures + 1
        verdict = self.verdict
        if passed:
            verdict = HEALTHY
        elif self._failures >= self._health.retries:
            verdict = UNHEALTHY
        if verdict != self.verdict:
            self.verdict = verdict
            self._changed(verdict)
