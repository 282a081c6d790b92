"""Runs of a schedule that never began: when they were due, and that no run is known of them. Pure.

Cron tells nobody what it did not start: the host was off, the daemon did not run, or the line was
taken out. A run that was killed leaves no line either. So times that were due are compared with
the runs that are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from pymigrate.migrate.crontabs import Fields

LOOKED_AT = 1000  # of the times that were due, the last
SLACK = timedelta(seconds=30)  # between a minute and the start of what cron starts in it
_YEARS = timedelta(days=366 * 9)  # the longest time between two 29ths of February, and one more


def due_before(fields: Fields, moment: datetime, zone: tzinfo | None = None) -> Iterator[datetime]:
    """Yield when cron was to run, the latest first, in UTC; ``zone``: not the host's own."""
    day = _local(moment, zone).date()
    oldest = day - _YEARS
    while day >= oldest:
        if _is_on(fields, day):
            for due in reversed(_times(fields, day, zone)):
                if due <= moment:
                    yield due
        day -= timedelta(days=1)


def due_after(fields: Fields, moment: datetime, zone: tzinfo | None = None) -> datetime | None:
    """Say when cron is to run next; None for what is no date, such as a 30th of February."""
    day = _local(moment, zone).date()
    latest = day + _YEARS
    while day <= latest:
        if _is_on(fields, day):
            for due in _times(fields, day, zone):
                if due > moment:
                    return due
        day += timedelta(days=1)
    return None


def missed(
    fields: Fields,
    begun: Sequence[datetime],
    since: datetime,
    now: datetime,
    *,
    jitter: int = 0,
    zone: tzinfo | None = None,
) -> list[datetime]:
    """Say which times were due after ``since`` and had no run; ``begun`` is when runs began.

    What is due so lately that its run may still be about to begin is not among them.
    """
    late = timedelta(seconds=jitter) + SLACK
    starts = sorted(begun)
    following = now + late
    found: list[datetime] = []
    place = len(starts)
    for number, due in enumerate(due_before(fields, now, zone)):
        if number == LOOKED_AT or due <= since:
            break
        # A run belongs to a time if it began before the next one, or as late as it may.
        end = max(following - SLACK, due + late)
        while place and starts[place - 1] >= due - SLACK:
            place -= 1
        if due + late < now and not any(start < end for start in starts[place : place + 1]):
            found.append(due)
        following = due
    return found[::-1]


def _local(moment: datetime, zone: tzinfo | None) -> datetime:
    return moment.astimezone(zone)


def _is_on(fields: Fields, day: date) -> bool:
    if day.month not in fields.months:
        return False
    in_month = day.day in fields.days
    in_week = day.isoweekday() % 7 in fields.weekdays
    return in_month or in_week if fields.either_day else in_month and in_week


def _times(fields: Fields, day: date, zone: tzinfo | None) -> list[datetime]:
    """Return the times of a day in UTC; what the clocks leave out in spring is one hour later."""
    clock = (time(hour, minute) for hour in fields.hours for minute in fields.minutes)
    local = (datetime.combine(day, one, zone) for one in clock)
    return sorted({one.astimezone(UTC) for one in local})
