"""How much is on its way, and when it is compressed."""

from __future__ import annotations

import pytest

from pymigrate.migrate.pace import (
    BEGINNING,
    CALM,
    DELAY,
    FAVOUR,
    LEAST,
    LEVEL,
    MOST,
    REST,
    SAMPLES,
    SHARE,
    SHARED,
    SURELY,
    WORTHWHILE,
    Pace,
)

BATCH = 1 << 20


class Link:
    """A link of a rate in bytes a second, and CPUs that compress so many; it has a clock."""

    def __init__(self, rate: float, *, ratio: float = 2.0, cpus: float = 1e9) -> None:
        self.rate = rate
        self.ratio = ratio
        self._cpus = cpus
        self.now = 0.0
        self._total = 0

    def carry(self, pace: Pace, batches: int, *, blocked: bool) -> None:
        """Send batches; each is taken before the next."""
        for _ in range(batches):
            pace.waits(self.now, blocked=blocked)
            wire = BATCH if pace.level is None else int(BATCH / self.ratio)
            pace.gone(BATCH, wire)
            seconds = wire / self.rate
            self.now += seconds if pace.level is None else max(seconds, BATCH / self._cpus)
            self._total += BATCH
            pace.taken(self._total, self.now)


def carried(pace: Pace, rate: float, batches: int, *, blocked: bool) -> None:
    """Send batches over a link."""
    Link(rate).carry(pace, batches, blocked=blocked)


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


def test_the_beginning_says_nothing_of_a_link() -> None:
    pace = Pace()
    link = Link(SURELY * 0.9)
    link.carry(pace, int(BEGINNING * link.rate / BATCH), blocked=True)
    link.rate = 2 * WORTHWHILE
    link.carry(pace, SAMPLES, blocked=True)

    assert pace.level is None


def test_no_rate_makes_the_window_larger_than_its_bound() -> None:
    pace = Pace()
    carried(pace, 1e12, 10**5 // 16, blocked=False)

    assert pace.window <= MOST


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
    link.carry(pace, SAMPLES, blocked=True)
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
    levels = set()
    for _ in range(2 * REST):
        link.carry(pace, 1, blocked=True)
        levels.add(pace.level)

    assert levels == {LEVEL}


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


def test_what_is_limited_below_what_zstd_gives_is_compressed_from_the_start() -> None:
    slow, fast = Pace(12.5e6), Pace(2 * WORTHWHILE)
    carried(slow, 12.5e6, SAMPLES * 2, blocked=False)

    assert slow.level is not None
    assert fast.level is None


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
