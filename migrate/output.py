"""What reaches the terminal: results on stdout, progress and errors on stderr; the only prints."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence

from pymigrate.runtime.errors import PymigrateError

# Control characters but the line feed and the tab, and what is no character at all.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def emit(document: object) -> None:
    """Print one JSON document; for events, one object a line."""
    json.dump(document, sys.stdout, ensure_ascii=False, separators=(", ", ": "))
    sys.stdout.write("\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Print a line of a result for people."""
    sys.stdout.write(shown(text) + "\n")


def shown(text: str) -> str:
    """Replace what would steer a terminal or cannot be written: names of files may hold it."""
    return _STEERING.sub("\ufffd", text)


def flush() -> None:
    """Let the reader have what was printed."""
    sys.stdout.flush()


def progress(text: str, arguments: argparse.Namespace) -> None:
    """Print a line of progress to stderr, unless ``-q`` or ``--json``."""
    if not (arguments.quiet or arguments.json):
        sys.stderr.write(shown(text) + "\n")
        sys.stderr.flush()


def event(document: object, arguments: argparse.Namespace) -> None:
    """Print what happens as a line of JSON to stderr, unless ``-q``; the result is on stdout."""
    if not arguments.quiet:
        sys.stderr.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stderr.flush()


def complain(error: PymigrateError) -> None:
    """Print an error: what failed and what state things are in, then what to do."""
    sys.stderr.write(shown(f"pymigrate: {error.message}\n"))
    if error.hint:
        sys.stderr.write(shown(f"hint: {error.hint}\n"))
    for note in getattr(error, "__notes__", ()):
        sys.stderr.write(shown(f"note: {note}\n"))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, each as wide as its widest cell; no lines around, so that it can be cut."""
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    for row in (headers, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        say("  ".join(cells).rstrip())


def add_skip(parser: argparse.ArgumentParser) -> None:
    """Add ``--skip``."""
    parser.add_argument(
        "--skip",
        metavar="CHECK[,CHECK]",
        default="",
        help="go on in spite of these findings; check and --dry-run name them",
    )


def skipped(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the names that were given to ``--skip``."""
    return tuple(name for name in arguments.skip.split(",") if name)


def size(count: float) -> str:
    """Write a number of bytes with a binary unit: ``64.0 MiB``."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Write a time as people say it: ``84 ms``, ``2.4 s``, ``3 min 5 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
