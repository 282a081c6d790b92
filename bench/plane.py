"""The fourth benchmark: a process's memory to the other host, beside scp, rsync and CRIU's own."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.benchmark import Benchmark, Found, Tell, add_runs, mebibytes
from bench.first import TICKER, Scene
from bench.harness import BenchError, Episode, Sample, interleave
from bench.machine import warm
from bench.results import Column, Measure
from bench.standstill import Seconds, watched
from bench.subjects.bare import Bare
from bench.subjects.criu_copied import CriuCopied
from bench.subjects.criu_lazy import CriuLazy
from bench.subjects.pymigrate import Pymigrate
from bench.subjects.subject import NAME, fresh, program
from bench.usage import used
from bench.workload import Ticker, Workload
from tests.lab import Host, Lab

HERE, THERE = Path("/srv/bench/memory"), Path("/srv/bench/arrived")
LINKS = {"unlimited": "", "1gbit": "1gbit", "100mbit": "100mbit"}
CONTENTS = ("mix", "random")
WARM = 3  # times the workload's memory that the kernel has at hand when a turn begins
COPIERS = {
    "criu+scp": "scp -q {ssh} {images}/* {to}",
    "criu+rsync": "rsync -W --inplace --rsh 'ssh {ssh}' {images}/* {to}",
}
WAYS = (("hybrid", "tls"), ("post", "tls"), ("pre", "tls"), ("stop", "tls"), ("hybrid", "ssh"))


@dataclass
class Plane:
    """One lab, one size; who sends what over which link."""

    scene: Scene
    mib: int
    links: tuple[str, ...]
    contents: tuple[str, ...]
    stood: Seconds
    ways: tuple[tuple[str, str], ...] = WAYS
    _dumped: dict[str, int] = field(default_factory=dict)

    @property
    def lab(self) -> Lab:
        """The hosts."""
        return self.scene.lab

    def episodes(self) -> Iterator[Episode]:
        """List who does what, in the order of a round."""
        for link in self.links:
            for content in self.contents:
                workload = Workload(self.mib, content=content)
                here = f"{link} {content}"
                for subject in self.scene.subjects:
                    if isinstance(subject, Pymigrate):
                        for mode, data in self.ways:
                            act = partial(self._move, subject, workload, link, mode, data)
                            yield Episode("pymigrate", f"{here} {mode} {data}", ("plane",), act)
                for tool in (scp, rsync):
                    act = partial(self._copy, workload, link, tool)
                    yield Episode(tool.__name__, here, ("plane",), act)
                for name, copier in COPIERS.items():
                    act = partial(self._by_hand, partial(CriuCopied, copy=copier), workload, link)
                    yield Episode(name, f"{here} stop", ("plane",), act)
                lazy = partial(self._by_hand, CriuLazy, workload, link)
                yield Episode("criu", f"{here} post", ("plane",), lazy)

    @contextmanager
    def _link(self, link: str) -> Iterator[None]:
        """Slow the first host's way out down, while the block runs."""
        rate, alpha = LINKS[link], self.lab["alpha"]
        if rate:
            words = f"dev uplink root tbf rate {rate} burst 256kb latency 50ms"
            alpha.sh(f"tc qdisc replace {words}")
        try:
            yield
        finally:
            if rate:
                alpha.sh("tc qdisc delete dev uplink root")

    def _measured(self, link: str, act: Callable[[], object]) -> dict[str, float]:
        """Do it; return the time and what both sides used."""
        warm(WARM * self.mib << 20)
        with self._link(link), used(self.lab["alpha"]) as source, used(self.lab["beta"]) as target:
            began = time.monotonic()
            act()
            seconds = time.monotonic() - began
            stood = self.stood(began)
        return {
            "seconds": seconds,
            **stood,
            "source_bytes": float(source.peak),
            "target_bytes": float(target.peak),
            "source_own_bytes": float(source.anonymous),
            "target_own_bytes": float(target.anonymous),
            "cpu_seconds": (source.seconds + target.seconds) * 1e9 / (self.mib << 20),
        }

    def _observed(self, ticker: Ticker, link: str, act: Callable[[], object]) -> Sample:
        """Let it move; return what that took and what the client saw until all was there."""
        values = self._measured(link, act)
        seen = ticker.moved()
        ticker.verify()
        client = {"pause_seconds": seen.blackout, "stall_seconds": seen.stall}
        return Sample("plane", {**values, **client})

    def _move(
        self, subject: Pymigrate, workload: Workload, link: str, mode: str, data: str
    ) -> Iterator[Sample]:
        alpha, beta = self.lab["alpha"], self.lab["beta"]
        with ExitStack() as stack:
            stack.callback(subject.remove)
            ticker = stack.enter_context(
                Ticker(self.lab.client, TICKER, subject.address, workload.port)
            )
            subject.launch(workload)
            ticker.watch()
            words = ("migrate", NAME, beta.ssh_destination, "--mode", mode, "--data", data)
            yield self._observed(ticker, link, lambda: alpha.pymigrate(*words, timeout=600))

    def _copy(
        self, workload: Workload, link: str, tool: Callable[[Host, Host], object]
    ) -> Iterator[Sample]:
        """Copy a file with the same bytes, from tmpfs to tmpfs: nothing is dumped or restored."""
        alpha, beta = self.lab["alpha"], self.lab["beta"]
        fresh(alpha, HERE)
        fresh(beta, THERE)
        try:
            what = [*workload.argv, str(HERE / "pages")]
            alpha.run([f"/srv/bench/image{what[0]}", *what[1:]])
            yield Sample("plane", self._measured(link, lambda: tool(alpha, beta)))
            arrived = (beta.outside(THERE) / "pages").stat().st_size
            if arrived != workload.mib << 20:
                raise BenchError(f"{arrived} bytes arrived")
        finally:
            fresh(alpha, HERE)
            fresh(beta, THERE)

    def _by_hand(
        self, make: Callable[[Host, Host], Bare], workload: Workload, link: str
    ) -> Iterator[Sample]:
        with ExitStack() as stack:
            subject = make(self.lab["alpha"], self.lab["beta"])
            stack.callback(subject.remove)
            alpha, beta = (str(self.lab[name].address) for name in ("alpha", "beta"))
            ticker = stack.enter_context(
                Ticker(self.lab.client, TICKER, alpha, workload.port, then=beta)
            )
            subject.launch(workload)
            ticker.watch()
            yield self._observed(ticker, link, subject.move)


def scp(source: Host, target: Host) -> None:
    """Copy by scp, as it comes."""
    to = f"{target.ssh_destination}:{THERE}/"
    source.run([program("scp"), "-q", str(HERE / "pages"), to], timeout=600)


def rsync(source: Host, target: Host) -> None:
    """Copy by rsync over ssh, whole files, not compressed: what is fastest for it here."""
    to = f"{target.ssh_destination}:{THERE}/"
    source.run([program("rsync"), "-W", "--inplace", str(HERE / "pages"), to], timeout=600)


MEASURES = (
    Measure(
        "plane",
        "All memory of a process to another host",
        (
            Column("seconds", "until all is there"),
            Column("pause_seconds", "blackout"),
            Column("stall_seconds", "worst stall", unit="ms", compared=False),
            Column("standstill_seconds", "stood still", unit="ms", compared=False),
            Column("cpu_seconds", "CPU per GB", compared=False),
            Column("source_bytes", "memory here", compared=False),
            Column("target_bytes", "memory there", compared=False),
            Column("source_own_bytes", "anonymous here", compared=False),
            Column("target_own_bytes", "anonymous there", compared=False),
        ),
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of this benchmark."""
    add_runs(parser, 5)
    parser.add_argument(
        "--size", type=mebibytes, default=1144, help="of the workload's memory (default: 1.2 GB)"
    )
    parser.add_argument("--links", nargs="+", choices=[*LINKS], default=["unlimited"])
    parser.add_argument("--contents", nargs="+", choices=CONTENTS, default=["mix"])
    parser.add_argument(
        "--ways", nargs="+", choices=["-".join(way) for way in WAYS], help="of ours (default: all)"
    )
    names = ["pymigrate", "scp", "rsync", *COPIERS, "criu"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--no-warm-up", dest="warm_up", action="store_false", help="count the first round too"
    )


def run(arguments: argparse.Namespace, tell: Tell) -> Found:
    """Measure what is asked for."""
    ways = [each for each in WAYS if not arguments.ways or "-".join(each) in arguments.ways]
    with ExitStack() as stack:
        scene = Scene(stack.enter_context(Lab(("alpha", "beta"))), arguments.size)
        scene.prepare(stack)
        stood = watched(stack, scene.unavailable)
        wanted = (tuple(arguments.links), tuple(arguments.contents), stood, tuple(ways))
        episodes = [
            each
            for each in Plane(scene, arguments.size, *wanted).episodes()
            if each.subject in arguments.only
        ]
        rows = interleave(episodes, arguments.runs, warm_up=arguments.warm_up, tell=tell)
    settings = {"runs": arguments.runs, "memory_mib": arguments.size}
    return Found(rows, scene.versions, settings, scene.unavailable)


BENCHMARK = Benchmark(
    "plane", "memory to another host; scp, rsync, CRIU's own", add_options, run, lambda _: MEASURES
)
