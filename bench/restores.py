"""The third benchmark: how soon a restored program answers, and when all of its memory is there."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.benchmark import Benchmark, Found, Tell, add_runs, mebibytes
from bench.first import TICKER, Scene
from bench.harness import BenchError, Episode, Sample, interleave
from bench.results import Column, Measure
from bench.standstill import Seconds, watched
from bench.subjects.pymigrate import Pymigrate
from bench.subjects.subject import NAME, Subject
from bench.usage import Usage, used
from bench.workload import PATIENCE, Ticker, Workload
from tests.lab import Host, Lab

ARCHIVE = Path("/srv/bench/pymigrate/restores.tar.zst")
WAYS = ("archive-lazy", "archive-eager", "snapshot-lazy", "snapshot-eager")
STEP = 0.002  # seconds between two looks at whether all is there


@dataclass(frozen=True)
class _Source:
    """Where it comes from: the words that restore it, and what makes it."""

    name: str
    restore: tuple[str, ...]
    keep: Callable[[], object]


def complete(host: Host) -> float:
    """Wait until all memory of the container is there; returns when that was (time.monotonic).

    Raises:
        BenchError: it does not come.

    """
    left = host.outside(host.root / "containers" / NAME / "criu/pager.jsonl")
    deadline = time.monotonic() + PATIENCE
    while left.exists():
        if time.monotonic() > deadline:
            raise BenchError(f"not all memory was there after {PATIENCE:.0f} s")
        time.sleep(STEP)
    return time.monotonic()


class Restores:
    """Restores of one size, from archives and snapshots, lazy and eager, and those of the others.

    What is restored is made anew each time, and not measured.
    """

    def __init__(self, scene: Scene, mib: int, stood: Seconds, ways: Sequence[str] = WAYS) -> None:
        self._scene = scene
        self._stood = stood
        self._ways = ways
        self._workload = Workload(mib)
        self._host = scene.lab["alpha"]

    def episodes(self) -> Iterator[Episode]:
        """List who does what, in the order of a round."""
        for subject in self._scene.subjects:
            if isinstance(subject, Pymigrate):
                for source in (self._archive(), self._snapshot()):
                    for how in ("lazy", "eager"):
                        if f"{source.name}-{how}" not in self._ways:
                            continue
                        words = () if how == "lazy" else ("--eager",)
                        bring = partial(self._host.pymigrate, *source.restore, *words)
                        yield self._episode(subject, f"{source.name} {how}", source.keep, bring)
            elif subject.name != "criu":
                form = subject.formats[0]
                keep = partial(subject.checkpoint, form)
                yield self._episode(subject, form, keep, subject.restore)

    def _archive(self) -> _Source:
        def keep() -> None:
            self._host.sh(f"mkdir -p {ARCHIVE.parent}")
            self._host.pymigrate("checkpoint", NAME, "-o", ARCHIVE)

        return _Source("archive", ("restore", str(ARCHIVE)), keep)

    def _snapshot(self) -> _Source:
        keep = partial(self._host.pymigrate, "snapshot", "create", NAME)
        return _Source("snapshot", ("snapshot", "restore", "latest"), keep)

    def _episode(
        self,
        subject: Subject,
        variant: str,
        keep: Callable[[], object],
        bring: Callable[[], object],
    ) -> Episode:
        act = partial(self._once, subject, keep, bring)
        return Episode(
            subject.name, f"{self._workload.mib} MiB {variant}", ("keeping", "restores"), act
        )

    def _once(
        self, subject: Subject, keep: Callable[[], object], bring: Callable[[], object]
    ) -> Iterator[Sample]:
        with ExitStack() as stack:
            stack.callback(self._clean)
            stack.callback(subject.remove)
            place = self._scene.lab.client
            ticker = stack.enter_context(
                Ticker(place, TICKER, subject.address, self._workload.port)
            )
            subject.launch(self._workload)
            ticker.watch()
            with used(self._host) as keeping:
                keep()
            yield Sample("keeping", self._use(keeping))
            subject.remove()
            with used(self._host) as bringing:
                ticker.expect_answer()
                began = time.monotonic()
                bring()
                ended = time.monotonic()
                answered = ticker.answered()
                ticker.watch()
                ours = subject.name == "pymigrate"
                whole = complete(self._host) if ours else max(answered, ended)
            stall = ticker.report().longest_gap
            stood = self._stood(answered)
            ticker.verify()
            yield Sample(
                "restores",
                {
                    "seconds": answered - began,
                    "command_seconds": ended - began,
                    "all_seconds": whole - began,
                    "stall_seconds": stall,
                    **stood,
                    **self._use(bringing),
                },
            )

    def _use(self, usage: Usage) -> dict[str, float]:
        """Return what the tools used; CPU seconds per 10⁹ bytes of the program's memory."""
        return {
            "cpu_seconds": usage.seconds * 1e9 / (self._workload.mib << 20),
            "peak_bytes": float(usage.peak),
            "own_bytes": float(usage.anonymous),
        }

    def _clean(self) -> None:
        self._host.sh(f"rm -rf {ARCHIVE} {self._host.root}/snapshots")


_USE = (
    Column("cpu_seconds", "CPU per GB", compared=False),
    Column("peak_bytes", "memory", compared=False),
    Column("own_bytes", "anonymous", compared=False),
)

MEASURES = (
    Measure(
        "restores",
        "Restore of a program with so much memory",
        (
            Column("seconds", "until it answers"),
            Column("all_seconds", "until all is there", compared=False),
            Column("stall_seconds", "worst stall between", compared=False),
            Column("standstill_seconds", "machine stood still", compared=False),
            Column("command_seconds", "until the command ends", compared=False),
            *_USE,
        ),
    ),
    Measure(
        "keeping",
        "Keeping it before: a checkpoint that ends it, a snapshot that lets it run",
        _USE,
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of this benchmark."""
    add_runs(parser, 5)
    parser.add_argument(
        "--sizes",
        type=mebibytes,
        nargs="+",
        default=[64, 1024, 4096],
        help="of the workload's memory (default: 64MiB 1GiB 4GiB)",
    )
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS, help="of ours (default: all)"
    )
    names = ["pymigrate", "podman", "runc"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)


def run(arguments: argparse.Namespace, tell: Tell) -> Found:
    """Measure what is asked for."""
    with ExitStack() as stack:
        scene = Scene(stack.enter_context(Lab(("alpha", "beta"))), max(arguments.sizes))
        scene.prepare(stack)
        stood = watched(stack, scene.unavailable)
        episodes = [
            each
            for mib in arguments.sizes
            for each in Restores(scene, mib, stood, arguments.ways).episodes()
            if each.subject in arguments.only
        ]
        rows = interleave(episodes, arguments.runs, tell=tell)
    settings = {"runs": arguments.runs, "memory_mib": max(arguments.sizes)}
    return Found(rows, scene.versions, settings, scene.unavailable)


BENCHMARK = Benchmark(
    "restores", "how soon a restored program answers", add_options, run, lambda _: MEASURES
)
