"""A link that has a rate and a clock, for who decides by what it carries."""

from __future__ import annotations

from pymigrate.migrate.pace import Pace

BATCH = 1 << 20


class Link:
    """A link of a rate in bytes a second, and CPUs that compress so many; it has a clock."""

    def __init__(self, rate: float, *, ratio: float = 2.0, cpus: float = 1e9) -> None:
        self.rate = rate
        self.ratio = ratio
        self._cpus = cpus
        self.now = 0.0
        self._total = 0

    def carry(self, pace: Pace, batches: int, *, blocked: bool) -> None:
        """Send batches; each is taken before the next."""
        for _ in range(batches):
            pace.waits(self.now, blocked=blocked)
            wire = BATCH if pace.level is None else int(BATCH / self.ratio)
            late = pace.level is not None and BATCH / self._cpus > wire / self.rate
            pace.gone(BATCH, wire, self.now, late=late)
            seconds = wire / self.rate
            self.now += seconds if pace.level is None else max(seconds, BATCH / self._cpus)
            self._total += BATCH
            pace.taken(self._total, self.now)


def carried(pace: Pace, rate: float, batches: int, *, blocked: bool) -> None:
    """Send batches over a link."""
    Link(rate).carry(pace, batches, blocked=blocked)
