"""Which snapshots to keep; restic's rules. Pure.

Each rule goes from the newest to the oldest and keeps the newest of each hour, day, ISO week, month
or year, until it has kept its number; ``last`` keeps the newest as they are. Hours without a
snapshot do not count. A rule that has numbers left at the end keeps the oldest of all as well. What
no rule keeps is not kept. Times are in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from pymigrate.runtime.errors import UsageError


@dataclass(frozen=True)
class Policy:
    """How many each rule keeps; 0: the rule is not there."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no number to keep."""
        for name, count in self.to_document().items():
            if count < 0:
                raise UsageError(f"--keep-{name} {count}: less than none cannot be kept")

    @property
    def is_empty(self) -> bool:
        """Whether there is no rule, which keeps everything."""
        return not any(self.to_document().values())

    def to_document(self) -> dict[str, int]:
        """Return it for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_document(cls, document: Mapping[str, int]) -> Policy:
        """Read it; raises KeyError or ValueError."""
        return cls(**{field.name: int(document[field.name]) for field in fields(cls)})


_PERIODS: Mapping[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda time: (time.year, time.month, time.day, time.hour),
    "daily": lambda time: (time.year, time.month, time.day),
    "weekly": lambda time: (time.isocalendar().year, time.isocalendar().week),
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: (time.year,),
}


def keep(times: Sequence[datetime], policy: Policy) -> list[tuple[str, ...]]:
    """Return for each snapshot, in the order given, the rules that keep it; none: forget it.

    Without rules everything is kept, for the reason ``all``.
    """
    if policy.is_empty:
        return [("all",)] * len(times)
    reasons: list[list[str]] = [[] for _ in times]
    newest_first = sorted(range(len(times)), key=lambda place: (times[place], place), reverse=True)
    for place in newest_first[: policy.last]:
        reasons[place].append("last")
    for name, period_of in _PERIODS.items():
        left = getattr(policy, name)
        before = None
        for place in newest_first:
            period = period_of(times[place])
            if left and (period != before or place == newest_first[-1]):
                reasons[place].append(name)
                before = period
                left -= 1
    return [tuple(names) for names in reasons]
