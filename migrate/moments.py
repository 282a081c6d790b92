"""Moments as people give them: a time, or how long ago."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from decimal import Decimal

from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.log import timestamp

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_FRACTION = re.compile(r"(?<=:\d\d)\.(\d{1,9})(?!\d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since(text: str | None, now: float | None = None, option: str = "--since") -> str:
    """Return a moment as the log writes it, "" (before everything) for None.

    A time without a zone is the host's own; a bare number is seconds since 1970.

    Raises:
        UsageError: it is neither.

    """
    if text is None:
        return ""
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            moment = int(((time.time() if now is None else now) - _seconds(ago)) * 1e9)
        elif text.replace(".", "", 1).isdigit():
            moment = int(Decimal(text) * 10**9)
        else:
            moment = _nanoseconds(text)
        return timestamp(max(moment, 0))
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"{option} {text}: not a time", hint="such as 2026-01-02T03:04:05Z, or 10m for ago"
        ) from error


def _seconds(ago: re.Match[str]) -> float:
    return float(ago[1]) * _SECONDS[ago[2]]


def _nanoseconds(text: str) -> int:
    """Read ISO 8601 exactly: a datetime has microseconds, and our log nanoseconds."""
    fraction = _FRACTION.search(text)
    whole = datetime.fromisoformat(_FRACTION.sub("", text)).astimezone(UTC)
    seconds = round(whole.replace(microsecond=0).timestamp())
    rest = int(fraction[1].ljust(9, "0")) if fraction else whole.microsecond * 1000
    return seconds * 10**9 + rest


def milliseconds_until(moment: str) -> int:
    """Return how long it is until a moment as `since` returns it; 0 if it has passed."""
    return max(-(-(_nanoseconds(moment) - time.time_ns()) // 1_000_000), 0)
