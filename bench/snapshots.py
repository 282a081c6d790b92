"""The second benchmark: snapshots of a Redis of which a little changes from one to the next."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.benchmark import Benchmark, Found, Tell, add_runs, mebibytes, number
from bench.harness import FAILURES, BenchError, Episode, Sample, interleave
from bench.results import Column, Measure
from bench.subjects.archivers import Archiver, Borg, Restic, Tar
from bench.subjects.podman import Podman
from bench.subjects.pymigrate import Pymigrate
from bench.subjects.subject import NAME, fresh
from bench.workload import Workload
from tests.lab import Client, Host, Lab, images

PORT = 6379
PAGE = 4096
PATIENCE = 300.0  # seconds for a client to change a Redis
IMAGES = Path("/srv/bench/images")  # CRIU's, unpacked, for those who keep directories
BACK = Path("/srv/bench/back")
PLAIN = Path("/srv/bench/plain.tar")
COPY = "copy"
COPY_ADDRESS = "10.88.0.12"
SUBJECTS = ("pymigrate", "podman", "tar", "restic", "borg")


@dataclass(frozen=True)
class Server(Workload):
    """A Redis that writes nothing to its disk by itself."""

    port: int = PORT

    @property
    def argv(self) -> list[str]:
        """The command, in an image that has redis-server."""
        return ["redis-server", "--bind", "*", "--protected-mode", "no", "--save", ""]

    def pages(self, percent: float) -> int:
        """Return how many pages a part of its data is."""
        return round(self.mib * (1 << 20) / PAGE * percent / 100)


class Filled:
    """A Redis with data, and the clients that change it and ask whether it is there."""

    def __init__(self, lab: Lab, address: str, server: Server, changed: int) -> None:
        self._lab = lab
        self._address = address
        self._server = server
        self._changed = changed
        self._changing: Client | None = None

    def fill(self) -> None:
        """Write all of the data."""
        self.client("redis-fill").close()

    def client(self, kind: str) -> Client:
        """Connect a client of this Redis."""
        mib = str(self._server.mib)
        return Client(self._lab.client, kind, self._address, PORT, "--mib", mib)

    def change(self, stack: ExitStack) -> None:
        """Change its pages, others each time; the client lives as long as the stack."""
        if self._changing is None:
            self._changing = stack.enter_context(self.client("redis-change"))
        self._changing.ask(str(self._changed), patience=PATIENCE)

    def disconnect(self) -> None:
        """Forget the client, for the Redis was replaced."""
        if self._changing is not None:
            self._changing.close()
            self._changing = None


class Scene:
    """The lab, a Redis of pymigrate's and one of podman's, and stores for the others.

    Only `peers` are beside pymigrate, whose images the archivers take.
    """

    def __init__(
        self, lab: Lab, mib: int, count: int, percent: float, peers: Collection[str] = SUBJECTS
    ) -> None:
        self.lab = lab
        self.server = Server(mib)
        self.count = count
        self.changed = self.server.pages(percent)
        self.unavailable: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._host: Host = lab["alpha"]
        self._ours = Pymigrate(lab)
        self._image = images.bootstrap("demo-redis", ["redis-server"])
        (layer,) = self._image.layers
        self._layer = self._host.root / "images" / "layers" / layer
        self._podman = Podman(lab, self._layer, tcp=True)
        self._kept: list[str] = []
        self._archivers: list[Archiver] = []
        self._wanted = peers
        self._peers: list[str] = []
        self._stack = ExitStack()
        self._here = Filled(lab, self._ours.address, self.server, self.changed)
        self._there = Filled(lab, self._podman.address, self.server, self.changed)

    def prepare(self, stack: ExitStack) -> None:
        """Start what is to be kept, and make every subject ready; who cannot is noted."""
        self._stack = stack
        for host in self.lab.hosts.values():
            images.lend(self._image, host)
        self.versions |= self._ours.versions()
        where = ("--ip", self._ours.address, "--mac", self._ours.mac)
        argv = (self._image.name, *self.server.argv)
        self._host.pymigrate("run", "-d", "--name", NAME, *where, *argv)
        self._here.fill()
        redis = self._host.pymigrate("exec", NAME, "redis-server", "--version").stdout
        self.versions["redis"] = redis.partition("v=")[2].split()[0]
        stack.callback(self._podman.close)
        if "podman" in self._wanted:
            try:
                self.versions |= self._podman.versions()
                self._podman.prepare()
                stack.callback(self._podman.remove)
                self._podman.launch(self.server)
                self._there.fill()
                self._peers.append("podman")
            except FAILURES as error:
                self.unavailable["podman"] = str(error)
        for archiver in (Tar(self._host), Restic(self._host), Borg(self._host)):
            if archiver.name not in self._wanted:
                continue
            try:
                self.versions |= archiver.versions()
                archiver.prepare()
                self._archivers.append(archiver)
            except FAILURES as error:
                self.unavailable[archiver.name] = str(error)

    def episodes(self) -> Iterator[Episode]:
        """List who does what, in the order of a round; the images are made by the first."""
        both = ("keep", "bring back")
        yield Episode("pymigrate", "snapshot", both, self._ours_once)
        if self._peers:
            yield Episode("podman", "export zstd", both, self._podman_once)
        for archiver in self._archivers:
            yield Episode(archiver.name, archiver.variant, both, partial(self._archive, archiver))

    def _ours_once(self) -> Iterator[Sample]:
        self._here.change(self._stack)
        with self._here.client("redis-ping") as pinging:
            pinging.ask("before")
            began = time.monotonic()
            made = self._host.pymigrate_json("snapshot", "create", NAME)
            seconds = time.monotonic() - began
            sample = self._kept_sample(seconds, made["new_bytes"], pinging)
            frozen = {"frozen_seconds": made["frozen_seconds"]}
            yield Sample(sample.measure, {**sample.values, **frozen})
        self._kept.append(made["id"])
        yield Sample("bring back", {"seconds": self._restore_copy(made["id"])})
        if self._archivers:
            self._lay_images_out()

    def _kept_sample(self, seconds: float, size: int, pinging: Client | None) -> Sample:
        values = {"seconds": seconds, "bytes": float(size)}
        values["ratio"] = size / (self.changed * PAGE)
        if pinging is not None:
            values["pause_seconds"] = float(pinging.ask("after")["longest_gap"])
            pinging.finish()
        return Sample("keep", values)

    def _restore_copy(self, identity: str) -> float:
        """Restore a snapshot beside the original; return the seconds until it answered."""
        words = ("snapshot", "restore", identity, "--name", COPY, "--ip", COPY_ADDRESS)
        copy = Filled(self.lab, COPY_ADDRESS, self.server, self.changed)
        with copy.client("redis-first") as asking:
            began = time.monotonic()
            self._host.pymigrate(*words)
            try:
                return float(asking.ask("it")["at"]) - began
            finally:
                self._host.pymigrate("rm", "-f", COPY)

    def _lay_images_out(self) -> None:
        """Put CRIU's images where those who keep directories find them; in nobody's time."""
        self._host.pymigrate("checkpoint", NAME, "-R", "--compress", "none", "-o", PLAIN)
        fresh(self._host, IMAGES)
        self._host.sh(f"tar -C {IMAGES} -xf {PLAIN}; rm {PLAIN}")

    def _podman_once(self) -> Iterator[Sample]:
        self._there.change(self._stack)
        with self._there.client("redis-ping") as pinging:
            pinging.ask("before")
            began = time.monotonic()
            size = self._podman.checkpoint("zstd")
            seconds = time.monotonic() - began
            yield self._kept_sample(seconds, size, pinging)
        self._there.disconnect()
        self._podman.remove()
        self._podman.wire()  # where connections were, a restored one finds its port in use
        with self._there.client("redis-first") as asking:
            began = time.monotonic()
            self._podman.restore()
            yield Sample("bring back", {"seconds": float(asking.ask("it")["at"]) - began})

    def _archive(self, archiver: Archiver) -> Iterator[Sample]:
        before = archiver.size()
        began = time.monotonic()
        archiver.keep(IMAGES)
        seconds = time.monotonic() - began
        yield self._kept_sample(seconds, archiver.size() - before, None)
        fresh(self._host, BACK)
        began = time.monotonic()
        archiver.bring_back(BACK)
        yield Sample("bring back", {"seconds": time.monotonic() - began})
        fresh(self._host, BACK)

    def many(self) -> Iterator[Episode]:
        """List what is done to a repository of many snapshots, once."""
        yield Episode("pymigrate", "", ("many",), self._many_once)

    def fill_up(self) -> None:
        """Make snapshots until there are as many as wanted, each after a change."""
        while len(self._kept) < self.count:
            self._here.change(self._stack)
            self._kept.append(self._host.pymigrate_json("snapshot", "create", NAME)["id"])

    def _many_once(self) -> Iterator[Sample]:
        values: dict[str, float] = {}
        began = time.monotonic()
        listed = self._host.pymigrate_json("snapshot", "ls")
        values["list_seconds"] = time.monotonic() - began
        if len(listed) != self.count:
            raise BenchError(f"{len(listed)} snapshots are listed, not {self.count}")
        for name, place in (("oldest", 0), ("middle", self.count // 2), ("newest", -1)):
            values[f"{name}_seconds"] = self._restore_copy(self._kept[place])
        rules = ("--keep-last", "10")
        told = self._prune("--dry-run", *rules)["freed_bytes"]
        before = self._size()
        began = time.monotonic()
        freed = self._prune(*rules)["freed_bytes"]
        values["prune_seconds"] = time.monotonic() - began
        values["told_bytes"], values["bytes"] = float(told), float(freed)
        values["measured_bytes"] = float(before - self._size())
        self._host.pymigrate("snapshot", "verify", "--data")
        yield Sample("many", values)

    def _prune(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = self._host.pymigrate_json("snapshot", "prune", *words)
        return found

    def _size(self) -> int:
        root = self._host.outside(self._host.root / "snapshots")
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


MEASURES = (
    Measure(
        "keep",
        "Keep it as it is, after some of its pages have changed",
        (
            Column("seconds", "wall"),
            Column("pause_seconds", "pause at the client"),
            Column("frozen_seconds", "frozen, it says", compared=False),
            Column("bytes", "new bytes"),
            Column("ratio", "new / changed", compared=False),
        ),
    ),
    Measure(
        "bring back",
        "Bring back what was kept last: Redis answers (pymigrate, podman), or its images are there",
        (Column("seconds", "wall"),),
    ),
    Measure(
        "many",
        "A repository of many snapshots",
        (
            Column("list_seconds", "list", compared=False),
            Column("oldest_seconds", "oldest answers", compared=False),
            Column("middle_seconds", "middle answers", compared=False),
            Column("newest_seconds", "newest answers", compared=False),
            Column("prune_seconds", "prune to 10", compared=False),
            Column("told_bytes", "dry run says", compared=False),
            Column("bytes", "prune says", compared=False),
            Column("measured_bytes", "disk says", compared=False),
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
        "--changed",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="of its pages before each snapshot (default: 1)",
    )
    parser.add_argument(
        "--count",
        type=number,
        default=100,
        metavar="N",
        help="of the snapshots that are listed, restored, pruned (default: 100; 0: none is)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SUBJECTS,
        default=SUBJECTS,
        help="measure these; pymigrate always (default: all)",
    )


def run(arguments: argparse.Namespace, tell: Tell) -> Found:
    """Measure what is asked for."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(("alpha", "beta")))
        wanted = (arguments.size, arguments.count, arguments.changed, arguments.only)
        scene = Scene(lab, *wanted)
        scene.prepare(stack)
        rows = interleave([*scene.episodes()], arguments.runs, tell=tell)
        if arguments.count:
            tell(f"up to {arguments.count} snapshots")
            scene.fill_up()
            rows += interleave([*scene.many()], 1, warm_up=False, tell=tell)
    settings = {
        "runs": arguments.runs,
        "memory_mib": arguments.size,
        "changed_pages": scene.changed,
        "count": arguments.count,
    }
    return Found(rows, scene.versions, settings, scene.unavailable)


BENCHMARK = Benchmark(
    "snapshots",
    "snapshots of a Redis, podman, tar, restic, borg",
    add_options,
    run,
    lambda _: MEASURES,
)
