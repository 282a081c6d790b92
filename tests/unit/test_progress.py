"""What is told of a move while it goes on: rates, the time left, events."""

from __future__ import annotations

import argparse
import json

import pytest

from pymigrate.migrate import watching
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.progress import WINDOW, Counters, Gauge
from pymigrate.migrate.report import Report

GIB = 1 << 30
MIB = 1 << 20


def counters(*, looked: int = 0, turn: int = 1, sent: int = 0) -> Counters:
    return Counters(sent=sent, pages=7, turn=turn, looked=looked, memory=GIB)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    gauge = Gauge("web")
    gauge.take(0.0, "precopied", counters(sent=0))
    for second in range(1, 10):
        gauge.take(float(second), "precopied", counters(sent=second * MIB))

    for step in range(1, 5):
        seen = gauge.take(9.0 + step, "precopied", counters(sent=(9 + 10 * step) * MIB))

    assert WINDOW < 4
    assert 10 * MIB == seen.rate


def test_what_is_left_of_a_turn_takes_as_long_as_its_last_seconds_say() -> None:
    gauge = Gauge("web")
    gauge.take(0.0, "precopied", counters(looked=0))

    seen = gauge.take(1.0, "precopied", counters(looked=GIB // 4))

    assert (0.25, 3.0) == (seen.part, seen.left)


def test_a_new_turn_has_a_time_of_its_own() -> None:
    gauge = Gauge("web")
    gauge.take(0.0, "precopied", counters(looked=0))
    gauge.take(1.0, "precopied", counters(looked=GIB))

    first = gauge.take(1.5, "precopied", counters(looked=0, turn=2))
    second = gauge.take(2.0, "precopied", counters(looked=GIB // 2, turn=2))

    assert None is first.left
    assert 0.5 == second.left


def test_outside_of_memory_nothing_is_said_of_the_time_left() -> None:
    gauge = Gauge("web")
    gauge.take(0.0, "reserved", Counters(sent=0))

    seen = gauge.take(1.0, "reserved", Counters(sent=100))

    assert (None, None, 100.0) == (seen.part, seen.left, seen.rate)


def test_more_memory_than_was_expected_is_not_more_than_all() -> None:
    gauge = Gauge("web")
    gauge.take(0.0, "frozen", counters(looked=GIB))

    seen = gauge.take(1.0, "frozen", counters(looked=2 * GIB))

    assert (1.0, 0.0) == (seen.part, seen.left)


def test_a_line_says_it_to_people() -> None:
    gauge = Gauge("web")
    gauge.take(0.0, "precopied", counters(looked=0))

    seen = gauge.take(2.0, "precopied", counters(looked=GIB // 2, sent=100 * MIB))

    assert (
        "web: memory 512.0 MiB of 1.0 GiB, 100.0 MiB sent, 50.0 MiB/s, 2.0 s left"
        == watching.line(seen)
    )


def asked(*, as_json: bool = False, quiet: bool = False) -> argparse.Namespace:
    return argparse.Namespace(json=as_json, quiet=quiet)


def moving() -> Report:
    report = Report("id", "web", "alpha", "beta", "hybrid")
    report.counters = lambda: counters(looked=GIB, sent=5)
    report.began(Phase.FROZEN)
    return report


def test_with_json_events_go_to_stderr_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with watching.watched([moving(), moving()], asked(as_json=True)):
        pass

    printed = capsys.readouterr()
    events = [json.loads(line) for line in printed.err.splitlines()]
    assert "" == printed.out
    assert 2 <= len(events)
    assert {"progress"} == {each["event"] for each in events}
    assert ("web", "frozen", 5, 7, 1, GIB, GIB) == (
        *(events[-1][key] for key in ("name", "phase", "bytes_sent", "pages_sent", "turn")),
        *(events[-1][key] for key in ("memory_looked_at", "memory")),
    )


@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_is_shown_when_quiet(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    with watching.watched([moving()], asked(as_json=as_json, quiet=True)):
        pass

    assert ("", "") == capsys.readouterr()


def test_where_there_is_no_terminal_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with watching.watched([moving()], asked()):
        pass

    assert "web: memory 1.0 GiB of 1.0 GiB, 5 B sent" in capsys.readouterr().err


def test_a_move_that_has_not_begun_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with watching.watched([Report("id", "web", "alpha", "beta", "stop")], asked()):
        pass

    assert ("", "") == capsys.readouterr()


def test_a_failure_of_the_move_goes_through() -> None:
    with pytest.raises(KeyError), watching.watched([moving()], asked(quiet=True)):
        raise KeyError


def test_on_a_terminal_there_is_a_bar_and_other_lines_stay(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")

    with watching.watched([moving()], asked()):
        pass

    assert "web" in capfd.readouterr().err
