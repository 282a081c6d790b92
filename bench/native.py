"""The fourth benchmark: what a container costs what runs in it, and what many of them cost.

It needs no lab: the same program runs on this machine itself and in a container of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from bench.benchmark import Benchmark, Found, Tell, add_runs
from bench.harness import BenchError, Episode, Sample, interleave
from bench.results import Column, Measure
from bench.workload import PATIENCE, build
from tests.lab.host import REPOSITORY

WORKS = {
    "cpu": "arithmetic",
    "memory": "copies and dependent reads, 64 MiB",
    "disk": "write, fsync and read 128 MiB",
    "stream": "512 MiB over loopback TCP",
    "turns": "20000 questions over loopback TCP",
    "calls": "a million system calls",
}
DATA = 32 << 20  # bytes of the image's file that the containers of `shared` map
SHARERS = 10
MANY = 100
STEP = 0.01  # seconds between two looks at whether a container is ready


class Native:
    """A root of its own on this machine's disk, with one image."""

    def __init__(self, stack: ExitStack) -> None:
        """Make it; `stack` removes it, with all containers."""
        # /tmp may be memory, and the disk is to be measured.
        self._directory = Path(mkdtemp(dir="/var/tmp", prefix="bench-"))
        stack.callback(shutil.rmtree, self._directory)
        stack.callback(self._remove_all)
        self._image = self._directory / "image"
        for name in ("dev", "proc", "sys", "run", "tmp", "etc", "data"):
            (self._image / name).mkdir(parents=True)
        build("native", self._image)
        (self._image / "shared").write_bytes(bytes(range(256)) * (DATA >> 8))
        (self._directory / "volume").mkdir()
        self.version = json.loads(self._pymigrate("version", "--json"))["pymigrate"]
        self._pymigrate("image", "import", str(self._image), "native")

    def _pymigrate(self, *words: str) -> str:
        program = [str(REPOSITORY / "pymigrate"), "--root", str(self._directory / "root"), *words]
        return _output(program)

    def _remove_all(self) -> None:
        names = self._pymigrate("ps", "-aq").split()
        if names:
            self._pymigrate("rm", "-f", *names)

    def episodes(self) -> Iterator[Episode]:
        """List each work outside and inside, by turns."""
        for work, what in WORKS.items():
            yield Episode("no container", what, (work,), partial(self._work, work, self._outside))
            yield Episode("pymigrate", what, (work,), partial(self._work, work, self._inside))
        # The filter is all that a container's system call meets and another's does not.
        free = partial(self._inside, seccomp=False)
        for work in ("turns", "calls"):
            what = f"{WORKS[work]}, no filter"
            yield Episode("pymigrate", what, (work,), partial(self._work, work, free))

    def once(self) -> Iterator[Episode]:
        """List what is measured once: memory that containers share, and many containers."""
        for count in (1, SHARERS):
            act = partial(self._shared, count)
            yield Episode("pymigrate", f"{count} of one image", ("shared",), act)
        yield Episode("pymigrate", f"{MANY} at once", ("many",), self._many)

    def _outside(self, work: str) -> str:
        file = self._directory / "volume/file"
        return _output([str(self._image / "native"), work, str(file)])

    def _inside(self, work: str, *, seccomp: bool = True) -> str:
        volume = ("-v", f"{self._directory / 'volume'}:/data")
        filtered = () if seccomp else ("--security-opt", "seccomp=unconfined")
        run = ("run", "--rm", "--net", "none", *volume, *filtered, "native")
        return self._pymigrate(*run, "/native", work, "/data/file")

    def _work(self, work: str, run: Callable[[str], str]) -> Iterator[Sample]:
        seconds, used = map(float, run(work).split())
        yield Sample(work, {"seconds": seconds, "cpu_seconds": used})

    def _shared(self, count: int) -> Iterator[Sample]:
        names = [f"sharer{number}" for number in range(count)]
        for name in names:
            run = ("run", "-d", "--net", "none", "--name", name, "native")
            self._pymigrate(*run, "/native", "hold", "/shared")
        _until(lambda: all("holding" in self._pymigrate("logs", name) for name in names))
        states = [json.loads(self._pymigrate("inspect", name))["state"] for name in names]
        inside = [_memory(state["pid"]) for state in states]
        around = [_memory(state["supervisor_pid"]) for state in states]
        self._remove_all()
        yield Sample(
            "shared",
            {
                "rss_bytes": sum(each["Rss"] for each in inside),
                "pss_bytes": sum(each["Pss"] for each in inside),
                "supervisors_bytes": sum(each["Pss"] for each in around),
            },
        )

    def _many(self) -> Iterator[Sample]:
        names = [f"many{number}" for number in range(MANY)]
        began = time.monotonic()
        for name in names:
            run = ("run", "-d", "--net", "none", "--name", name, "native")
            self._pymigrate(*run, "/native", "hold", "/shared")
        started = time.monotonic()
        listed = json.loads(self._pymigrate("ps", "--json"))
        looked = time.monotonic()
        if len([each for each in listed if each["status"] == "running"]) != MANY:
            raise BenchError(f"{len(listed)} containers run, not {MANY}")
        removing = time.monotonic()
        self._remove_all()
        yield Sample(
            "many",
            {
                "start_seconds": started - began,
                "list_seconds": looked - started,
                "remove_seconds": time.monotonic() - removing,
            },
        )


def _memory(pid: int) -> dict[str, int]:
    """Return the sizes of smaps_rollup, in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    lines = [line.split() for line in text.splitlines()[1:]]
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"the containers were not ready after {PATIENCE:.0f} s")
        time.sleep(STEP)


def _output(program: list[str]) -> str:
    said = subprocess.run(program, capture_output=True, text=True, check=False)
    if said.returncode:
        raise BenchError(f"{' '.join(program)} ended with {said.returncode}: {said.stderr}")
    return said.stdout


MEASURES = (
    *(
        Measure(
            work,
            what,
            (Column("seconds", "by its own clock"), Column("cpu_seconds", "processor time")),
        )
        for work, what in WORKS.items()
    ),
    Measure(
        "shared",
        "Memory of containers of one image that map a file of 32 MiB of it",
        (
            Column("rss_bytes", "resident", compared=False),
            Column("pss_bytes", "its share (PSS)", compared=False),
            Column("supervisors_bytes", "supervisors (PSS)", compared=False),
        ),
    ),
    Measure(
        "many",
        "Many containers, one command after another",
        (
            Column("start_seconds", "start all", compared=False),
            Column("list_seconds", "list all", compared=False),
            Column("remove_seconds", "remove all", compared=False),
        ),
    ),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of this benchmark."""
    add_runs(parser, 15)


def run(arguments: argparse.Namespace, tell: Tell) -> Found:
    """Measure it."""
    with ExitStack() as stack:
        scene = Native(stack)
        rows = interleave([*scene.episodes()], arguments.runs, tell=tell)
        rows += interleave([*scene.once()], 1, warm_up=False, tell=tell)
    return Found(rows, {"pymigrate": scene.version}, {"runs": arguments.runs})


BENCHMARK = Benchmark(
    "native", "the same work inside and outside a container", add_options, run, lambda _: MEASURES
)
