"""The runs of docs/faults.md: which there are, and how their table is written."""

from __future__ import annotations

from pymigrate.migrate.phases import Phase
from tests.privileged.faults import matrix, results
from tests.privileged.faults.field import Seen
from tests.privileged.faults.matrix import (
    COMMIT,
    FAULTS,
    MODES,
    POINTS,
    TARGET_POINTS,
    Moment,
    Point,
    Side,
)
from tests.tables import replaced


def test_every_fault_but_those_that_take_long_strikes_wherever_it_can() -> None:
    cases = matrix.cases()

    assert 300 <= len(cases) == len(set(cases))
    killed = [case.point for case in cases if case.fault is FAULTS[0]]
    assert killed == POINTS
    assert 4 * (len(Phase) - 1) == len(POINTS)
    at_target = [
        case.point for case in cases if case.fault.title.startswith("agents") and case.point.side
    ]
    assert at_target == TARGET_POINTS


def test_each_step_meets_every_mode() -> None:
    for fault in FAULTS:
        if fault.step == 1 and fault.modes == MODES and fault.loses is None:
            met = {fault.mode(Point(Phase.PRECOPIED, moment)) for moment in Moment}
            assert set(MODES) == met


def test_the_sample_has_most_faults_and_both_sides_of_the_commit() -> None:
    chosen = matrix.sample()

    assert 10 <= len(chosen) <= 20
    assert len({case.fault.name for case in chosen}) >= 12
    assert {Side.SOURCE, Side.TARGET} == {case.point.side for case in chosen}
    assert {True, False} == {case.point.is_committed for case in chosen}


def test_a_label_is_read_back() -> None:
    points = POINTS + TARGET_POINTS
    assert points == [Point.from_label(point.label) for point in points]
    assert COMMIT == Point.from_label("committed-reached")


def test_a_row_is_written_when_all_runs_of_its_fault_were_made() -> None:
    found = results.Results()
    runs = [case for case in matrix.cases() if case.fault is FAULTS[0]]
    for case in runs[1:]:
        found.add(case, Seen("source"))
    part = found.rows()
    found.add(runs[0], Seen("nowhere", twice=3, lost=2, wrong=("it runs nowhere",)))

    assert [] == part
    (row,) = found.rows()
    assert row.startswith("| command of the source killed | 36 | 36 | 35 | 0 | 0 | 1 | 1 | 2 | 1 |")


def test_the_page_has_a_place_for_the_table() -> None:
    page = results.PAGE.read_text(encoding="utf-8")

    assert 1 == page.count(results.TABLE.begin) == page.count(results.TABLE.end)
    row = results.row(FAULTS[0], [])
    assert row in replaced(page, results.TABLE, [row])
