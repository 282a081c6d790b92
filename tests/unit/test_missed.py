"""Runs that cron never began: which times were due, and which of them nobody saw to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate.crontabs import parse
from pymigrate.migrate.missed import LOOKED_AT, due_after, due_before, missed

NOW = datetime(2026, 3, 10, 12, 0, 30, tzinfo=UTC)  # a Tuesday
LONG_AGO = NOW - timedelta(days=400)
TEN = parse("*/10 * * * *")
EXPRESSIONS = ("*/10 * * * *", "@hourly", "30 4 1,15 * 5", "0 22 * * 1-5", "5 0 29 2 *", "@weekly")


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}Z")


def minutes(*numbers: float) -> list[datetime]:
    """Return moments, so many minutes before a quarter to twelve o'clock's next hour."""
    return [at("03-10T12:00:00") - timedelta(minutes=number) for number in numbers]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/10 * * * *", ["03-10T12:00", "03-10T11:50", "03-10T11:40"]),
        ("30 4 1,15 * 5", ["03-06T04:30", "03-01T04:30", "02-27T04:30"]),  # either day counts
        ("0 22 * * 1-5", ["03-09T22:00", "03-06T22:00", "03-05T22:00"]),
        ("0 0 * * 7", ["03-08T00:00", "03-01T00:00", "02-22T00:00"]),
    ],
)
def test_times_are_those_of_cron(expression: str, expected: list[str]) -> None:
    found = list(islice(due_before(parse(expression), NOW, UTC), 3))

    assert [at(f"{text}:00") for text in expected] == found


def test_leap_days_are_found_and_impossible_ones_end() -> None:
    assert datetime(2024, 2, 29, 0, 5, tzinfo=UTC) == next(
        due_before(parse("5 0 29 2 *"), NOW, UTC)
    )
    assert datetime(2028, 2, 29, 0, 5, tzinfo=UTC) == due_after(parse("5 0 29 2 *"), NOW, UTC)
    assert [] == list(due_before(parse("0 0 30 2 *"), NOW, UTC))
    assert due_after(parse("0 0 30 2 *"), NOW, UTC) is None


@given(st.sampled_from(EXPRESSIONS), st.integers(0, 10**6))
def test_next_is_the_one_after_the_last(expression: str, shift: int) -> None:
    fields, moment = parse(expression), NOW + timedelta(minutes=shift)
    last = next(due_before(fields, moment, UTC))
    after = due_after(fields, moment, UTC)

    assert after is not None
    assert last <= moment < after
    assert after == due_after(fields, last, UTC)
    assert last == next(due_before(fields, after - timedelta(seconds=1), UTC))


@pytest.mark.parametrize("month", [3, 10])
def test_clocks_that_are_set_make_no_time_twice(month: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    now = datetime(2026, month, 31, tzinfo=UTC)
    hours = list(islice(due_before(parse("0 * * * *"), now, zone), 100))

    assert all(later > earlier for later, earlier in pairwise(hours))
    assert 100 == len(set(hours))


def test_nothing_is_missed_where_each_time_had_its_run() -> None:
    begun = [moment + timedelta(seconds=1) for moment in minutes(*range(0, 600, 10))]

    assert [] == missed(TEN, begun, minutes(595)[0], NOW, zone=UTC)


def test_times_without_a_run_are_missed() -> None:
    begun = minutes(60, 50, 20, 0)

    assert minutes(40, 30, 10) == missed(TEN, begun, minutes(65)[0], NOW, zone=UTC)


def test_what_was_due_before_the_schedule_is_not_missed() -> None:
    assert minutes(10) == missed(TEN, [], minutes(20)[0], NOW, zone=UTC)
    assert [] == missed(TEN, [], NOW, NOW, zone=UTC)


def test_what_may_still_begin_is_not_missed() -> None:
    assert minutes(20, 10) == missed(TEN, [], minutes(25)[0], NOW, zone=UTC)
    assert minutes(20) == missed(TEN, [], minutes(25)[0], NOW, jitter=600, zone=UTC)
    later = NOW + timedelta(seconds=31)
    assert minutes(20, 10, 0) == missed(TEN, [], minutes(25)[0], later, zone=UTC)


def test_runs_may_be_as_late_as_their_jitter() -> None:
    begun = minutes(25)  # of what was due 40 minutes before, or 30: nobody knows

    assert minutes(40, 20, 10) == missed(TEN, begun, minutes(45)[0], NOW, zone=UTC)
    assert minutes(20) == missed(TEN, begun, minutes(45)[0], NOW, jitter=900, zone=UTC)


def test_one_run_between_is_enough_also_by_hand() -> None:
    assert [] == missed(
        parse("@daily"), [at("03-10T07:11:00")], at("03-09T12:00:00"), NOW, zone=UTC
    )


def test_a_host_that_was_off_for_a_year_costs_no_long_list() -> None:
    assert LOOKED_AT >= len(missed(parse("* * * * *"), [], LONG_AGO, NOW, zone=UTC)) > 900


@given(st.lists(st.integers(0, 40), unique=True), st.floats(0, 25))
def test_each_time_is_missed_or_has_its_run(left_out: list[int], late: float) -> None:
    due = minutes(*range(400, 0, -10))
    gone = {due[number % len(due)] for number in left_out}
    begun = [moment + timedelta(seconds=late) for moment in due if moment not in gone]

    assert sorted(gone) == missed(
        TEN, begun, minutes(401)[0], due[-1] + timedelta(minutes=9), zone=UTC
    )
