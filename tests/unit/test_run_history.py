"""What became of runs: what is written down of them, and for how long."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.migrate import run_history
from pymigrate.migrate.run_history import History, Run


def test_what_was_added_is_read_and_torn_lines_are_not(tmp_path: Path) -> None:
    history = History(tmp_path)
    runs = [Run("2026-01-02T03:04:05Z", 1.5, "ok"), Run("2026-01-02T03:05:05Z", 2.0, "failed")]
    assert [] == history.runs()
    for run in runs:
        history.add(run)
    with (tmp_path / "history").open("a") as stream:
        stream.write('{"started": "today", "seconds": 1, "result": "ok"}\n{"torn')
    assert runs == history.runs()


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_history, "_MAX_BYTES", 2000)
    history = History(tmp_path)
    for number in range(100):
        started = f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z"
        history.add(Run(started, float(number), "ok"))

    found = [int(run.seconds) for run in history.runs()]
    assert list(range(found[0], 100)) == found
    assert (tmp_path / "history").stat().st_size < 2500
