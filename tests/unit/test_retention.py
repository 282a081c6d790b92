"""Keep rules: what each of them promises, for any times."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate.retention import Policy, keep
from pymigrate.runtime.errors import UsageError

TIMES = st.lists(
    st.datetimes(datetime(2023, 12, 20), datetime(2026, 2, 1), timezones=st.just(UTC)),
    max_size=40,
)
POLICIES = st.builds(Policy, *[st.integers(0, 5)] * 6)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda time: time.strftime("%Y%m%d%H"),
    "daily": lambda time: time.strftime("%Y%m%d"),
    "weekly": lambda time: time.strftime("%G%V"),
    "monthly": lambda time: time.strftime("%Y%m"),
    "yearly": lambda time: time.strftime("%Y"),
}


def kept(times: list[datetime], policy: Policy) -> list[datetime]:
    return [time for time, why in zip(times, keep(times, policy), strict=True) if why]


@given(TIMES, POLICIES)
def test_newest_is_kept_by_every_rule(times: list[datetime], policy: Policy) -> None:
    reasons = keep(times, policy)

    assert len(times) == len(reasons)
    if times:
        newest = max(range(len(times)), key=lambda place: (times[place], place))
        rules = {name for name, count in policy.to_document().items() if count}
        assert (rules or {"all"}) == set(reasons[newest])


@given(TIMES, POLICIES)
def test_no_rule_keeps_more_than_its_number(times: list[datetime], policy: Policy) -> None:
    reasons = keep(times, policy)

    for name, count in policy.to_document().items():
        assert sum(name in why for why in reasons) <= count


@given(TIMES, st.sampled_from(sorted(PERIODS)), st.integers(1, 6))
def test_rule_keeps_the_newest_of_its_last_periods(
    times: list[datetime], name: str, count: int
) -> None:
    period = PERIODS[name]
    newest: dict[str, datetime] = {}
    for time in sorted(times):
        newest[period(time)] = time
    expected = set([newest[key] for key in sorted(newest, reverse=True)][:count])

    found = kept(times, Policy(**{name: count}))

    assert expected <= set(found)
    assert set(found) - expected <= {min(times, default=NOON)}  # the oldest, if numbers are left
    if len(newest) >= count:
        assert count == len(found)


@given(TIMES, POLICIES)
def test_order_in_which_snapshots_are_given_does_not_matter(
    times: list[datetime], policy: Policy
) -> None:
    assert sorted(kept(times, policy)) == sorted(kept(times[::-1], policy))


@given(TIMES, POLICIES)
def test_applying_rules_twice_forgets_nothing_that_any_rule_counts(
    times: list[datetime], policy: Policy
) -> None:
    once = kept(times, policy)

    assert set(once) >= set(kept(once, policy))
    assert max(once, default=None) == max(times, default=None)


@given(TIMES, POLICIES, st.sampled_from(["last", *PERIODS]))
def test_larger_number_keeps_no_less(times: list[datetime], policy: Policy, name: str) -> None:
    more = Policy(**{**policy.to_document(), name: policy.to_document()[name] + 1})

    if not policy.is_empty:
        assert set(kept(times, policy)) - {min(times, default=NOON)} <= set(kept(times, more))


def test_snapshots_every_ten_minutes_thin_out() -> None:
    times = [NOON - timedelta(minutes=10 * number) for number in range(6 * 24 * 3)]

    found = kept(times, Policy(last=3, hourly=4, daily=2))

    hours = ["2026-03-02T12:00", "2026-03-02T11:50", "2026-03-02T11:40"]
    hours += ["2026-03-02T10:50", "2026-03-02T09:50", "2026-03-01T23:50"]
    assert hours == [time.isoformat()[:16] for time in found]


def test_without_rules_everything_is_kept() -> None:
    assert [("all",)] == keep([NOON], Policy())


def test_rules_go_through_json() -> None:
    policy = Policy(last=1, yearly=9)

    assert policy == Policy.from_document(policy.to_document())
    with pytest.raises(UsageError):
        Policy(daily=-1)
