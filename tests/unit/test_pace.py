"""How much is on its way, and when it is compressed."""

from __future__ import annotations

from pymigrate.migrate.pace import DELAY, LEAST, MOST, SAMPLES, WORTHWHILE, Pace

BATCH = 1 << 20


def carried(pace: Pace, rate: float, batches: int, *, blocked: bool) -> None:
    """Send batches over a link of a rate in bytes a second; each is taken before the next."""
    now = total = 0.0
    for _ in range(batches):
        pace.waits(blocked=blocked)
        pace.gone(BATCH)
        now += BATCH / rate
        total += BATCH
        pace.taken(int(total), now)


def test_nothing_more_is_sent_than_the_window_allows() -> None:
    pace = Pace()
    while pace.may_send:
        pace.gone(BATCH)

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
    carried(pace, 12.5e6, SAMPLES, blocked=True)
    carried(pace, 12.5e6, SAMPLES, blocked=False)

    assert pace.level is None


def test_a_target_that_claims_to_have_taken_more_than_was_sent_gains_nothing() -> None:
    pace = Pace()
    pace.gone(BATCH)
    pace.taken(1 << 60, 0.0)
    while pace.may_send:
        pace.gone(BATCH)

    assert not pace.may_send


def test_what_is_limited_below_what_zstd_gives_is_compressed_from_the_start() -> None:
    slow, fast = Pace(12.5e6), Pace(2 * WORTHWHILE)
    carried(slow, 12.5e6, SAMPLES * 2, blocked=False)

    assert slow.level is not None
    assert fast.level is None
