"""Decide after each round of memory how to go on, by how long clients would wait for the rest.

Pure. The rules are QEMU's and libvirt's, for a container::

    predicted blackout = what is always to be done + files + memory that has changed

What one round sent is what was written during the one before, so the next one would send as much:
that much is still to be sent if we freeze now. A round that sends more than half of what the one
before it sent brings little; twice in a row, rounds do not converge, and ``--on-no-converge`` says
what then. Slowing the container down begins with a fifth of its CPU time and halves what is left
each time, as what a program writes in a round may be far more than a round shows.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from pymigrate.migrate.modes import Mode
from pymigrate.runtime.errors import UsageError

PAGE = 4096
MAX_DOWNTIME = 0.3  # seconds
MAX_ROUNDS = 16
USUAL_FIXED = 0.25
"""Seconds from the freeze to the hand-over without any memory; docs/measured.md. What earlier
moves from this host took is better, where there are some."""
PLACING = 6.5e-6
"""Seconds for each page that a target has already and puts into its process; docs/measured.md."""
REMEMBERED = 5  # earlier moves that are looked at

SHRINKS = 0.5  # a round that sends more than this part of the one before brings little
FUTILE = 2  # such rounds in a row say that it does not converge
LITTLE = 0.01  # seconds; so much of the rest is no reason for another round
FIRST_THROTTLE = 20  # percent of the CPU time that is taken away
MOST_THROTTLE = 99

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, None: 1.0}


class NoConverge(enum.Enum):
    """What to do when rounds do not help; the values are what a person types."""

    THROTTLE = "throttle"
    POST = "post"
    STOP = "stop"
    ABORT = "abort"


@dataclass(frozen=True)
class Budget:
    """What a person asked for; ``on_no_converge`` None is what the mode does anyhow."""

    max_downtime: float = MAX_DOWNTIME
    max_rounds: int = MAX_ROUNDS
    on_no_converge: NoConverge | None = None

    def remedy(self, mode: Mode) -> NoConverge:
        """Return what is to be done: who chose `pre` does not want memory to stay behind."""
        if self.on_no_converge is not None:
            return self.on_no_converge
        return NoConverge.POST if mode.fills_later else NoConverge.STOP


@dataclass(frozen=True)
class Round:
    """One round of memory: pages and bytes (compressed) that went, seconds, and of them sending.

    ``throttle`` is the percentage of CPU time that the container did without.
    """

    pages: int
    wire: int
    seconds: float
    sending: float
    throttle: int = 0

    @property
    def looking(self) -> float:
        """Seconds that looking at all pages takes, however many are sent."""
        return max(self.seconds - self.sending, 0.0)


@dataclass(frozen=True)
class Forecast:
    """What would be waited for, in seconds, if the container were frozen now.

    ``looking`` is for looking at all memory once more and putting it in place; ``rest`` is for
    sending what has changed, which is no part of the blackout where it goes ``later``.
    """

    fixed: float
    files: float
    looking: float
    rest: float
    later: bool

    @property
    def blackout(self) -> float:
        """From the freeze to the hand-over."""
        return self.floor + (0.0 if self.later else self.rest)

    @property
    def floor(self) -> float:
        """What more rounds do not make less."""
        return self.fixed + self.files + self.looking

    def to_document(self) -> dict[str, float]:
        """Return it as JSON."""
        return {
            "blackout_seconds": self.blackout,
            "fixed_seconds": self.fixed,
            "files_seconds": self.files,
            "memory_seconds": self.blackout - self.fixed - self.files,
            "rest_seconds": self.rest,
        }


class Action(enum.Enum):
    """How to go on."""

    ROUND = "another round"
    THROTTLE = "slow the container down, and another round"
    FREEZE = "freeze now"
    ABORT = "give up"


@dataclass(frozen=True)
class Decision:
    """How to go on: in which mode, how slow, what is expected, and why in words."""

    action: Action
    mode: Mode
    forecast: Forecast
    why: str
    throttle: int = 0
    converged: bool = False


def duration(text: str, option: str) -> float:
    """Read a time such as ``300ms``, ``1.5s`` or ``2`` (seconds); more than none."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(
            f"{option} {text}: not a time; nothing was touched", hint="such as 300ms or 1.5s"
        )
    return seconds


def forecast(rounds: Sequence[Round], mode: Mode, fixed: float, files: float) -> Forecast:
    """Say how long clients would wait if the container were frozen after these rounds."""
    newest = rounds[-1]
    pages = sum(each.pages for each in rounds)
    per_page = sum(each.sending for each in rounds) / pages if pages else 0.0
    # Under the freeze all is looked at here once more, while the target puts it in place.
    all_pages = max(newest.looking, rounds[0].pages * PLACING)
    looking = 0.0 if mode.fills_later else all_pages
    return Forecast(fixed, files, looking, newest.pages * per_page, later=mode.fills_later)


def usual_fixed(earlier: Sequence[float]) -> float:
    """Return the seconds that a blackout has without any memory, from what earlier ones had."""
    return median(earlier) if earlier else USUAL_FIXED


def decide(
    budget: Budget, mode: Mode, rounds: Sequence[Round], *, fixed: float, files: float = 0.0
) -> Decision:
    """Say how to go on after at least one round; times in seconds."""
    newest = rounds[-1]
    expected = forecast(rounds, mode, fixed, files)
    # In hybrid mode nobody waits for all that is left, but for some of it: so it counts here.
    waits = expected.floor + expected.rest
    numbers = f"{_ms(waits)} predicted, {_ms(budget.max_downtime)} allowed"
    decision = Decision(Action.FREEZE, mode, expected, numbers, newest.throttle)
    if waits <= budget.max_downtime:
        return replace(decision, converged=True)
    hopeless = expected.floor > budget.max_downtime
    if len(rounds) >= budget.max_rounds:
        why = f"after {len(rounds)} rounds, the most allowed"
    elif not newest.pages or (hopeless and expected.rest < LITTLE):
        why = "though hardly any memory changes"
    elif _futile(rounds):
        why = "and rounds do not make it less"
    else:
        return replace(decision, action=Action.ROUND)
    if hopeless:
        why += f"; {_ms(expected.floor)} of it do not depend on what changes"
    decision = replace(decision, why=f"{numbers}, {why}")
    match budget.remedy(mode):
        case NoConverge.ABORT:
            return replace(decision, action=Action.ABORT)
        case NoConverge.THROTTLE:
            slower = _slower(newest.throttle)
            if hopeless or len(rounds) >= budget.max_rounds or slower == newest.throttle:
                return decision  # slower does not help: go on as the mode has it
            return replace(decision, action=Action.THROTTLE, throttle=slower)
        case NoConverge.POST:
            mode = Mode.HYBRID
        case NoConverge.STOP:
            mode = Mode.PRE
    return replace(decision, mode=mode, forecast=forecast(rounds, mode, fixed, files))


def _futile(rounds: Sequence[Round]) -> bool:
    """Return whether the newest rounds each sent hardly less than the one before.

    Once the container is slowed down, one such round is enough to slow it down more. Where it
    cannot be slower, only rounds count whose memory was written at that speed: the first one
    sends what was written before.
    """
    newest = rounds[-1]
    slower = 0 < newest.throttle < MOST_THROTTLE
    seen = rounds[-2:] if slower else rounds[-FUTILE - 1 :]
    if not slower and (len(seen) <= FUTILE or seen[0].throttle != newest.throttle):
        return False
    return len(seen) > 1 and all(
        after.pages > before.pages * SHRINKS for before, after in pairwise(seen)
    )


def _slower(percent: int) -> int:
    if not percent:
        return FIRST_THROTTLE
    return min(percent + (100 - percent + 1) // 2, MOST_THROTTLE)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
