"""When the machine itself stood still, so that a client's stall is not laid at somebody's door.

A virtual machine is not always run by its host: then nothing in it gets on, and a client sees a
stall that no program here has to do with. workloads/standstill.c watches for it. What is calculated
here is pure.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from bench import workload
from bench.harness import BenchError

PROGRAM = "standstill"
PATIENCE = 10.0  # seconds for any answer


@dataclass(frozen=True)
class Late:
    """A processor on which the first of all threads did not run when it should; time.monotonic."""

    processor: int
    begin: float
    end: float


def longest(late: Iterable[Late], processors: int, begin: float, end: float) -> float:
    """Return the longest time, in seconds, within which none of so many processors ran.

    Only what lies between two times counts. One processor alone may have been kept by the kernel,
    with interrupts or preemption off; all at once are the machine, mostly.
    """
    changes = []
    for each in late:
        first, last = max(each.begin, begin), min(each.end, end)
        if first < last:
            changes += [(first, 1), (last, -1)]
    most = since = 0.0
    kept = 0
    for when, change in sorted(changes):
        if kept == processors:
            most = max(most, when - since)
        kept += change
        since = when
    return most


def longest_of_one(late: Iterable[Late], begin: float, end: float) -> float:
    """Return the longest time within which some processor did not run."""
    within = (min(each.end, end) - max(each.begin, begin) for each in late)
    return max((0.0, *within))


def parse(lines: Sequence[str]) -> list[Late]:
    """Read what the program has said, but for its last line."""
    found = []
    for line in lines:
        _, processor, begin, end = line.split()
        found.append(Late(int(processor), int(begin) / 1e9, int(end) / 1e9))
    return found


Seconds = Callable[[float], dict[str, float]]
"""Says how long the machine stood still from a time (time.monotonic) until now."""


def watched(stack: ExitStack, unavailable: dict[str, str]) -> Seconds:
    """Watch as long as the stack; who cannot is noted, and then nothing is measured."""
    try:
        return stack.enter_context(closing(Standstill())).seconds
    except BenchError as error:
        unavailable[PROGRAM] = str(error)
        return lambda _: {}


class Standstill:
    """Watches this machine from its making until it is closed."""

    def __init__(self) -> None:
        """Start it. Raises BenchError where no real-time thread can be had."""
        self._late: list[Late] = []
        self._unread = b""
        with tempfile.TemporaryDirectory() as folder:
            workload.build(PROGRAM, Path(folder))
            self._process = subprocess.Popen(
                [Path(folder, PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
            )
        try:
            word, _, rest = self._line().partition(" ")
            if word != "ready":
                raise BenchError(f"nobody sees whether the machine stands still: {word} {rest}")
            self._processors = int(rest)
        except BaseException:
            self.close()
            raise

    def seconds(self, begin: float) -> dict[str, float]:
        """Return, as measured values, how long it stood still at most from a time until now.

        ``standstill_seconds`` of all processors at once, ``processor_seconds`` of any one.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(b"report\n")
        self._process.stdin.flush()
        lines = []
        while not (line := self._line()).startswith("end "):
            lines.append(line)
        if line != "end 0":
            raise BenchError(f"{line.split()[1]} times that a processor stood still were lost")
        self._late += parse(lines)
        until = time.monotonic()
        return {
            "standstill_seconds": longest(self._late, self._processors, begin, until),
            "processor_seconds": longest_of_one(self._late, begin, until),
        }

    def _line(self) -> str:
        said = self._process.stdout
        assert said is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._unread:
            readable, _, _ = select.select([said], [], [], max(0, deadline - time.monotonic()))
            data = os.read(said.fileno(), 1 << 16) if readable else b""
            if not data:
                raise BenchError(f"who watches the machine said only {self._unread.decode()!r}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """End it. May be repeated."""
        self._process.kill()
        with self._process:
            pass
