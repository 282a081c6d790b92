"""A migration that is killed at a chosen moment: `dying.py NAME DEST PHASE began|reached [MODE]`.

`dying.py --wait NAME …` waits there instead, until a line comes on its standard input.

NAME may be several, NAME,NAME: the first of them to get there is struck, and all with it. Or when
it has said a WORD: `dying.py NAME DEST WORD said MODE ON_NO_CONVERGE MAX_DOWNTIME`.

The moment is given by an observer, which any caller of the product may pass: the product has no
hooks for tests.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pymigrate.migrate import group, movable, outgoing
from pymigrate.migrate.budget import Budget, NoConverge
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.plan import Plan
from pymigrate.migrate.report import Report
from pymigrate.migrate.target import Target
from pymigrate.runtime.errors import PymigrateError
from pymigrate.runtime.host import Host


def die() -> None:
    """Kill our own process, as a crash does: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    """Say that the moment has come, and go on when told to."""
    print("now", flush=True)
    sys.stdin.readline()


class Dying(Report):
    """Strikes once, when the moment comes."""

    moment: tuple[str, str] = ("", "")
    strike: Callable[[], None] = staticmethod(die)

    def began(self, phase: Phase) -> None:
        super().began(phase)
        self._strike(phase, "began")

    def reached(self, phase: Phase, seconds: float) -> None:
        super().reached(phase, seconds)
        self._strike(phase, "reached")

    def said(self, text: str) -> None:
        if self.moment[0] in text:
            self._strike_now()

    def _strike(self, phase: Phase, event: str) -> None:
        if (phase.label, event) == self.moment:
            self._strike_now()

    def _strike_now(self) -> None:
        self.moment = ("", "")
        self.strike()


def main() -> None:
    waits = sys.argv[1] == "--wait"
    name, destination, phase, event, *rest = sys.argv[2 if waits else 1 :]
    mode = rest[0] if rest else "auto"
    budget = Budget()
    if len(rest) > 1:
        budget = Budget(float(rest[2]), on_no_converge=NoConverge(rest[1]))
    host = Host.open(Path(os.environ["PYMIGRATE_ROOT"]))
    with ExitStack() as undo:
        prepared = []
        for each in name.split(","):
            container = movable.open_movable(host, each)
            attempt = outgoing.Attempt(
                host, outgoing.new_id(each), each, Target(destination), budget=budget
            )
            peer = undo.enter_context(attempt.peer())
            planned = outgoing.plan(attempt, peer, container, [], mode)
            assert isinstance(planned, Plan), planned
            report = Dying(attempt.migration_id, each, "alpha", planned.target, "stop")
            report.moment = (phase, event)
            if waits:
                report.strike = wait
            if event == "said":
                report.announce = report.said
            prepared.append(outgoing.Prepared(attempt, planned, peer, container, report))
        if len(prepared) == 1:
            outgoing.execute(prepared[0])
        else:
            group.execute(host, outgoing.new_id("group"), prepared)


if __name__ == "__main__":
    try:
        main()
    except PymigrateError as error:
        print(f"{error}\nhint: {error.hint}", *getattr(error, "__notes__", ()), file=sys.stderr)
        sys.exit(error.exit_code)
