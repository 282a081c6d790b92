"""What a look at a container finds: one value for each thing that stands against a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from pymigrate.checkpoint.sight import Opened, Process


class Severity(StrEnum):
    """How much a finding weighs."""

    BLOCKS = "blocks"  # CRIU would fail
    CHOICE = "needs a choice"  # CRIU would fail with these options, and not with others
    NOTE = "note"  # it works; something is lost, or worth knowing


@dataclass(frozen=True)
class Obstacle:
    """One finding: its name, by which it is skipped; who has what; and what to do about it."""

    check: str
    severity: Severity
    seen: str
    remedy: str
    pid: int = 0
    descriptor: int | None = None
    path: str = ""

    @property
    def fatal(self) -> bool:
        """Whether a checkpoint would fail."""
        return self.severity is not Severity.NOTE

    def to_document(self) -> dict[str, object]:
        """Return it for ``--json``."""
        return {**asdict(self), "severity": self.severity.value, "fatal": self.fatal}


def held(check: str, process: Process, opened: Opened, what: str, remedy: str) -> Obstacle:
    """Say that a process holds something by a descriptor that CRIU cannot write down."""
    return Obstacle(
        check,
        Severity.BLOCKS,
        f"{process.name} {what} (descriptor {opened.number})",
        remedy,
        process.pid,
        opened.number,
        opened.link,
    )
