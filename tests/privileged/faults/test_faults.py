"""A real move, struck at every point by every fault: never two copies, and none only with its host.

A sample is part of every run of the tests; all of them, and docs/faults.md, are made by
`sudo ./test --long tests/privileged/faults`.
"""

from __future__ import annotations

import pytest

from tests.privileged.faults.field import Field, Seen
from tests.privileged.faults.matrix import Case, cases, sample
from tests.privileged.faults.results import Results

pytestmark = [pytest.mark.privileged, pytest.mark.criu, pytest.mark.requires("userfaultfd")]


def runs() -> list[object]:
    """List all cases; those that are no part of the sample are long."""
    chosen = set(sample())
    return [
        pytest.param(case, id=case.label, marks=() if case in chosen else pytest.mark.long)
        for case in cases()
    ]


@pytest.mark.parametrize("case", runs())
def test_one_copy_goes_on_where_the_journal_says(
    ground: Field, results: Results, case: Case
) -> None:
    try:
        seen = ground.strike(case)
    except BaseException as error:
        results.add(case, Seen("nowhere", wrong=(f"{error!r}",)))
        ground.end()
        raise
    results.add(case, seen)

    assert 0 == seen.twice
    assert 0 == seen.lost
    assert () == seen.wrong
    if case.fault.name == "command of the source killed":  # nothing else can have decided
        assert seen.at == ("target" if case.point.is_committed else "source")
