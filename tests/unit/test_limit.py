"""A limit is kept to over all who share it, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.transport.limit import SPARE, RateLimit


class Clock:
    """Stands still but for who sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def sent(limit: RateLimit, clock: Clock, sizes: list[int], late: float = 0.0) -> list[float]:
    """Send pieces one after the other, by one who wakes up late; return when each went."""
    times = []
    for size in sizes:
        wait = limit.reserve(size)
        clock.sleep(wait + (late if wait else 0.0))
        times.append(clock.now)
    return times


@pytest.mark.parametrize("late", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("rate", [8_000.0, 12.5e6, 125e6])
def test_the_rate_is_held_within_a_tenth_also_by_sleepers_that_are_late(
    rate: float, late: float
) -> None:
    clock = Clock()
    limit = RateLimit(rate, clock)
    pieces = [limit.piece] * int(10 * rate / limit.piece)

    times = sent(limit, clock, pieces, late)

    assert pytest.approx(10.0, rel=0.1) == times[-1] - 100.0 + limit.piece / rate


@given(st.lists(st.tuples(st.integers(1, 64 << 10), st.floats(0, 2)), min_size=2))
def test_in_no_stretch_of_time_goes_more_than_the_rate_and_a_moment_to_spare(
    turns: list[tuple[int, float]],
) -> None:
    rate = 1e6
    clock = Clock()
    limit = RateLimit(rate, clock)

    went = []
    for size, idle in turns:
        clock.sleep(idle)
        went.append((sent(limit, clock, [size])[0], size))

    for first in range(len(went)):
        total = 0
        for at, size in went[first:]:
            # What went up to now, but for the piece that goes at this moment.
            assert total <= rate * (at - went[first][0] + SPARE) + 1
            total += size


def test_two_channels_have_one_rate_together() -> None:
    clock = Clock()
    limit = RateLimit(1e6, clock)

    waits = [limit.reserve(10_000) for _ in range(100)]

    assert 100 == len(waits)
    assert pytest.approx(0.99) == waits[-1]  # as if one had sent all


def test_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    limit = RateLimit(1e6, clock)
    clock.sleep(3600)

    times = sent(limit, clock, [10_000] * 100)

    assert pytest.approx(0.99 - SPARE) == times[-1] - times[0]


@pytest.mark.parametrize(("rate", "piece"), [(8_000, 4 << 10), (12.5e6, 62_500), (1e10, 64 << 10)])
def test_pieces_are_small_where_the_rate_is(rate: float, piece: int) -> None:
    assert piece == RateLimit(rate).piece
