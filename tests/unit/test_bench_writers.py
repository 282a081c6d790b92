"""What the benchmark's clients saw of a move, read off their answers."""

from __future__ import annotations

import pytest

from bench.harness import BenchError
from bench.writers import Answer, percentile, seen

BEGAN = 10.0


def steady(connection: int, start: float, end: float, took: float = 0.001) -> list[Answer]:
    """Answers every 10 ms, each of which took so long."""
    count = round((end - start) * 100)
    times = [start + number / 100 for number in range(count)]
    return [Answer(at, at + took, connection) for at in times]


def test_the_blackout_is_the_longest_gap_of_one_connection_while_the_others_wait_less() -> None:
    one = [*steady(1, 9, 11), *steady(1, 11.3, 12)]
    two = [*steady(2, 9, 11), *steady(2, 11.2, 12)]

    found = seen([*two, *one], BEGAN)

    assert found.blackout == pytest.approx(0.31)


def test_a_gap_before_the_move_is_not_its() -> None:
    found = seen([*steady(1, 5, 6), *steady(1, 9, 11), *steady(1, 11.1, 12)], BEGAN)

    assert found.blackout == pytest.approx(0.11)


def test_a_stall_is_of_a_write_that_was_sent_after_the_gap() -> None:
    waited = Answer(11.0, 11.3, 1)  # over the blackout: no stall
    late = Answer(11.5, 11.54, 1)

    found = seen([*steady(1, 9, 11), waited, *steady(1, 11.31, 11.5), late], BEGAN)

    assert found.blackout == pytest.approx(0.309)
    assert found.stall == pytest.approx(0.04)


def test_rounds_are_compared_with_what_was_before_the_move() -> None:
    answers = [*steady(1, 9, 10), *steady(1, 10.01, 11, took=0.003), *steady(1, 11.3, 12)]

    found = seen(answers, BEGAN)

    assert found.p99_before == pytest.approx(0.001)
    assert found.p99_rounds == pytest.approx(0.003)


@pytest.mark.parametrize("answers", [[], steady(1, 9, 10), steady(1, 11, 12)])
def test_without_answers_on_both_sides_nothing_was_measured(answers: list[Answer]) -> None:
    with pytest.raises(BenchError, match="no write was answered"):
        seen(answers, BEGAN)


@pytest.mark.parametrize(
    ("values", "expected"), [([1.0], 1), ([*map(float, range(1, 101))], 99), ([3.0, 1, 2], 3)]
)
def test_the_99th_percentile_is_one_of_the_values(values: list[float], expected: float) -> None:
    assert expected == percentile(values, 99)
