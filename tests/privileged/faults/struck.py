"""A move that stands still at one point until a line arrives: `struck.py NAME DEST MODE POINT`.

It says "here" when it has come there. At a point of the target's journal it is the agent that stops
(struck_agent.py). The steps are the product's, each with a wrapper around it,
which any caller of the driver may make: the product has no hooks for tests.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from pymigrate.migrate import movable, outgoing
from pymigrate.migrate.driver import Facts, Step
from pymigrate.migrate.peer import Peer
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.plan import Plan
from pymigrate.migrate.report import Report
from pymigrate.migrate.steps import Move
from pymigrate.migrate.target import Target
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import PymigrateError
from pymigrate.runtime.host import Host
from tests.privileged.faults.matrix import POINTS, Moment, Point, Side
from tests.privileged.migration.impatient import hurry

AGENT = "/srv/struck-agent"


def stand_still() -> None:
    """Say that we are here, and wait to be told to go on."""
    print("here", flush=True)
    sys.stdin.readline()


class Watching(Report):
    """Stands still before or behind a step's lines in the journal."""

    point: Point

    def began(self, phase: Phase) -> None:
        super().began(phase)
        self._pass(Point(phase, Moment.BEFORE))

    def reached(self, phase: Phase, seconds: float) -> None:
        super().reached(phase, seconds)
        self._pass(Point(phase, Moment.REACHED))

    def _pass(self, point: Point) -> None:
        if point == self.point:
            stand_still()


@dataclass
class Watched:
    """A step that stands still before or behind its effect, the first time."""

    step: Step
    moment: Moment
    passed: bool = False
    phase: Phase = field(init=False)

    def __post_init__(self) -> None:
        self.phase = self.step.phase

    def facts(self) -> Facts:
        return self.step.facts()

    def do(self) -> Facts:
        self._pass(Moment.BEGUN)
        facts = self.step.do()
        self._pass(Moment.MADE)
        return facts

    def undo(self) -> None:
        self.step.undo()

    def _pass(self, moment: Moment) -> None:
        if moment is self.moment and not self.passed:
            self.passed = True
            stand_still()


@dataclass
class WatchedMove(Move):
    """A move one of whose steps is watched."""

    point: Point = POINTS[-1]

    def steps(self) -> Sequence[Step]:
        steps: list[Step] = []
        for step in super().steps():
            watched = step.phase is self.point.phase and self.point.side is Side.SOURCE
            steps.append(Watched(step, self.point.moment) if watched else step)
        return steps


@dataclass(frozen=True)
class WatchedAttempt(outgoing.Attempt):
    """An attempt whose move is watched."""

    point: Point = POINTS[-1]

    def move(self, peer: Peer, container: Container | None) -> Move:
        plain = super().move(peer, container)
        shared = {each.name: getattr(plain, each.name) for each in fields(plain)}
        return WatchedMove(**shared, point=self.point)


def main() -> int:
    name, destination, mode, label = sys.argv[1:]
    point = Point.from_label(label)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may ignore it
    host = Host.open(Path(os.environ["PYMIGRATE_ROOT"]))
    container = movable.open_movable(host, name)
    hurry()
    command = AGENT if point.side is Side.TARGET else Target.remote_command
    target = Target(destination, remote_command=command)
    attempt = WatchedAttempt(host, outgoing.new_id(name), name, target, point=point)
    with attempt.peer() as peer:
        planned = outgoing.plan(attempt, peer, container, [], mode)
        assert isinstance(planned, Plan), planned
        report = Watching(attempt.migration_id, name, "home", planned.target, mode)
        report.point = point
        try:
            outgoing.execute(outgoing.Prepared(attempt, planned, peer, container, report))
        except PymigrateError as error:
            print(error, *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
