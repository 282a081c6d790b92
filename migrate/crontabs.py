"""Root's crontab: one marked line for each schedule; what others wrote there stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from crontab import CronItem, CronRange, CronSlice, CronSlices, CronTab

from pymigrate.runtime.errors import HostError, MissingFeature, UsageError

_MARK = "pymigrate schedule"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def mark(host_id: str, name: str) -> str:
    """Return the comment that tells our line for this host and container from all others."""
    return f"{_MARK} {host_id} {name}"


def check(expression: str) -> str:
    """Return a cron expression with single blanks; raises UsageError for what is none."""
    clean = " ".join(expression.split())
    if not CronSlices.is_valid(clean):
        raise UsageError(
            f"{expression!r} is no cron expression; nothing was changed",
            hint='five fields, as "*/10 * * * *", or @hourly, @daily, @weekly, @monthly; '
            "see crontab(5)",
        )
    return clean


@dataclass(frozen=True)
class Fields:
    """An expression as the values that each field allows, sorted; Sunday is 0.

    ``either_day``: neither field of days begins with a star, so that cron runs on either.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    either_day: bool


def parse(expression: str) -> Fields:
    """Read an expression that `check` has let pass; raises UsageError for @reboot."""
    slices = CronSlices(expression)
    if str(slices.special) == "@reboot":
        raise UsageError("a timer cannot stand for @reboot; nothing was changed", hint="@daily")
    texts = str(slices.clean_render()).split()
    minutes, hours, days, months, weekdays = (_values(one) for one in slices)
    return Fields(
        minutes,
        hours,
        days,
        months,
        tuple(sorted({day % 7 for day in weekdays})),
        not (texts[2].startswith("*") or texts[4].startswith("*")),
    )


def _values(field: CronSlice) -> tuple[int, ...]:
    found: set[int] = set()
    for part in field.parts:
        found |= set(part.range()) if isinstance(part, CronRange) else {int(part)}
    return tuple(sorted(found))


def command(argv: Sequence[str]) -> str:
    """Write a command for crontab(5): its PATH is short, and an open % would end the line."""
    from shlex import join

    if any("\n" in word for word in argv):
        raise UsageError("a line of a crontab cannot hold a line break; nothing was changed")
    return f"PATH={_PATH} {join(argv)}".replace("%", r"\%")


def is_there() -> bool:
    """Say whether this host has a cron."""
    return shutil.which("crontab", path=_PATH) is not None


def open_own() -> CronTab:
    """Read root's crontab, by crontab(1).

    Raises:
        MissingFeature: there is no cron on this host.
        HostError: it cannot be read.

    """
    if not is_there():
        raise MissingFeature(
            "there is no cron on this host; nothing was changed", hint="apt-get install cron"
        )
    try:
        return CronTab(user=True)
    except OSError as error:
        raise HostError(f"root's crontab cannot be read: {error}; nothing was changed") from error


def install(table: CronTab, marker: str, expression: str, line: str) -> bool:
    """Have exactly one line with the marker, as given; False: it was there already."""
    found = _marked(table, marker)
    wanted = (str(CronSlices(expression)), line)  # it writes "0 * * * *" as @hourly
    is_same = len(found) == 1 and (str(found[0].slices), found[0].command) == wanted
    if is_same and found[0].is_enabled():
        return False
    for item in found:
        table.remove(item)
    fresh = table.new(command=line, comment=marker)
    fresh.setall(expression)
    return True


def uninstall(table: CronTab, marker: str) -> bool:
    """Have no line with the marker; False: there was none."""
    found = _marked(table, marker)
    for item in found:
        table.remove(item)
    return bool(found)


def is_installed(table: CronTab, marker: str) -> bool:
    """Say whether the line is there, and not commented out."""
    return any(item.is_enabled() for item in _marked(table, marker))


def write(table: CronTab) -> None:
    """Put the table in place, by crontab(1); raises HostError."""
    try:
        table.write()
    except OSError as error:
        raise HostError(
            f"root's crontab cannot be written: {error}; it is as it was", hint="crontab -e"
        ) from error


def _marked(table: CronTab, marker: str) -> list[CronItem]:
    return [item for item in table if item.comment == marker]
