"""How options say amounts: bytes, bits a second, times."""

from __future__ import annotations

import re

from pymigrate.runtime.errors import UsageError
from pymigrate.transport.stream_count import MOST

NOTHING = "nothing was made"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg]bit)", re.IGNORECASE)
_RATES = {"kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}
_LEAST_RATE, _MOST_RATE = 64_000, 100 * 1000**3
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_TIMES = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_MOST_SECONDS = 86400


def size(text: str, option: str) -> int:
    """Read a number of bytes such as ``512m`` or ``1.5g``."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text}: not a size; {NOTHING}", hint="such as 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def bandwidth(text: str) -> int:
    """Read bits a second as tc(8) writes them: ``10mbit``, ``1.5gbit``, ``800kbit``."""
    match = _RATE.fullmatch(text)
    rate = int(float(match[1]) * _RATES[match[2].lower()]) if match else 0
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        raise UsageError(
            f"--bandwidth {text}: not a rate from 64kbit to 100gbit; {NOTHING}",
            hint="bits a second, such as 10mbit or 1.5gbit",
        )
    return rate


def stream_number(text: str) -> int:
    """Read how many connections memory is to take in turn."""
    found = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MOST)) else 0
    if not 1 <= found <= MOST:
        raise UsageError(
            f"--streams {text}: not a number from 1 to {MOST}; {NOTHING}",
            hint="half as many as the host has processors, or fewer",
        )
    return found


def seconds(text: str, option: str) -> float:
    """Read a time such as ``30s``, from a second to a day."""
    match = _TIME.fullmatch(text)
    found = float(match[1]) * _TIMES[match[2]] if match else 0.0
    if not 1 <= found <= _MOST_SECONDS:
        raise UsageError(
            f"{option} {text}: not a time from 1s to 24h; {NOTHING}", hint="such as 30s or 5m"
        )
    return found
