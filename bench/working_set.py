"""A benchmark: what a restore gains that brings first what was waited for the last time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.benchmark import Benchmark, Found, Tell, add_runs, mebibytes, positive
from bench.harness import BenchError, Episode, Sample, interleave
from bench.live import know
from bench.machine import warm
from bench.restores import STEP, complete
from bench.results import Column, Measure
from bench.snapshots import Server
from bench.standstill import Seconds, watched
from bench.subjects.pymigrate import Pymigrate
from bench.subjects.subject import NAME
from bench.writers import percentile
from pymigrate.checkpoint.working_set import FOLDER
from tests.lab import Client, Lab, images

IMAGE = "demo-redis"
ARCHIVE = Path("/srv/bench/redis.tar.zst")
WAYS = {
    "archive": ("restore", str(ARCHIVE)),
    "snapshot": ("snapshot", "restore", "latest"),
}
TURNS = ("first", "again")
WARM = 2  # times the Redis' data that the kernel has at hand when a turn begins
PATIENCE = 300.0  # seconds for a client to read everything


@dataclass(frozen=True)
class Reads:
    """What a client saw that read one value after the other; times are of time.monotonic.

    ``took`` are the seconds of each read.
    """

    first: float
    last: float
    took: Sequence[float]

    def values(self, began: float) -> dict[str, float]:
        """Return what is kept of it, of a restore that began at a time; all in seconds."""
        return {
            "seconds": self.first - began,
            "reads_seconds": self.last - began,
            "median_read_seconds": percentile(self.took, 50),
            "p99_read_seconds": percentile(self.took, 99),
            "worst_read_seconds": max(self.took),
        }


class Scene:
    """A Redis, kept in an archive and a snapshot, and a client that reads a part of it."""

    def __init__(self, lab: Lab, mib: int, count: int, stood: Seconds) -> None:
        self._lab = lab
        self._host = lab["alpha"]
        self._server = Server(mib)
        self._count = count
        self._stood = stood
        self._ours = Pymigrate(lab)
        self.versions: dict[str, str] = {}

    def prepare(self) -> None:
        """Fill a Redis, keep it, and end it."""
        image = images.bootstrap(IMAGE, ["redis-server"])
        images.lend(image, self._host)
        self.versions |= self._ours.versions()
        know(self._lab, self._ours.address, self._ours.mac)
        where = ("--ip", self._ours.address, "--mac", self._ours.mac)
        self._host.pymigrate("run", "-d", "--name", NAME, *where, IMAGE, *self._server.argv)
        self._client("redis-fill").close()
        redis = self._host.pymigrate("exec", NAME, "redis-server", "--version").stdout
        self.versions["redis"] = redis.partition("v=")[2].split()[0]
        self._host.sh(f"mkdir -p {ARCHIVE.parent}")
        self._host.pymigrate("snapshot", "create", NAME)
        self._host.pymigrate("checkpoint", NAME, "-o", ARCHIVE)
        self._ours.remove()

    def episodes(self, ways: Sequence[str]) -> Iterator[Episode]:
        """List who does what, in the order of a round: the second follows upon the first."""
        for way in ways:
            for turn in TURNS:
                act = partial(self._once, WAYS[way], forget=turn == "first")
                yield Episode("pymigrate", f"{way} {turn}", ("reads",), act)

    def _once(self, words: Sequence[str], *, forget: bool) -> Iterator[Sample]:
        if forget:
            self._host.sh(f"rm -rf {self._host.root / FOLDER}")
        before = self._hint()
        if (before is None) != forget:
            raise BenchError("the restore before noted nothing")
        warm(WARM * self._server.mib << 20)
        with ExitStack() as stack:
            stack.callback(self._ours.remove)
            client = stack.enter_context(self._client("redis-read", "--count", str(self._count)))
            client.order("read")
            began = time.monotonic()
            self._host.pymigrate(*words)
            ended = time.monotonic()
            told = client.answer(patience=PATIENCE)
            reads = Reads(told["first"], told["last"], told["took"])
            stood = self._stood(reads.first)
            whole = complete(self._host)
            values = {
                **reads.values(began),
                **stood,
                "command_seconds": ended - began,
                "all_seconds": whole - began,
                "faults": float(self._faults(before)),
            }
            self._verify()
        yield Sample("reads", values)

    def _hint(self) -> tuple[int, Path] | None:
        """Return which file the last restore has made, by inode and path; None if there is none."""
        for path in self._host.outside(self._host.root / FOLDER).glob("*.json"):
            return path.stat().st_ino, path
        return None

    def _faults(self, before: tuple[int, Path] | None) -> int:
        """Return how many pages were waited for, once that is noted. Raises BenchError."""
        deadline = time.monotonic() + PATIENCE
        while (now := self._hint()) is None or now == before:
            if time.monotonic() > deadline:
                raise BenchError("what was waited for is not noted")
            time.sleep(STEP)
        return int(json.loads(now[1].read_text())["faults"])

    def _verify(self) -> None:
        """Read all of it, and compare. Raises BenchError."""
        with self._client("redis-check") as checking:
            if checking.ready["damaged"]:
                raise BenchError(f"{checking.ready['damaged']} values are damaged")

    def _client(self, kind: str, *options: str) -> Client:
        words = ("--mib", str(self._server.mib), *options)
        return Client(self._lab.client, kind, self._ours.address, self._server.port, *words)


MEASURES = (
    Measure(
        "reads",
        "Restore of a Redis of which a part is read at once",
        (
            Column("seconds", "until it answers", compared=False),
            Column("reads_seconds", "until all is read", compared=False),
            Column("all_seconds", "until all is there", compared=False),
            Column("median_read_seconds", "median read", compared=False, unit="ms"),
            Column("p99_read_seconds", "p99", compared=False, unit="ms"),
            Column("worst_read_seconds", "worst", compared=False, unit="ms"),
            Column("standstill_seconds", "machine stood still", compared=False, unit="ms"),
            Column("faults", "waited for", compared=False, unit="count"),
        ),
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of this benchmark."""
    add_runs(parser, 5)
    parser.add_argument(
        "--size", type=mebibytes, default=1024, help="of the Redis' data (default: 1GiB)"
    )
    parser.add_argument(
        "--count", type=positive, default=2000, metavar="N", help="values read (default: 2000)"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=["archive"], help="default: archive"
    )


def run(arguments: argparse.Namespace, tell: Tell) -> Found:
    """Measure what is asked for."""
    unavailable: dict[str, str] = {}
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(("alpha", "beta")))
        stood = watched(stack, unavailable)
        scene = Scene(lab, arguments.size, arguments.count, stood)
        scene.prepare()
        rows = interleave([*scene.episodes(arguments.ways)], arguments.runs, tell=tell)
    settings = {
        "runs": arguments.runs,
        "memory_mib": arguments.size,
        "values_read": arguments.count,
    }
    return Found(rows, scene.versions, settings, unavailable)


BENCHMARK = Benchmark(
    "working-set",
    "restores of a Redis that is read at once, the first and the next",
    add_options,
    run,
    lambda _: MEASURES,
)
