"""The fourth benchmark: a Redis that is written to moves, in every mode, beside what others do."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from bench import wire, workload, writers
from bench.benchmark import Benchmark, Found, Tell, add_runs, mebibytes, number
from bench.harness import FAILURES, BenchError, Episode, Sample, interleave
from bench.results import Column, Measure
from bench.snapshots import Server
from bench.subjects.lazy_pages import LazyPages
from bench.subjects.podman import Podman
from bench.subjects.runc import Runc
from bench.workload import Workload
from bench.writers import CONNECTIONS, RATE, Writers
from tests.lab import Client, Host, Lab, images

WARMING = 4  # of our moves, before what is counted
MODES = ("stop", "pre", "post", "hybrid")
BEFORE = 1.0  # seconds of writing before a move, with which its rounds are compared
AFTER = 0.5  # seconds of writing after it
IMAGE = "demo-redis"
OTHERS = (Podman.name, Runc.name, LazyPages.name)


@dataclass(frozen=True)
class Link:
    """The line between the hosts: bits a second, and a delay per direction in microseconds."""

    name: str
    rate: int = 0
    delay: int = 0

    @contextmanager
    def laid(self, lab: Lab) -> Iterator[None]:
        """Have the lab's hosts send by such a line while the block runs."""
        with ExitStack() as stack:
            if self.delay:
                stack.enter_context(wire.wired(lab, self.rate, self.delay))
            elif self.rate:
                lab.shape(rate=f"{self.rate}bit")
                stack.callback(lab.shape)
            yield


UNLIMITED = Link("unlimited")
GIGABIT = Link("1gbit", 10**9)
LINKS = {each.name: each for each in (UNLIMITED, GIGABIT, Link("1gbit+1ms", 10**9, 1000))}


class Mover(Protocol):
    """What the others have in common; see subjects/subject.py for what each method does."""

    name: str
    moving: str
    address: str
    mac: str

    def versions(self) -> dict[str, str]:
        """Return the version of each program that takes part."""

    def prepare(self) -> None:
        """Give it the image, on both hosts."""

    def launch(self, workload: Workload) -> None:
        """Start the workload on the first host."""

    def migrate(self) -> None:
        """Move it to the second."""

    def remove(self) -> None:
        """End it wherever it is. May be repeated."""

    def close(self) -> None:
        """Undo `prepare` where it reaches beyond the lab."""


def measure(mib: int, link: Link) -> str:
    """Name the table of a size and a link."""
    return f"{mib} MiB, {link.name}"


class Live:
    """The lab, with everybody ready to move a Redis."""

    def __init__(
        self,
        lab: Lab,
        sizes: Sequence[int],
        links: Sequence[Link],
        modes: Sequence[str] = MODES,
        others: Sequence[str] = OTHERS,
    ) -> None:
        self.lab = lab
        self.wanted = others
        self.modes = modes
        self.sizes = sizes
        self.links = links
        self.unavailable: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._image = images.bootstrap(IMAGE, ["redis-server"])
        (layer,) = self._image.layers
        self._layer = lab["alpha"].root / "images" / "layers" / layer
        self._ours = [Ours(lab, f"10.88.0.{number}", mib) for number, mib in enumerate(sizes, 20)]
        self._others: list[Mover] = []

    def prepare(self, stack: ExitStack) -> None:
        """Build the client and make every subject ready; who cannot is noted."""
        workload.build("writers", self.lab.client.outside("/tmp"))
        wire.lay(self.lab)
        for host in self.lab.hosts.values():
            images.lend(self._image, host)
        told = self.lab["alpha"].pymigrate_json("version")
        self.versions["pymigrate"] = told["pymigrate"]
        others: tuple[Mover, ...] = (
            Podman(self.lab, self._layer, tcp=True),
            Runc(self.lab, self._layer, tcp=True),
            LazyPages(self.lab, self._layer),
        )
        for other in others:
            if other.name not in self.wanted:
                continue
            stack.callback(other.close)
            try:
                self.versions |= other.versions()
                other.prepare()
            except FAILURES as error:
                self.unavailable[other.name] = str(error)
                continue
            know(self.lab, other.address, other.mac)
            self._others.append(other)

    def ours(self) -> Iterator[Episode]:
        """List our moves, in the order of a round; the first few warm the machine up."""
        for ours in self._ours:
            for link in self.links:
                for mode in self.modes:
                    act = partial(self._once, ours.mib, link, ours, partial(ours.move, mode))
                    yield Episode("pymigrate", mode, (measure(ours.mib, link),), act)

    def others(self) -> Iterator[Episode]:
        """List the moves of the others, over the first link: a slower one is slower for all."""
        link = self.links[0]
        for mib in self.sizes:
            for other in self._others:
                act = partial(self._other_once, mib, link, other)
                yield Episode(other.name, other.moving, (measure(mib, link),), act)

    def _other_once(self, mib: int, link: Link, other: Mover) -> Iterator[Sample]:
        with ExitStack() as stack:
            stack.callback(other.remove)
            other.launch(Server(mib))
            fill(self.lab, other.address, mib)
            yield from self._once(mib, link, Place(other.address, self.lab["alpha"]), other.migrate)

    def _once(
        self, mib: int, link: Link, place: Placed, move: Callable[[], object]
    ) -> Iterator[Sample]:
        """Move it once, with the writers at work."""
        place.settle()
        port = Server(mib).port
        with ExitStack() as stack:
            clients = stack.enter_context(Writers(self.lab.client, place.address, port, mib))
            stack.enter_context(link.laid(self.lab))
            time.sleep(BEFORE)
            sent = sent_by(place.host)
            source = place.host
            began = time.monotonic()
            move()
            ended = time.monotonic()
            size = sent_by(source) - sent
            clients.await_answers(ended)
            time.sleep(AFTER)
            clients.look()
            found = writers.seen(clients.answers, began)
            values = {
                "seconds": ended - began,
                "pause_seconds": found.blackout,
                "stall_seconds": found.stall,
                "before_seconds": found.p99_before,
                "rounds_seconds": found.p99_rounds,
                "bytes": float(size),
                "lost": float(clients.lost()),
                "dropped": float(clients.dropped),
            }
        yield Sample(measure(mib, link), values)


class Placed(Protocol):
    """A Redis: its address, and the host that it is on."""

    address: str

    @property
    def host(self) -> Host:
        """Where it is now."""

    def settle(self) -> None:
        """Let it run and be full, if it is not."""


@dataclass
class Place:
    """A Redis of another subject's, which has just been started and filled."""

    address: str
    host: Host

    def settle(self) -> None:
        """Do nothing."""


class Ours:
    """A Redis of one size in a container of ours, which moves back and forth."""

    def __init__(self, lab: Lab, address: str, mib: int) -> None:
        self.address = address
        self.mib = mib
        self._lab = lab
        self._name = f"redis-{mib}"
        self._at = ""

    @property
    def host(self) -> Host:
        """Where it is now."""
        return self._lab[self._at]

    def settle(self) -> None:
        """Start and fill it the first time, and after a move that failed."""
        if self._at:
            return
        for host in self._lab.hosts.values():
            if self._name in host.pymigrate("ps", "-a").stdout.split():
                host.pymigrate("rm", "-f", self._name)
        self._at = "alpha"
        mac = "02:88:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))
        where = ("--ip", self.address, "--mac", mac)
        argv = (IMAGE, *Server(self.mib).argv)
        self.host.pymigrate("run", "-d", "--name", self._name, *where, *argv)
        know(self._lab, self.address, mac)
        fill(self._lab, self.address, self.mib)

    def move(self, mode: str) -> None:
        """Move it to the host on which it is not."""
        source = self.host
        target = next(host for host in self._lab.hosts.values() if host is not source)
        self._at = ""
        words = ("migrate", self._name, target.ssh_destination, "--mode", mode)
        moved = source.pymigrate_json(*words)
        if moved["mode"] != mode:
            raise BenchError(f"it moved in mode {moved['mode']}, not {mode}")
        self._at = target.name


def fill(lab: Lab, address: str, mib: int) -> None:
    """Fill a Redis, waiting for it to be up."""
    Client(lab.client, "redis-fill", address, Server(mib).port, "--mib", str(mib)).close()


def know(lab: Lab, address: str, mac: str) -> None:
    """Let the client remember a MAC address: a blackout of seconds would make it forget."""
    lab.client.ip(f"neighbour replace {address} lladdr {mac} dev uplink nud permanent\n")


def sent_by(host: Host) -> int:
    """Return the bytes that a host has sent."""
    return int(host.sh("cat /sys/class/net/uplink/statistics/tx_bytes"))


COLUMNS = (
    Column("pause_seconds", "blackout"),
    Column("seconds", "whole move"),
    Column("stall_seconds", "worst after", compared=False, unit="ms"),
    Column("before_seconds", "p99 before", compared=False, unit="ms"),
    Column("rounds_seconds", "p99 in it", compared=False, unit="ms"),
    Column("bytes", "sent", compared=False),
    Column("lost", "lost", compared=False, unit="most"),
    Column("dropped", "dropped", compared=False, unit="most"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of this benchmark."""
    add_runs(parser, 3)
    parser.add_argument(
        "--other-runs", type=number, default=1, metavar="N", help="of the others (default: 1)"
    )
    parser.add_argument(
        "--sizes",
        type=mebibytes,
        nargs="+",
        default=[64, 1024],
        help="of the Redis' data (default: 64MiB 1GiB)",
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, help="of our moves (default: all)"
    )
    parser.add_argument(
        "--others", nargs="+", choices=OTHERS, default=OTHERS, help="of the others (default: all)"
    )
    parser.add_argument(
        "--links",
        nargs="+",
        choices=LINKS,
        default=[UNLIMITED.name, GIGABIT.name],
        help="between the hosts (default: unlimited 1gbit)",
    )


def run(arguments: argparse.Namespace, tell: Tell) -> Found:
    """Measure what is asked for; the others take one turn, since theirs is a matter of seconds."""
    links = [LINKS[name] for name in arguments.links]
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(("alpha", "beta")))
        scene = Live(lab, arguments.sizes, links, arguments.modes, arguments.others)
        scene.prepare(stack)
        ours = [*scene.ours()]
        interleave(ours[:WARMING], 0, tell=tell)
        rows = interleave(ours, arguments.runs, warm_up=False, tell=tell)
        rows += interleave([*scene.others()], arguments.other_runs, warm_up=False, tell=tell)
    settings = {"runs": arguments.runs, "connections": CONNECTIONS, "writes_per_second": RATE}
    return Found(rows, scene.versions, settings, scene.unavailable)


def measures(arguments: argparse.Namespace) -> list[Measure]:
    """Return a table for each size and link."""
    links = [LINKS[name] for name in arguments.links]
    names = [measure(mib, link) for mib in arguments.sizes for link in links]
    return [Measure(name, f"Move of a Redis: {name}", COLUMNS) for name in names]


BENCHMARK = Benchmark(
    "live", "moves of a Redis that is written to all the while", add_options, run, measures
)
