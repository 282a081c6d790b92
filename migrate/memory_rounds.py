"""Send memory in rounds while the container runs, as ``budget.py`` decides, and slow it down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pymigrate.migrate import budget
from pymigrate.migrate.budget import Action, Budget, Decision, Round
from pymigrate.migrate.modes import Mode
from pymigrate.runtime.cgroups import CpuQuota
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import MigrationError, MissingFeature, Unreachable

if TYPE_CHECKING:
    from pymigrate.migrate.memory_sender import MemorySender

MOST_CUTS = 3  # of the line, in all rounds together
BREATH = 0.5  # seconds before it is tried again, more each time
LEAST_QUOTA_US = 1000  # the kernel takes no less


class Note(Protocol):
    """Writes facts into the journal, on disk when it returns."""

    def __call__(self, **facts: object) -> None:
        """Write."""


def _write_nothing(**_: object) -> None:
    """Write nothing: for a move that has no journal yet."""


@dataclass
class Throttle:
    """Slows a container down by its CPU quota, and knows what the quota was.

    ``before`` is on disk before the quota is changed, so that `lift` puts it back also after a
    crash. Nobody else changes it meanwhile: the container is fenced.
    """

    before: CpuQuota | None = None
    note: Note = _write_nothing

    def slow(self, container: Container, percent: int, used_cpus: float) -> None:
        """Take away a percentage of the CPU time that it used when it was not slowed down."""
        cgroup = container.cgroup
        if self.before is None:
            present = cgroup.cpu_quota()
            if present is None:
                raise unthrottled(container)
            self.note(cpu_quota=present.to_document())
            self.before = present
        period = self.before.period_us
        used = used_cpus * period
        if self.before.quota_us > 0:
            used = min(used, self.before.quota_us)
        wanted = int(used * (100 - percent) / 100)
        cgroup.set_cpu_quota(CpuQuota(max(wanted, LEAST_QUOTA_US), period))

    def lift(self, container: Container) -> None:
        """Put the quota back as it was; may be repeated."""
        if self.before is not None:
            container.cgroup.set_cpu_quota(self.before)


def unthrottled(container: Container) -> MissingFeature:
    """Return the error for a container that cannot be slowed down."""
    return MissingFeature(
        f"{container.name} cannot be slowed down: this host has no CPU controller for it",
        hint="use another --on-no-converge: post, stop or abort",
    )


@dataclass
class MemoryRounds:
    """The rounds of one move, and what was decided after the last."""

    budget: Budget
    fixed: float
    mode: Mode
    throttle: Throttle
    rounds: list[Round] = field(default_factory=list)
    decision: Decision | None = None
    cuts: int = 0  # of the line, after which it went on
    pause: Callable[[float], None] = time.sleep

    def send(
        self,
        container: Container,
        speak: Callable[[], MemorySender],
        files: float,
        announce: Announce,
    ) -> Mode:
        """Send rounds until it is time to freeze; return the mode in which to go on.

        ``speak`` gives a conversation that can be used; ``files`` is the seconds that the files
        will take. Raises MigrationError to give up, Unreachable if the line was cut too often.
        """
        percent, used = 0, 0.0
        while True:
            cpu, started = _cpu_seconds(container), time.monotonic()
            try:
                self.rounds.append(_round(container, speak(), percent))
            except Unreachable as cut:
                # Nobody waits yet, and what has arrived is still there: only the rest goes again.
                self.cuts += 1
                if self.cuts > MOST_CUTS:
                    raise
                announce(f"{container.name}: {cut.message}; going on where it was cut")
                self.pause(self.cuts * BREATH)
                continue
            if not percent:
                used = _cpus(cpu, _cpu_seconds(container), time.monotonic() - started)
            decided = budget.decide(
                self.budget, self.mode, self.rounds, fixed=self.fixed, files=files
            )
            self.decision = decided
            newest = self.rounds[-1]
            announce(
                f"{container.name}: round {len(self.rounds)}: {newest.pages} pages in "
                f"{newest.seconds * 1000:.0f} ms; {decided.why}"
            )
            if decided.action is Action.ABORT:
                raise MigrationError(
                    f"its clients would wait too long: {decided.why}",
                    hint="allow more by --max-downtime, or choose another --on-no-converge",
                )
            if decided.action is Action.FREEZE:
                if decided.mode is not self.mode:
                    announce(f"{container.name}: goes on in mode {decided.mode.value}")
                return decided.mode
            if decided.action is Action.THROTTLE:
                percent = decided.throttle
                self.throttle.slow(container, percent, used)
                announce(f"{container.name}: throttled by {percent} %")


class Announce(Protocol):
    """Tells whoever watches."""

    def __call__(self, text: str, /) -> None:
        """Tell."""


def _round(container: Container, sender: MemorySender, percent: int) -> Round:
    wire, sending, started = sender.sent.wire, sender.sent.sending, time.monotonic()
    pages = sender.round(container.cgroup.pids())
    return Round(
        pages,
        sender.sent.wire - wire,
        time.monotonic() - started,
        sender.sent.sending - sending,
        percent,
    )


def _cpu_seconds(container: Container) -> float | None:
    used = container.cgroup.stats().cpu_microseconds
    return None if used is None else used / 1e6


def _cpus(before: float | None, after: float | None, seconds: float) -> float:
    """Return how many CPUs were used; all, where nobody counts."""
    if before is None or after is None or seconds <= 0:
        return float(os.cpu_count() or 1)
    return (after - before) / seconds
