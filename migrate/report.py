"""What a migration did: its phases with their times, its bytes, and the blackout."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from pymigrate.migrate.budget import Budget, Forecast
from pymigrate.migrate.file_rounds import Round
from pymigrate.migrate.memory_rounds import MemoryRounds
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.progress import Counters


@dataclass
class Report:
    """Filled in while the migration runs; it is one of the driver's observers.

    ``blackout_seconds`` is what the source sees: from the freeze until the target answered that
    it runs. A client sees a little less or more; only it can say. ``data`` is how memory and files
    went: "tls" or "ssh", and ``streams`` by how many connections in turn memory did.
    ``file_rounds`` are the times that files were sent, the last one frozen.
    ``mode`` is how the move ended: where rounds did not converge, not what was planned.
    ``result`` is "moved", or as `migrations ls` says it: "rolled back" (by ``cause``), "in doubt".
    ``counters`` says how far the move has come, once it has begun; ``towards`` which phase.
    """

    migration_id: str
    name: str
    source: str
    target: str
    mode: str
    announce: Callable[[str], None] = lambda _: None
    observed: Callable[[Phase, float], None] = lambda *_: None
    counters: Callable[[], Counters] | None = None
    clock: Callable[[], float] = time.monotonic
    phases: list[tuple[Phase, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    file_rounds: Sequence[Round] = ()
    memory_rounds: MemoryRounds | None = None
    budget: Budget | None = None
    frozen_memory_seconds: float = 0.0
    group: str | None = None
    wire_bytes: int = 0
    data: str = ""
    streams: int = 1
    result: str = "unfinished"
    cause: str = ""
    towards: Phase = Phase.PLANNED
    _frozen_at: float | None = None
    _resumed_at: float | None = None

    def began(self, phase: Phase) -> None:
        """Note when the clients began to wait."""
        self.towards = phase
        if phase is Phase.FROZEN and self._frozen_at is None:  # a group says it twice
            self._frozen_at = self.clock()

    def reached(self, phase: Phase, seconds: float) -> None:
        """Note a phase's time and tell whoever watches."""
        if phase is Phase.HANDED_OVER:
            self._resumed_at = self.clock()
        self.phases.append((phase, seconds))
        self.observed(phase, seconds)
        self.announce(f"{self.name}: {phase.label} ({seconds * 1000:.0f} ms)")

    @property
    def seconds(self) -> float:
        """Return the time of all phases together."""
        return sum(seconds for _, seconds in self.phases)

    @property
    def blackout_seconds(self) -> float | None:
        """Return the blackout as the source sees it, or None if there was none."""
        if self._frozen_at is None or self._resumed_at is None:
            return None
        return self._resumed_at - self._frozen_at

    @property
    def fixed_seconds(self) -> float | None:
        """Return what the blackout was but for memory; later moves are predicted by it.

        None for a member of a group, which waited for the others too, and in mode stop, where
        memory is among CRIU's images.
        """
        blackout = self.blackout_seconds
        if blackout is None or self.group is not None or self.mode == Mode.STOP.value:
            return None
        return blackout - self.frozen_memory_seconds

    @property
    def predicted(self) -> Forecast | None:
        """Return what was expected at the freeze; None without rounds."""
        rounds = self.memory_rounds
        return rounds.decision.forecast if rounds and rounds.decision else None

    def _budget(self) -> dict[str, object]:
        if self.budget is None or self.memory_rounds is None:
            return {}
        decision = self.memory_rounds.decision
        return {
            "max_downtime_seconds": self.budget.max_downtime,
            "max_rounds": self.budget.max_rounds,
            "on_no_converge": self.budget.remedy(self.memory_rounds.mode).value,
            "converged": decision is not None and decision.converged,
            "decision": decision.why if decision else "",
        }

    def to_document(self) -> dict[str, object]:
        """Return the report as JSON; times in seconds, sizes in bytes."""
        return {
            "id": self.migration_id,
            **({} if self.group is None else {"group": self.group}),
            "name": self.name,
            "source": self.source,
            "target": self.target,
            "mode": self.mode,
            "result": self.result,
            **({"cause": self.cause} if self.cause else {}),
            "blackout_seconds": self.blackout_seconds,
            "fixed_seconds": self.fixed_seconds,
            "predicted": self.predicted.to_document() if self.predicted else None,
            "budget": self._budget(),
            "seconds": self.seconds,
            "data": self.data,
            "streams": self.streams,
            "bytes_sent": self.wire_bytes,
            "bytes": dict(self.counts),
            "memory_rounds": [
                asdict(each) for each in (self.memory_rounds.rounds if self.memory_rounds else ())
            ],
            "memory_cuts": self.memory_rounds.cuts if self.memory_rounds else 0,
            "file_rounds": [asdict(each) for each in self.file_rounds],
            "phases": [{"name": phase.label, "seconds": seconds} for phase, seconds in self.phases],
        }
