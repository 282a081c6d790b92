"""What became of the runs of a schedule: a JSON object a line, in a file that is bounded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

MISSED = "missed"
REMEMBERED = 1000
"""Runs at least that are remembered, whatever was dropped."""

_FILE = "history"
_MAX_BYTES = 4 << 20  # the older half is dropped then, about 5000 runs


@dataclass(frozen=True)
class Run:
    """What became of one run; ``result`` is ok, failed, skipped or missed, times are in UTC."""

    started: str
    seconds: float
    result: str
    snapshot: str = ""
    frozen_seconds: float = 0.0
    new_bytes: int = 0
    removed: int = 0
    freed_bytes: int = 0
    exit_code: int = 0
    error: str = ""

    @property
    def is_missed(self) -> bool:
        """Whether it never began."""
        return self.result == MISSED

    def to_document(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "result": self.result,
            "snapshot": self.snapshot,
            "frozen_seconds": round(self.frozen_seconds, 6),
            "new_bytes": self.new_bytes,
            "removed": self.removed,
            "freed_bytes": self.freed_bytes,
            "exit_code": self.exit_code,
            "error": self.error,
        }

    @classmethod
    def from_line(cls, line: str) -> Run | None:
        """Read a line of a history; None for a torn one."""
        try:
            run = cls(**json.loads(line))
            datetime.fromisoformat(run.started)
            return run
        except (ValueError, TypeError):
            return None


class History:
    """The runs of one schedule, in its directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched until something is asked for."""
        self._path = directory / _FILE

    def runs(self) -> list[Run]:
        """Return those that began, in the order in which they ended; torn lines are left out."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [run for line in lines if (run := Run.from_line(line)) is not None]

    def add(self, run: Run) -> None:
        """Write one down; may be done by two runs at once."""
        path = self._path
        if path.exists() and path.stat().st_size > _MAX_BYTES:
            lines = path.read_bytes().splitlines(keepends=True)
            shorter = path.with_suffix(".draft")
            shorter.write_bytes(b"".join(lines[len(lines) // 2 :]))
            shorter.replace(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # One write: lines of two runs at once do not mix.
            os.write(descriptor, json.dumps(run.to_document()).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def gauges(runs: list[Run]) -> dict[str, float]:
    """Say in numbers how the runs go; times in seconds since 1970."""
    last = next(run for run in reversed(runs) if not run.is_missed)
    good = [run for run in runs if run.result == "ok"]
    return {
        "last_run_timestamp_seconds": datetime.fromisoformat(last.started).timestamp(),
        "last_success_timestamp_seconds": (
            datetime.fromisoformat(good[-1].started).timestamp() if good else 0
        ),
        "last_run_failed": float(last.result != "ok"),
        "last_run_duration_seconds": last.seconds,
        "last_run_frozen_seconds": last.frozen_seconds,
        "last_run_new_bytes": last.new_bytes,
        "missed_runs": float(sum(run.is_missed for run in runs)),
    }


def written(moment: datetime) -> str:
    """Return a moment as runs have it: in UTC, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
