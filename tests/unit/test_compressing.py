"""When what goes by a link is compressed, and how much."""

from __future__ import annotations

import pytest

from pymigrate.migrate.compressing import (
    AGAIN,
    CALM,
    HIGHEST,
    LEVEL,
    LEVELS,
    MORE,
    REST,
    SAMPLES,
    SOME,
    SURELY,
    TRIAL,
    WORTHWHILE,
    Compressing,
)
from pymigrate.migrate.pace import BEGINNING, Pace
from tests.fakes.links import BATCH, Link, carried

SLOW, LESS = LEVELS[-1]  # a link of so many bytes a second just has this level


def test_a_link_that_is_slow_from_its_first_bytes_is_compressed_at_once() -> None:
    pace = Pace()
    link = Link(SURELY * 0.8)
    while link.now < BEGINNING / 2:
        link.carry(pace, 1, blocked=True)

    assert LEVEL == pace.level


def test_a_beginning_that_was_slower_than_the_link_is_seen_to_have_been() -> None:
    pace = Pace()
    link = Link(SURELY * 0.8, cpus=SURELY * 2.4)
    link.carry(pace, SAMPLES // 4, blocked=True)
    tried = pace.level
    link.rate = 2 * WORTHWHILE
    link.carry(pace, SAMPLES, blocked=True)
    seen = pace.level
    link.carry(pace, 2 * REST, blocked=True)

    assert LEVEL == tried
    assert [None, None] == [seen, pace.level]


def test_what_failed_in_the_beginning_is_tried_again_when_that_is_over() -> None:
    pace = Pace()
    link = Link(SURELY * 0.8, ratio=1.0)
    link.carry(pace, SAMPLES // 4, blocked=True)
    tried = pace.level
    while pace.level is not None:
        link.carry(pace, 1, blocked=True)
    failed_at = link.now
    link.ratio = 2.0
    link.carry(pace, SAMPLES, blocked=True)

    assert LEVEL == tried
    assert failed_at < BEGINNING * 1.5
    assert LEVEL == pace.level


def test_a_burst_after_a_pause_is_not_taken_for_a_faster_link() -> None:
    pace = Pace()
    link = Link(SLOW * 0.8, cpus=1e10)
    link.carry(pace, SAMPLES // 8 + 1 + TRIAL, blocked=True)  # it was worth it
    tried = pace.level
    link.now += 0.3
    link.carry(pace, 1, blocked=True)
    link.rate = 10 * SLOW
    link.carry(pace, 16, blocked=True)
    link.rate = SLOW * 0.8
    for _ in range(16):
        link.carry(pace, 1, blocked=True)
        assert pace.level is not None

    assert LESS == tried


@pytest.mark.parametrize(("bound", "level"), LEVELS)
def test_the_slower_a_link_the_more_is_spent_on_each_byte(bound: float, level: int) -> None:
    pace, limited = Pace(), Pace(bound * 0.9)
    carried(pace, bound * 0.9, SAMPLES * 4, blocked=True)

    assert [level, level] == [pace.level, limited.level]


def test_whoever_the_link_waits_for_spends_less_until_it_does_not_wait_any_more() -> None:
    pace = Pace(SLOW * 0.9)
    begun = pace.level
    for _ in range(SOME):
        pace.gone(BATCH, BATCH // 2, late=True)
    busy = pace.level
    for count in range(SOME * CALM):
        assert LEVEL == pace.level
        pace.gone(BATCH, BATCH // 2, late=count % SOME == 0)

    assert [LESS, LEVEL, LESS] == [begun, busy, pace.level]


def test_whoever_is_late_at_the_least_level_judges_again_when_the_beginning_is_over() -> None:
    pace = Pace()
    link = Link(SLOW * 0.8, cpus=SLOW)
    link.carry(pace, SAMPLES // 8, blocked=True)
    while pace.level is None:
        link.carry(pace, 1, blocked=True)
    levels = [pace.level]
    for _ in range(2 * SOME):
        link.carry(pace, 1, blocked=True)
        levels += [pace.level] if levels[-1] != pace.level else []

    assert [LESS, LEVEL, None] == levels


def test_a_slow_link_gets_its_bytes_compressed_and_a_fast_one_does_not() -> None:
    slow, fast, idle = Pace(), Pace(), Pace()
    carried(slow, 12.5e6, SAMPLES, blocked=True)
    carried(fast, 1e9, SAMPLES * 10, blocked=True)
    carried(idle, 12.5e6, SAMPLES, blocked=False)

    assert slow.level is not None
    assert fast.level is None
    assert idle.level is None


def test_compression_ends_when_the_link_is_not_what_is_waited_for() -> None:
    pace = Pace()
    link = Link(12.5e6)
    link.carry(pace, SAMPLES, blocked=True)
    before = pace.level
    link.carry(pace, SAMPLES, blocked=False)

    assert before is not None
    assert pace.level is None


def test_compression_that_brings_no_more_pages_is_given_up_and_not_tried_again_soon() -> None:
    incompressible, busy, good = Pace(), Pace(), Pace()
    levels = []
    for pace, link in (
        (incompressible, Link(100e6, ratio=1.0)),
        (busy, Link(100e6, cpus=90e6)),
        (good, Link(100e6)),
    ):
        link.carry(pace, SAMPLES * 2, blocked=True)
        link.carry(pace, REST // 2, blocked=True)
        levels.append(pace.level)

    assert [None, None, LEVEL] == levels


def test_after_a_rest_compression_is_tried_again() -> None:
    pace = Pace()
    link = Link(100e6, ratio=1.0)
    link.carry(pace, 2 * SAMPLES, blocked=True)
    given_up = pace.level
    link.ratio = 3.0  # what comes now is of another kind

    link.carry(pace, REST + SAMPLES, blocked=True)

    assert given_up is None
    assert LEVEL == pace.level


def test_a_fast_link_whose_beginning_is_slow_is_not_compressed() -> None:
    pace = Pace()
    link = Link(2 * SURELY * 0.9)
    link.carry(pace, SAMPLES // 2, blocked=True)
    link.rate = 2 * WORTHWHILE
    link.carry(pace, SAMPLES * 2, blocked=True)

    assert pace.level is None


def test_compression_ends_on_a_link_that_turns_out_to_be_fast() -> None:
    pace = Pace()
    link = Link(SURELY * 1.2, cpus=SURELY * 1.5)
    link.carry(pace, SAMPLES * 2, blocked=True)
    compressed = pace.level
    link.rate = 2 * WORTHWHILE

    link.carry(pace, REST + SAMPLES, blocked=True)

    assert compressed == LEVEL
    assert pace.level is None


def test_a_link_that_is_surely_slow_stays_compressed() -> None:
    pace = Pace()
    link = Link(SURELY / 2)
    link.carry(pace, SAMPLES, blocked=True)
    levels: set[int | None] = set()
    for _ in range(2 * REST):
        link.carry(pace, 1, blocked=True)
        levels.add(pace.level)

    assert {LEVEL} == levels


def test_what_is_limited_below_what_zstd_gives_is_compressed_from_the_start() -> None:
    slow, fast = Pace(12.5e6), Pace(2 * WORTHWHILE)
    carried(slow, 12.5e6, SAMPLES * 2, blocked=False)

    assert slow.level is not None
    assert fast.level is None


GIGABIT = 119e6  # bytes a second


def tried_early(rate: float = GIGABIT) -> Compressing:
    """Begin on a link of this rate, which is waited for."""
    made = Compressing()
    carried_so(made, rate, is_certain=False)
    waited(made, SAMPLES // 8)
    return made


def carried_so(made: Compressing, rate: float, *, is_certain: bool) -> None:
    made.carries(rate, rate, is_certain=is_certain)


def waited(made: Compressing, times: int, *, blocked: bool = True) -> None:
    for _ in range(times):
        made.waits(0.0, blocked=blocked)


def succeeded(made: Compressing) -> None:
    """End the trial, with three times as many pages as the link could carry before."""
    made.taken(0, 0, 0.0)
    made.taken(TRIAL, int(3 * GIGABIT), 1.0)


def test_only_what_carries_more_several_times_in_turn_is_another_link() -> None:
    made = tried_early()
    for _ in range(2):
        for _ in range(AGAIN - 1):
            carried_so(made, GIGABIT * MORE * 1.01, is_certain=False)
            assert LEVEL == made.level
        carried_so(made, GIGABIT * MORE * 0.99, is_certain=False)
    for _ in range(AGAIN):
        assert LEVEL == made.level
        carried_so(made, GIGABIT * MORE * 1.01, is_certain=False)

    assert made.level is None


def test_a_beginning_is_judged_once() -> None:
    made = tried_early()
    for _ in range(AGAIN):
        carried_so(made, GIGABIT * MORE * 1.01, is_certain=False)
    carried_so(made, GIGABIT, is_certain=False)
    waited(made, SAMPLES)
    early = made.level
    carried_so(made, GIGABIT, is_certain=True)
    waited(made, 1)

    assert [None, LEVEL] == [early, made.level]


def test_a_link_that_may_be_fast_is_not_judged_by_its_beginning() -> None:
    made = tried_early((SURELY + WORTHWHILE) / 2)
    waited(made, SAMPLES)
    early = made.level
    carried_so(made, (SURELY + WORTHWHILE) / 2, is_certain=True)
    waited(made, 1)

    assert [None, LEVEL] == [early, made.level]


def test_what_a_link_was_taken_for_does_not_count_for_ever() -> None:
    made = tried_early()
    succeeded(made)
    carried_so(made, GIGABIT, is_certain=True)
    made.taken(SAMPLES, int(9 * GIGABIT), 3.0)
    for _ in range(AGAIN):
        carried_so(made, GIGABIT * MORE * 1.01, is_certain=True)

    assert LEVEL == made.level


def test_the_level_follows_the_link_but_not_within_a_trial() -> None:
    made = tried_early()
    slowest, _ = LEVELS[0]
    carried_so(made, slowest * 0.9, is_certain=False)
    within = made.level
    succeeded(made)
    carried_so(made, slowest * 0.9, is_certain=True)
    slower = made.level
    carried_so(made, GIGABIT, is_certain=True)

    assert [LEVEL, HIGHEST, LEVEL] == [within, slower, made.level]


def test_what_arrives_says_nothing_where_the_limit_is_ours() -> None:
    made = Compressing(LEVELS[0][0] * 0.9)
    carried_so(made, 2 * WORTHWHILE, is_certain=True)

    assert HIGHEST == made.level


def test_a_trial_that_nobody_waited_for_leaves_nothing_behind() -> None:
    made = tried_early()
    waited(made, SAMPLES, blocked=False)
    idle = made.level
    for count in range(1, AGAIN + 1):
        carried_so(made, GIGABIT * MORE * 1.01, is_certain=False)
        made.taken(TRIAL // 2, 1, float(count))
    carried_so(made, GIGABIT, is_certain=False)
    waited(made, SAMPLES // 8)

    assert [None, LEVEL] == [idle, made.level]


def test_only_its_last_moments_show_that_a_link_carries_more() -> None:
    """A mean of before still has a burst in it when that is over."""
    made = tried_early()
    for _ in range(2 * AGAIN):
        made.carries(GIGABIT * MORE * 1.01, GIGABIT, is_certain=False)

    assert LEVEL == made.level
