"""When rounds of memory go on, and what happens where they do not help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate.budget import (
    MOST_THROTTLE,
    PLACING,
    USUAL_FIXED,
    Action,
    Budget,
    Decision,
    NoConverge,
    Round,
    decide,
    duration,
    usual_fixed,
)
from pymigrate.migrate.modes import Mode
from pymigrate.runtime.errors import UsageError

FIXED = 0.1
PER_PAGE = 0.0001  # seconds on the link


def rounds(*pages: int, throttle: int = 0, looking: float = 0.02) -> list[Round]:
    return [
        Round(each, each * 4096, looking + each * PER_PAGE, each * PER_PAGE, throttle)
        for each in pages
    ]


def decided(
    seen: Sequence[Round], remedy: str = "", mode: Mode = Mode.PRE, downtime: float = 0.3
) -> Decision:
    budget = Budget(downtime, on_no_converge=NoConverge(remedy) if remedy else None)
    return decide(budget, mode, seen, fixed=FIXED)


def test_it_freezes_as_soon_as_the_rest_fits() -> None:
    assert decided(rounds(10_000)).action is Action.ROUND
    assert decided(rounds(10_000, 4000)).action is Action.ROUND

    last = decided(rounds(10_000, 4000, 1000))

    assert (Action.FREEZE, Mode.PRE, True) == (last.action, last.mode, last.converged)
    assert last.forecast.blackout == pytest.approx(FIXED + 10_000 * PLACING + 0.1)


def test_in_hybrid_what_is_left_is_no_part_of_the_predicted_blackout_but_is_waited_for() -> None:
    assert decided(rounds(10_000, 4000), mode=Mode.HYBRID).action is Action.ROUND

    last = decided(rounds(10_000, 4000, 1000), mode=Mode.HYBRID)

    assert last.converged
    assert last.forecast.blackout == pytest.approx(FIXED)
    assert last.forecast.rest == pytest.approx(0.1)


def test_looking_longer_than_the_target_needs_to_place_it_is_what_is_waited_for() -> None:
    last = decided(rounds(100, 0, looking=0.15))

    assert last.forecast.blackout == pytest.approx(FIXED + 0.15)


def test_one_round_that_brings_little_is_forgiven() -> None:
    assert decided(rounds(10_000, 4000, 3500)).action is Action.ROUND
    assert decided(rounds(10_000, 4000, 3500, 1700)).action is Action.ROUND
    assert decided(rounds(10_000, 4000, 3500, 3000)).action is Action.FREEZE


@pytest.mark.parametrize(
    ("remedy", "mode", "expected"),
    [
        ("", Mode.PRE, (Action.FREEZE, Mode.PRE)),
        ("", Mode.HYBRID, (Action.FREEZE, Mode.HYBRID)),
        ("post", Mode.PRE, (Action.FREEZE, Mode.HYBRID)),
        ("post", Mode.HYBRID, (Action.FREEZE, Mode.HYBRID)),
        ("stop", Mode.PRE, (Action.FREEZE, Mode.PRE)),
        ("stop", Mode.HYBRID, (Action.FREEZE, Mode.PRE)),
        ("abort", Mode.PRE, (Action.ABORT, Mode.PRE)),
        ("abort", Mode.HYBRID, (Action.ABORT, Mode.HYBRID)),
        ("throttle", Mode.PRE, (Action.THROTTLE, Mode.PRE)),
        ("throttle", Mode.HYBRID, (Action.THROTTLE, Mode.HYBRID)),
    ],
)
def test_rounds_that_do_not_help_end_as_was_asked(
    remedy: str, mode: Mode, expected: tuple[Action, Mode]
) -> None:
    last = decided(rounds(10_000, 10_000, 10_000), remedy, mode)

    assert expected == (last.action, last.mode)
    assert not last.converged
    assert "predicted, 300 ms allowed, and rounds do not make it less" in last.why


def test_the_forecast_is_that_of_the_mode_that_is_gone_on_in() -> None:
    seen = rounds(10_000, 10_000, 10_000)

    assert decided(seen, "post").forecast.blackout == pytest.approx(FIXED)
    assert decided(seen, "stop", Mode.HYBRID).forecast.blackout == pytest.approx(
        FIXED + 10_000 * PLACING + 1.0
    )


def test_throttling_gets_stronger_with_each_round_that_brings_little_and_then_ends() -> None:
    seen = rounds(10_000, 10_000, 10_000)
    steps = []
    while (last := decided(seen, "throttle")).action is Action.THROTTLE:
        steps.append(last.throttle)
        seen += rounds(10_000, throttle=last.throttle)

    assert [20, 60, 80, 90, 95, 98, 99] == steps
    assert last.action is Action.ROUND


def test_what_is_written_at_the_slowest_is_seen_before_it_is_given_up() -> None:
    seen = rounds(10_000, 10_000, 10_000) + rounds(10_000, 9000, throttle=MOST_THROTTLE)

    assert decided(seen, "throttle").action is Action.ROUND
    helps = decided(seen + rounds(1000, throttle=MOST_THROTTLE), "throttle")
    assert (Action.FREEZE, True) == (helps.action, helps.converged)
    does_not = decided(seen + rounds(9000, throttle=MOST_THROTTLE), "throttle")
    assert (Action.FREEZE, Mode.PRE) == (does_not.action, does_not.mode)
    assert not does_not.converged


def test_a_round_that_helps_is_not_throttled_more() -> None:
    seen = rounds(10_000, 10_000, 10_000) + rounds(4500, throttle=60)

    last = decided(seen, "throttle")

    assert last.action is Action.ROUND


def test_throttling_is_not_tried_where_memory_is_not_what_takes_long() -> None:
    last = decided(rounds(10_000, 10_000, 10_000), "throttle", downtime=0.05)

    assert last.action is Action.FREEZE
    assert "165 ms of it do not depend on what changes" in last.why


@pytest.mark.parametrize("pages", [0, 20])
def test_no_more_rounds_where_there_is_nothing_left_to_gain(pages: int) -> None:
    last = decided(rounds(100_000, pages), "abort", downtime=0.05)

    assert last.action is Action.ABORT
    assert "hardly any memory changes" in last.why


def test_the_rounds_are_counted() -> None:
    halving = rounds(*(1 << (40 - n) for n in range(16)))

    assert decided(halving[:15]).action is Action.ROUND
    assert decided(halving).action is Action.FREEZE


@given(
    seen=st.lists(
        st.builds(
            Round,
            pages=st.integers(0, 1 << 22),
            wire=st.integers(0, 1 << 34),
            seconds=st.floats(0, 1000),
            sending=st.floats(0, 1000),
            throttle=st.sampled_from([0, 20, 60, MOST_THROTTLE]),
        ),
        min_size=1,
        max_size=16,
    ),
    remedy=st.sampled_from([None, *NoConverge]),
    mode=st.sampled_from([Mode.PRE, Mode.HYBRID]),
    downtime=st.floats(0.001, 100),
)
def test_rounds_always_end_and_a_promise_is_only_given_where_it_is_kept(
    seen: list[Round], remedy: NoConverge | None, mode: Mode, downtime: float
) -> None:
    budget = Budget(downtime, on_no_converge=remedy)

    last = decide(budget, mode, seen, fixed=FIXED)
    full = decide(budget, mode, (seen * 16)[:16], fixed=FIXED)

    assert full.action in (Action.FREEZE, Action.ABORT)
    if last.converged:
        assert last.mode is mode
        assert last.forecast.blackout <= downtime
    if last.action is Action.THROTTLE:
        assert seen[-1].throttle < last.throttle <= MOST_THROTTLE
    if last.action is Action.ABORT:
        assert remedy is NoConverge.ABORT


def test_what_earlier_moves_took_is_the_fixed_part() -> None:
    assert usual_fixed([]) == USUAL_FIXED
    assert usual_fixed([0.2, 0.9, 0.3]) == 0.3


@pytest.mark.parametrize(
    ("text", "seconds"), [("300ms", 0.3), ("1.5s", 1.5), ("2", 2.0), ("1 min", 60.0), ("3m", 180.0)]
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert duration(text, "--max-downtime") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1s", "1h", "ms", "1e3", "nan", "9999999999s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        duration(text, "--max-downtime")


def test_a_round_whose_clocks_disagree_does_not_promise_less_than_nothing() -> None:
    odd = replace(rounds(10)[0], seconds=0.1, sending=0.2)

    assert odd.looking == 0.0
