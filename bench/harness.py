"""Measure by turns: episodes of several subjects, round after round, and what came of them."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.lab import LabError
from tests.lab.host import REPOSITORY

PATIENCE = 2  # failures after which an episode is given up


class BenchError(Exception):
    """A subject, or what observes it, did not do what it should."""


FAILURES = (BenchError, LabError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Sample:
    """What one turn measured; times are in seconds, sizes in bytes, by name."""

    measure: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Episode:
    """One subject's turn, which takes one sample of each measure, in this order.

    `variant` tells episodes of one subject from each other: how it was asked to do it.
    """

    subject: str
    variant: str
    measures: tuple[str, ...]
    act: Callable[[], Iterator[Sample]]


@dataclass(frozen=True)
class Spread:
    """What repeated measuring gave."""

    minimum: float
    median: float
    maximum: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise one or more values."""
        return cls(min(values), statistics.median(values), max(values), len(values))


@dataclass
class Row:
    """All that is known of one measure of one subject in one variant."""

    measure: str
    subject: str
    variant: str
    series: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Take in what one more turn measured."""
        for name, value in sample.values.items():
            self.series.setdefault(name, []).append(value)

    def spread(self, name: str) -> Spread | None:
        """Summarise one of the measured values; None if there is none."""
        values = self.series.get(name)
        return Spread.of(values) if values else None


def interleave(
    episodes: Sequence[Episode],
    runs: int,
    *,
    warm_up: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Run every episode once to warm up, then `runs` times more, by turns: A B C A B C ….

    What disturbs the machine for some seconds then meets all subjects and not one. A failure is
    kept with its reason; who fails twice has no more turns.
    """
    rows = {
        (measure, episode.subject, episode.variant): Row(measure, episode.subject, episode.variant)
        for episode in episodes
        for measure in episode.measures
    }
    failed = dict.fromkeys(range(len(episodes)), 0)
    for run in range(0 if warm_up else 1, runs + 1):
        for number, episode in enumerate(episodes):
            if failed[number] >= PATIENCE:
                continue
            tell(f"{title(run, runs)}: {episode.subject} {episode.variant}".rstrip())
            waiting = list(episode.measures)
            try:
                for sample in episode.act():
                    waiting.remove(sample.measure)
                    if run:
                        rows[sample.measure, episode.subject, episode.variant].add(sample)
            except FAILURES as error:
                failed[number] += 1
                missing = waiting[0] if waiting else episode.measures[-1]
                reason = str(error).replace(f"{REPOSITORY}/", "").strip()
                rows[missing, episode.subject, episode.variant].failures.append(reason)
                said = reason.rpartition("\n")[2]
                tell(f"{episode.subject} {episode.variant}: {missing} failed: {said}")
    return list(rows.values())


def title(run: int, runs: int) -> str:
    """Name a round."""
    return f"run {run} of {runs}" if run else "warm-up"


def ratio(row: Row, rows: Sequence[Row], name: str, baseline: str = "pymigrate") -> float | None:
    """Return how many times the baseline's median this row's is; None where there is none.

    The baseline's row has the same measure and, where there is a choice, the variant that does
    the same work: a directory is compared with an archive that is not compressed, a move with one
    in mode hybrid, which is the default, and what has several ways of the baseline beside it with
    the first of them.
    """
    candidates = {
        other.variant: other
        for other in rows
        if other.subject == baseline and other.measure == row.measure
    }
    same_work = "none" if row.variant == "directory" else row.variant
    other = candidates.get(same_work) or candidates.get("hybrid")
    if other is None:
        ways = [each for name, each in candidates.items() if name.startswith(f"{same_work} ")]
        other = ways[0] if ways else None
    if other is None and len(candidates) == 1:
        (other,) = candidates.values()
    mine, its = row.spread(name), other.spread(name) if other else None
    return mine.median / its.median if mine and its and its.median > 0 else None
