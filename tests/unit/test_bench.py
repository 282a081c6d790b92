"""The parts of the benchmarks that decide and calculate; nothing is measured here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from bench import benchmark
from bench.harness import BenchError, Episode, Row, Sample, Spread, interleave, ratio
from bench.machine import Machine
from bench.results import Column, Measure, Outcome, show

MACHINE = Machine("AMD EPYC(TM) 9R14 @ 2.60GHz", 2, 24 << 30, "6.18.44-fc", "Debian 12")


def episode(name: str, log: list[str], fail: Callable[[int], bool] = lambda turn: False) -> Episode:
    """Make an episode that measures a checkpoint, perhaps fails, and measures a restore."""
    turns = iter(range(100))

    def act() -> Iterator[Sample]:
        turn = next(turns)
        log.append(name)
        yield Sample("checkpoint", {"seconds": float(turn)})
        if fail(turn):
            raise BenchError(f"turn {turn} went wrong")
        yield Sample("restore", {"seconds": float(turn) * 2})

    return Episode(name, "", ("checkpoint", "restore"), act)


def row(subject: str, variant: str, *seconds: float) -> Row:
    return Row("checkpoint", subject, variant, {"seconds": list(seconds)})


def test_subjects_take_turns() -> None:
    log: list[str] = []

    interleave([episode(name, log) for name in "abc"], 2)

    assert log == [*"abc"] * 3  # the first round warms up


def test_the_warm_up_is_not_counted() -> None:
    checkpoint, restore = interleave([episode("a", [])], 3)

    assert checkpoint.series == {"seconds": [1.0, 2.0, 3.0]}
    assert restore.series == {"seconds": [2.0, 4.0, 6.0]}


def test_a_failure_is_kept_with_its_reason_and_the_turns_before_it() -> None:
    checkpoint, restore = interleave([episode("a", [], lambda turn: turn == 2)], 3)

    assert restore.failures == ["turn 2 went wrong"]
    assert restore.series == {"seconds": [2.0, 6.0]}
    assert (checkpoint.failures, checkpoint.series) == ([], {"seconds": [1.0, 2.0, 3.0]})


def test_who_fails_twice_has_no_more_turns_and_the_others_go_on() -> None:
    log: list[str] = []

    interleave([episode("a", log, lambda turn: True), episode("b", log)], 3)

    assert (log.count("a"), log.count("b")) == (2, 4)


def test_a_spread_has_all_three() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 9.0]) == Spread(1.0, 2.5, 9.0, 4)


def test_a_row_is_compared_with_the_one_of_pymigrate_that_does_the_same_work() -> None:
    zstd, none = row("pymigrate", "zstd", 4.0), row("pymigrate", "none", 2.0)
    rows = [zstd, none, row("podman", "zstd", 8.0, 8.0), row("runc", "directory", 1.0)]

    assert [1.0, 1.0, 2.0, 0.5] == [ratio(each, rows, "seconds") for each in rows]


def test_where_there_is_one_way_of_pymigrate_all_are_compared_with_it() -> None:
    rows = [row("pymigrate", "migrate", 1.0), row("podman", "by hand", 3.0)]

    assert ratio(rows[1], rows, "seconds") == 3.0


def test_where_it_has_several_ways_of_the_same_work_the_first_is_compared() -> None:
    rows = [row("pymigrate", "1gbit mix pre", 2.0), row("pymigrate", "1gbit mix ssh", 8.0)]
    rows += [row("scp", "1gbit mix", 6.0), row("scp", "1gbit mixed", 6.0)]

    assert [1.0, 1.0, 3.0, None] == [ratio(each, rows, "seconds") for each in rows]


def test_there_is_no_ratio_to_what_could_not_run() -> None:
    rows = [Row("checkpoint", "pymigrate", "zstd"), row("podman", "zstd", 3.0)]

    assert ratio(rows[1], rows, "seconds") is None


def test_a_machine_is_named_by_cpu_and_kernel_only() -> None:
    assert MACHINE.slug == "amd-epyc-9r14-6.18.44-fc"


@pytest.mark.parametrize(("text", "mib"), [("512MiB", 512), ("2GiB", 2048), ("64", 64)])
def test_sizes_are_read(text: str, mib: int) -> None:
    assert benchmark.mebibytes(text) == mib


@pytest.mark.parametrize("text", ["0", "many", "5TB", "-1", ""])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        benchmark.mebibytes(text)


def test_results_are_kept_and_shown_with_those_who_failed(tmp_path: Path) -> None:
    outcome = Outcome(
        bench="first",
        when=datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        machine=MACHINE,
        commit="1a2b3c4",
        versions={"podman": "4.3.1"},
        settings={"runs": 1},
        busy_before=0.25,
        rows=[
            row("pymigrate", "none", 0.5),
            Row("checkpoint", "podman", "none", failures=["podman …\nit did not"]),
        ],
        unavailable={"runc": "runc is not on this machine"},
    )
    console = Console(record=True, width=100, file=(tmp_path / "shown").open("w"))

    kept = outcome.keep(tmp_path)
    show(outcome, [Measure("checkpoint", "Checkpoint", (Column("seconds", "wall"),))], console)
    console.file.close()

    assert kept.name == "2026-02-03T040506Z-amd-epyc-9r14-6.18.44-fc.json"
    assert json.loads(kept.read_text())["rows"][0]["series"] == {"seconds": [0.5]}
    shown = console.export_text()
    assert "0.500 s (0.500–0.500)" in shown
    assert "podman none: checkpoint failed: it did not" in shown
    assert "runc cannot run here: runc is not on this machine" in shown
