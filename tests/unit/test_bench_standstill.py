"""What is made of the times at which processors did not run; and of what a reading client saw."""

from __future__ import annotations

import pytest

from bench import standstill
from bench.standstill import Late
from bench.working_set import Reads


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        ([], 0.0),
        ([Late(0, 1.0, 2.0)], 0.0),  # the other one ran
        ([Late(0, 1.0, 2.0), Late(1, 2.0, 3.0)], 0.0),
        ([Late(0, 1.0, 2.0), Late(1, 1.5, 3.0)], 0.5),
        ([Late(0, 1.0, 2.0), Late(1, 1.0, 2.0)], 1.0),
        ([Late(1, 4.0, 6.0), Late(0, 1.0, 2.0), Late(1, 1.0, 2.0), Late(0, 3.0, 7.0)], 2.0),
        ([Late(0, 1.0, 4.0), Late(1, 1.0, 2.0), Late(1, 2.5, 4.0)], 1.5),
    ],
)
def test_the_machine_stood_still_while_no_processor_ran(late: list[Late], expected: float) -> None:
    assert expected == standstill.longest(late, 2, 0.0, 10.0)


def test_only_what_lies_between_two_times_counts() -> None:
    late = [Late(0, 1.0, 5.0), Late(1, 2.0, 6.0)]

    assert 3.0 == standstill.longest(late, 2, 0.0, 10.0)
    assert 1.0 == standstill.longest(late, 2, 3.0, 4.0)
    assert 0.0 == standstill.longest(late, 2, 5.0, 9.0)
    assert (4.0, 1.0, 0.0) == tuple(
        standstill.longest_of_one(late, *times) for times in ((0.0, 9.0), (3.0, 4.0), (7.0, 9.0))
    )


def test_where_there_is_one_processor_it_is_the_machine() -> None:
    assert 2.0 == standstill.longest([Late(3, 1.0, 3.0)], 1, 0.0, 10.0)


def test_what_the_program_says_is_read_in_seconds() -> None:
    said = ["late 0 1500000000 2000000000", "late 1 1000000 3000000"]

    assert [Late(0, 1.5, 2.0), Late(1, 0.001, 0.003)] == standstill.parse(said)


def test_reads_are_told_from_the_beginning_of_the_restore() -> None:
    reads = Reads(first=12.0, last=15.0, took=[0.5] * 98 + [1.0, 3.0])

    assert {
        "seconds": 2.0,
        "reads_seconds": 5.0,
        "median_read_seconds": 0.5,
        "p99_read_seconds": 1.0,
        "worst_read_seconds": 3.0,
    } == reads.values(10.0)
