"""The first benchmark: start, checkpoint, restore and migration beside podman, runc and CRIU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench import workload
from bench.benchmark import Benchmark, Found, Tell, add_runs, mebibytes
from bench.harness import FAILURES, Episode, Sample, interleave
from bench.results import Column, Measure
from bench.subjects.criu import Criu
from bench.subjects.podman import Podman
from bench.subjects.pymigrate import Pymigrate
from bench.subjects.runc import Runc
from bench.subjects.subject import IMAGE, Subject
from bench.workload import Ticker, Workload
from tests.lab import Host, Lab, Place

TICKER = "/tmp/ticker"  # in the client's own /tmp
SETTLING = 0.3  # seconds of ticking between what is measured and what is reported


class Scene:
    """The lab with all subjects ready to act."""

    def __init__(self, lab: Lab, mib: int) -> None:
        self.lab = lab
        self.workload = Workload(mib)
        self.subjects: list[Subject] = []
        self.unavailable: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def prepare(self, stack: ExitStack) -> None:
        """Build the programs and make every subject ready; who cannot is noted."""
        for host in self.lab.hosts.values():
            workload.build_image(host, IMAGE)
        workload.build("ticker", self.lab.client.outside("/tmp"))
        for subject in (Pymigrate(self.lab), Podman(self.lab), Runc(self.lab), Criu(self.lab)):
            stack.callback(subject.close)
            try:
                self.versions |= subject.versions()
                subject.prepare()
            except FAILURES as error:
                self.unavailable[subject.name] = str(error)
                continue
            if subject.mac:
                # A blackout of seconds would make the client forget it, and cost one second more.
                self.lab.client.ip(
                    f"neighbour replace {subject.address} lladdr {subject.mac}"
                    " dev uplink nud permanent\n"
                )
            self.subjects.append(subject)

    def episodes(self) -> Iterator[Episode]:
        """List who does what, in the order of a round."""
        yield Episode("(harness)", "", ("start",), lambda: enter(self.lab["alpha"]))
        for subject in self.subjects:
            if subject.name != "criu":
                yield Episode(subject.name, "", ("start",), Start(subject).act)
        for subject in self.subjects:
            if subject.name != "criu":
                yield Episode(subject.name, "", ("exec",), Execution(subject).act)
        for subject in self.subjects:
            for form in subject.formats:
                act = Checkpoint(subject, form, self.workload, self.lab.client).act
                yield Episode(subject.name, form, ("checkpoint", "restore"), act)
        for subject in self.subjects:
            if subject.moving:
                act = Migration(subject, self.workload, self.lab.client).act
                yield Episode(subject.name, subject.moving, ("migration",), act)


def enter(host: Host) -> Iterator[Sample]:
    """Measure what the harness itself adds to every command: entering the lab's host."""
    began = time.monotonic()
    host.run(["true"])
    yield Sample("start", {"seconds": time.monotonic() - began})


class Start:
    """A container that does nothing, from nothing to nothing."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def act(self) -> Iterator[Sample]:
        """Measure it once."""
        began = time.monotonic()
        self._subject.start()
        yield Sample("start", {"seconds": time.monotonic() - began})


class Execution:
    """One more program in a container that runs a small workload."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def act(self) -> Iterator[Sample]:
        """Measure it once."""
        subject = self._subject
        with ExitStack() as stack:
            stack.callback(subject.remove)
            subject.launch(Workload(1))
            began = time.monotonic()
            subject.execute()
            yield Sample("exec", {"seconds": time.monotonic() - began})


class Checkpoint:
    """A checkpoint of the running workload, then a restore after it has been removed."""

    def __init__(self, subject: Subject, form: str, what: Workload, place: Place) -> None:
        self._subject = subject
        self._form = form
        self._workload = what
        self._place = place

    def act(self) -> Iterator[Sample]:
        """Measure both once."""
        subject = self._subject
        with ExitStack() as stack:
            stack.callback(subject.remove)
            ticker = stack.enter_context(
                Ticker(self._place, TICKER, subject.address, self._workload.port)
            )
            subject.launch(self._workload)
            ticker.watch()
            began = time.monotonic()
            size = subject.checkpoint(self._form)
            ended = time.monotonic()
            yield Sample(
                "checkpoint", {"seconds": ended - began, **pauses(ticker), "bytes": float(size)}
            )
            subject.remove()
            ticker.expect_answer()
            began = time.monotonic()
            subject.restore()
            ended = time.monotonic()
            answered = ticker.answered()
            ticker.verify()
            yield Sample("restore", {"seconds": answered - began, "command_seconds": ended - began})


class Migration:
    """A move of the running workload, from the command's first instant to its end."""

    def __init__(self, subject: Subject, what: Workload, place: Place) -> None:
        self._subject = subject
        self._workload = what
        self._place = place

    def act(self) -> Iterator[Sample]:
        """Measure it once."""
        subject = self._subject
        with ExitStack() as stack:
            stack.callback(subject.remove)
            ticker = stack.enter_context(
                Ticker(self._place, TICKER, subject.address, self._workload.port)
            )
            subject.launch(self._workload)
            ticker.watch()
            began = time.monotonic()
            subject.migrate()
            ended = time.monotonic()
            seen = pauses(ticker)
            ticker.verify()
            yield Sample("migration", {"seconds": ended - began, **seen})


def pauses(ticker: Ticker) -> dict[str, float]:
    """Return the longest gaps since `watch`, after some more ticking."""
    ticker.expect_answer()
    ticker.answered()
    time.sleep(SETTLING)
    seen = ticker.report()
    return {"pause_seconds": seen.longest_gap, "own_gap_seconds": seen.own_gap}


MEASURES = (
    Measure("start", "Start: run a program that ends at once", (Column("seconds", "wall"),)),
    Measure("exec", "Exec: the same in a container that runs", (Column("seconds", "wall"),)),
    Measure(
        "checkpoint",
        "Checkpoint, the workload runs on",
        (
            Column("seconds", "wall"),
            Column("pause_seconds", "pause at the client"),
            Column("own_gap_seconds", "pause inside", compared=False),
            Column("bytes", "size", compared=False),
        ),
    ),
    Measure(
        "restore",
        "Restore from that checkpoint",
        (
            Column("seconds", "until the workload answers"),
            Column("command_seconds", "until the command ends", compared=False),
        ),
    ),
    Measure(
        "migration",
        "Migration to another host",
        (
            Column("seconds", "whole move"),
            Column("pause_seconds", "blackout at the client"),
            Column("own_gap_seconds", "gap inside", compared=False),
        ),
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of this benchmark."""
    add_runs(parser, 5)
    parser.add_argument(
        "--size", type=mebibytes, default=512, help="of the workload's memory (default: 512MiB)"
    )
    names = [measure.name for measure in MEASURES]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="measure these (default: all)"
    )


def run(arguments: argparse.Namespace, tell: Tell) -> Found:
    """Measure what is asked for."""
    with ExitStack() as stack:
        scene = Scene(stack.enter_context(Lab(("alpha", "beta"))), arguments.size)
        scene.prepare(stack)
        rows = interleave(
            [each for each in scene.episodes() if {*each.measures} & {*arguments.only}],
            arguments.runs,
            tell=tell,
        )
    settings = {"runs": arguments.runs, "memory_mib": arguments.size}
    return Found(rows, scene.versions, settings, scene.unavailable)


BENCHMARK = Benchmark(
    "first", "start, exec, checkpoint, restore, migration", add_options, run, lambda _: MEASURES
)
