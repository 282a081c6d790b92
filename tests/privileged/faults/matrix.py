"""Which fault strikes a move at which point and in which mode: values, nothing is done here.

A step of a move has four points, which the journal's lines divide: before its line ``begin``, with
that line on the disk and no effect yet, with the effect made and no line ``reach`` yet, and with
that line on the disk. The target has a journal of its own, with fewer steps. Each fault has a first
and a last point, between which there is something of it to strike; it is tried at every one of
them, in a mode that changes from point to point.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pymigrate.migrate.phases import Phase

MODES = ("stop", "pre", "post", "hybrid")


class Moment(enum.IntEnum):
    """Where in a step."""

    BEFORE = 0
    BEGUN = 1  # the line `begin` is on the disk
    MADE = 2  # the effect is made
    REACHED = 3  # the line `reach` is on the disk


class Side(enum.IntEnum):
    """Whose journal."""

    SOURCE = 0
    TARGET = 1


@dataclass(frozen=True, order=True)
class Point:
    """One instant of a move, at which it stands still until the fault is done."""

    phase: Phase
    moment: Moment
    side: Side = Side.SOURCE

    @property
    def label(self) -> str:
        """Its name on a command line."""
        where = "target-" if self.side is Side.TARGET else ""
        return f"{where}{self.phase.label}-{self.moment.name.lower()}"

    @classmethod
    def from_label(cls, label: str) -> Point:
        """Read a label back."""
        phase, _, moment = label.removeprefix("target-").rpartition("-")
        side = Side.TARGET if label.startswith("target-") else Side.SOURCE
        return cls(Phase.from_label(phase), Moment[moment.upper()], side)

    @property
    def is_committed(self) -> bool:
        """Whether the commit line is on the disk."""
        return self >= COMMIT


POINTS = [Point(phase, moment) for phase in Phase if phase > Phase.PLANNED for moment in Moment]
TARGET_POINTS = [
    *(
        Point(phase, moment, Side.TARGET)
        for phase in (Phase.RESERVED, Phase.RESTORED, Phase.HANDED_OVER)
        for moment in Moment
    ),
    Point(Phase.DONE, Moment.MADE, Side.TARGET),  # which has no line `begin`
    Point(Phase.DONE, Moment.REACHED, Side.TARGET),
]
COMMIT = Point(Phase.COMMITTED, Moment.REACHED)
PREPARED = Point(Phase.PRECOPIED, Moment.MADE)
HANDED_OVER = {
    Side.SOURCE: Point(Phase.HANDED_OVER, Moment.MADE),
    Side.TARGET: Point(Phase.HANDED_OVER, Moment.BEGUN, Side.TARGET),
}
"""From here on the copy at the target may have run, as far as the one whose journal it is knows."""

FILLED = Point(Phase.FILLED, Moment.MADE)


LAZY = ("pre", "post", "hybrid")
FILLING = ("post", "hybrid")  # there is a lane until the end
COMPLETE = ("stop", "pre")  # all memory is at the target before the commit


@dataclass(frozen=True)
class Fault:
    """What goes wrong: its name, between which points there is something to strike, in which modes.

    ``loses`` names the host that is lost by it. Where a run takes long, it strikes only
    at every ``step``-th point. The points are those of the journal of ``side``.
    """

    name: str
    first: Point = POINTS[0]
    last: Point = TARGET_POINTS[-1]
    modes: tuple[str, ...] = MODES
    loses: str | None = None
    step: int = 1
    side: Side = Side.SOURCE

    @property
    def title(self) -> str:
        """What the table calls it."""
        return self.name if self.side is Side.SOURCE else f"{self.name}, by the target's lines"

    @property
    def points(self) -> list[Point]:
        """The points at which it strikes."""
        points = POINTS if self.side is Side.SOURCE else TARGET_POINTS
        return [point for point in points if self.first <= point <= self.last][:: self.step]

    def mode(self, point: Point) -> str:
        """Choose the mode for a point: all four meet each step, and each moment in turn."""
        modes = self.modes
        if self.loses == "source" and COMMIT <= point < FILLED:
            modes = COMPLETE  # in the others memory is lost with the source: README.md says so
        return modes[(FAULTS.index(self) + point.phase + point.moment // self.step) % len(modes)]


@dataclass(frozen=True)
class Case:
    """One run."""

    fault: Fault
    point: Point
    mode: str

    @property
    def label(self) -> str:
        """The name of its test."""
        return f"{self.fault.name.replace(' ', '-')}-{self.point.label}-{self.mode}"

    @property
    def ends_with_its_host(self) -> bool:
        """Whether the only copy that ran is on the host that is lost."""
        if self.fault.loses == "source":
            return not self.point.is_committed
        return self.fault.loses == "target" and self.point >= HANDED_OVER[self.point.side]


FAULTS = (
    Fault("command of the source killed"),
    Fault("command of the source interrupted"),
    Fault("agents of the target killed"),
    Fault("sshd of the target killed"),
    Fault("command and agents killed"),
    Fault("all connections reset"),
    Fault("link cut until the command ends", step=5),
    Fault("answers of the target lost until the command ends", step=5),
    Fault("CRIU of the source killed", PREPARED, Point(Phase.DONE, Moment.BEGUN)),
    Fault("CRIU of the target killed", PREPARED, Point(Phase.RESTORED, Moment.BEGUN)),
    Fault("agent of the memory killed", PREPARED, Point(Phase.FILLED, Moment.BEGUN), LAZY),
    Fault("supervisor at the source killed", last=Point(Phase.DONE, Moment.BEGUN)),
    Fault("supervisor at the target killed", PREPARED, Point(Phase.HANDED_OVER, Moment.BEGUN)),
    Fault("power of the target lost", loses="target"),
    Fault("power of the source lost", loses="source"),
    Fault("command of the source killed", side=Side.TARGET),
    Fault("agents of the target killed", side=Side.TARGET),
    Fault("command and agents killed", side=Side.TARGET),
    Fault("all connections reset", side=Side.TARGET),
    Fault(
        "supervisor at the target killed",
        Point(Phase.RESTORED, Moment.BEFORE, Side.TARGET),
        Point(Phase.HANDED_OVER, Moment.BEGUN, Side.TARGET),
        side=Side.TARGET,
    ),
    Fault("power of the target lost", loses="target", side=Side.TARGET),
    Fault("power of the source lost", loses="source", side=Side.TARGET),
    Fault("process of the lane killed", PREPARED, Point(Phase.FILLED, Moment.BEGUN), FILLING),
)


def cases() -> list[Case]:
    """Return all runs."""
    return [Case(fault, point, fault.mode(point)) for fault in FAULTS for point in fault.points]


def sample() -> list[Case]:
    """Return those that every run of the tests makes, at all kinds of points."""
    return cases()[::SAMPLE]


SAMPLE = 33
"""So that the sample wanders through the points and the modes."""
