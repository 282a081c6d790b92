"""An agent that stops once, all of it, at one point of its own journal: `struck_agent.py agent`.

The point is what the file POINT says, which is gone when the agent stops. It goes on by SIGCONT.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from pymigrate.migrate import agent, cli
from pymigrate.migrate.journal import Journal
from pymigrate.migrate.phases import Phase
from tests.privileged.faults.matrix import Moment, Point, Side

POINT = Path("/srv/struck-at")


def stop_at(phase: Phase, moment: Moment) -> None:
    """Stop here if this is the point."""
    with suppress(FileNotFoundError):
        if POINT.read_text(encoding="ascii") == Point(phase, moment, Side.TARGET).label:
            POINT.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)


class Struck(Journal):
    """A journal that stands still before and behind each line."""

    def begin(self, phase: Phase, **facts: object) -> None:
        stop_at(phase, Moment.BEFORE)
        super().begin(phase, **facts)
        stop_at(phase, Moment.BEGUN)

    def reach(self, phase: Phase, **facts: object) -> None:
        stop_at(phase, Moment.MADE)
        super().reach(phase, **facts)
        stop_at(phase, Moment.REACHED)


if __name__ == "__main__":
    vars(agent)["Journal"] = Struck
    sys.exit(cli.main())
