"""How much is on its way."""

from __future__ import annotations

import pytest

from pymigrate.migrate.pace import CALM, DELAY, FAVOUR, LEAST, MOST, SHARE, SHARED, Pace
from tests.fakes.links import BATCH, carried


def test_nothing_more_is_sent_than_the_window_allows() -> None:
    pace = Pace()
    while pace.may_send:
        pace.gone(BATCH, BATCH)

    assert not pace.may_send
    pace.taken(BATCH, 0.0)
    assert pace.may_send


def test_a_wanted_page_waits_behind_no_more_than_the_link_carries_in_that_time() -> None:
    slow, fast = Pace(), Pace()
    carried(slow, 12.5e6, 40, blocked=True)
    carried(fast, 500e6, 400, blocked=True)

    assert LEAST == slow.window
    assert fast.window == int(fast.rate * DELAY)
    assert abs(fast.rate - 500e6) < 25e6


def test_while_nobody_waits_as_much_is_on_its_way_as_ever_may_be() -> None:
    pace = Pace()
    pace.somebody_waits = False
    carried(pace, 12.5e6, 40, blocked=True)
    before = pace.window
    pace.somebody_waits = True

    assert [MOST, LEAST] == [before, pace.window]


def test_batches_are_large_where_that_delays_nobody() -> None:
    slow, fast, early = Pace(), Pace(), Pace()
    early.somebody_waits = False
    for pace, rate in ((slow, 12.5e6), (fast, 500e6), (early, 12.5e6)):
        carried(pace, rate, 400, blocked=True)

    assert [BATCH, 2 * BATCH, 2 * BATCH] == [pace.batch for pace in (slow, fast, early)]


def test_no_rate_makes_the_window_larger_than_its_bound() -> None:
    pace = Pace()
    carried(pace, 1e12, 10**5 // 16, blocked=False)

    assert pace.window <= MOST


def test_what_is_on_its_way_counts_as_it_is_on_the_wire() -> None:
    pace = Pace()
    pace.gone(BATCH, BATCH // 4)

    assert pace.may_send
    pace.gone(BATCH, BATCH)
    assert not pace.may_send


def test_a_target_that_claims_to_have_taken_more_than_was_sent_gains_nothing() -> None:
    pace = Pace()
    pace.gone(BATCH, BATCH)
    pace.taken(1 << 60, 0.0)
    while pace.may_send:
        pace.gone(BATCH, BATCH)

    assert not pace.may_send


def test_what_nobody_waits_for_is_held_back_while_pages_are_wanted_but_not_for_ever() -> None:
    pace = Pace()
    assert pace.holds(5.0) == 0
    asked = 5.0
    while asked < 5.0 + FAVOUR - CALM:
        pace.wanted(asked)
        assert abs(pace.holds(asked) - CALM) < 1e-9
        assert pace.holds(asked + CALM) == 0  # nobody has asked since
        asked += CALM / 2
    pace.wanted(5.0 + FAVOUR - CALM / 4)
    assert 0 < pace.holds(5.0 + FAVOUR - CALM / 4) < CALM
    pace.wanted(5.0 + FAVOUR)
    assert pace.holds(5.0 + FAVOUR) == 0


def test_beside_a_lane_it_goes_slowly_after_that_while_pages_are_wanted() -> None:
    """Not without a lane, where wanted pages are among what is counted."""
    alone, beside = Pace(), Pace(lane=True)
    for pace in (alone, beside):
        pace.wanted(5.0)
        now = 5.0 + FAVOUR
        pace.wanted(now)
        pace.gone(BATCH, BATCH, now)

    assert 0 == alone.holds(now)
    assert abs(beside.holds(now) - BATCH / SHARE) < 1e-9
    assert beside.holds(now + BATCH / SHARE) == 0  # time for the next one
    beside.gone(BATCH, BATCH, now + 2 * CALM)
    assert beside.holds(now + 2 * CALM) == 0  # nobody has asked since


@pytest.mark.parametrize(("processors", "times"), [(1, 1), (2, 1), (4, 3), (64, 63)])
def test_with_more_processors_it_goes_faster(processors: int, times: int) -> None:
    pace = Pace(lane=True, processors=processors)
    pace.wanted(5.0)
    now = 5.0 + FAVOUR
    pace.wanted(now)
    pace.gone(BATCH, BATCH, now)

    assert abs(pace.holds(now) - BATCH / SHARE / times) < 1e-9


def test_what_is_very_large_does_not_go_slowly_for_ever() -> None:
    pace = Pace(lane=True)
    pace.wanted(5.0)
    now = 5.0 + FAVOUR + SHARED
    pace.wanted(now)
    pace.gone(BATCH, BATCH, now)

    assert 0 == pace.holds(now)
