"""Watch moves from a thread of our own, and show how far they have come."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from pymigrate.migrate import output
from pymigrate.migrate.progress import Gauge, Progress
from pymigrate.migrate.report import Report

if TYPE_CHECKING:
    from rich.progress import TaskID

LIVE, EVENTS, LINES = 0.2, 1.0, 3.0  # seconds between two looks


class Watch:
    """Looks at moves every few seconds, and once more in the end; for a ``with``."""

    def __init__(
        self, reports: Sequence[Report], show: Callable[[Progress], None], interval: float
    ) -> None:
        """Show the progress of each; ``show`` is called in a thread of ours, in the end here."""
        self._watched = [(report, Gauge(report.name)) for report in reports]
        self._show = show
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> None:
        """Begin."""
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Look a last time."""
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._look()

    def _look(self) -> None:
        for report, gauge in self._watched:
            if report.counters is not None:
                counted = report.counters()
                self._show(gauge.take(time.monotonic(), report.towards.label, counted))


@contextlib.contextmanager
def watched(reports: Sequence[Report], arguments: argparse.Namespace) -> Iterator[None]:
    """Show the moves' progress on stderr: a bar on a terminal, lines or JSON events elsewhere."""
    if arguments.quiet:
        yield
    elif arguments.json:
        with Watch(reports, lambda seen: output.event(seen.to_document(), arguments), EVENTS):
            yield
    elif sys.stderr.isatty():
        with _bars(reports):
            yield
    else:
        with Watch(reports, lambda seen: output.progress(line(seen), arguments), LINES):
            yield


@contextlib.contextmanager
def _bars(reports: Sequence[Report]) -> Iterator[None]:
    """Show a bar for each move; what else is written to stderr goes above them."""
    from rich.console import Console  # rich takes 60 ms to load
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[seen]}"))
    # On a terminal of its own, so that what it redirects does not come back to it.
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {
            each.name: bars.add_task(each.name, total=None, seen="") for each in reports
        }

        def show(seen: Progress) -> None:
            part = seen.part
            bars.update(
                tasks[seen.name],
                total=None if part is None else 1.0,
                completed=part or 0.0,
                seen=told(seen),
            )

        with Watch(reports, show, LIVE):
            yield


def told(seen: Progress) -> str:
    """Say it: ``memory 3.1 GiB of 4.0 GiB, 2.0 GiB sent, 110.0 MiB/s, 8.2 s left``."""
    words = [f"{output.size(seen.counted.sent)} sent, {output.size(seen.rate)}/s"]
    if seen.part is not None:
        words.insert(
            0, f"memory {output.size(seen.counted.looked)} of {output.size(seen.counted.memory)}"
        )
    if seen.left is not None:
        words.append(f"{output.duration(seen.left)} left")
    return ", ".join(words)


def line(seen: Progress) -> str:
    """Say it in a line of its own."""
    return f"{seen.name}: {told(seen)}"
