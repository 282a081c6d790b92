"""What each benchmark brings: options, tables and how it is run; and options that many have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.harness import Row
from bench.results import Measure

UNITS = {"": 1, "MIB": 1, "M": 1, "GIB": 1024, "G": 1024}

Tell = Callable[[str], None]
"""Says what is done now."""


@dataclass(frozen=True)
class Found:
    """What one run gave; ``unavailable`` are those that could not take part, and why."""

    rows: Sequence[Row]
    versions: Mapping[str, str]
    settings: Mapping[str, int]
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark; ``measures`` says by the arguments which tables it may give."""

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Tell], Found]
    measures: Callable[[argparse.Namespace], Sequence[Measure]]


def add_runs(parser: argparse.ArgumentParser, default: int) -> None:
    """Add the option that every benchmark has."""
    parser.add_argument(
        "--runs", type=positive, default=default, metavar="N", help=f"default: {default}"
    )


def mebibytes(text: str) -> int:
    """Read a size such as 512MiB or 1GiB; without a unit it is in MiB."""
    match = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", text)
    if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512MiB")
    return int(match[1]) * UNITS[match[2].upper()]


def positive(text: str) -> int:
    """Read a number of runs."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs")
    return int(text)


def number(text: str) -> int:
    """Read a number of runs, which may be 0."""
    return 0 if text == "0" else positive(text)
