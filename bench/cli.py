"""Run a benchmark, print its tables and keep its results. Started by ./bench/run."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # finds what follows

from bench import first, live, machine, native, plane, restores, snapshots, working_set
from bench.benchmark import Benchmark
from bench.harness import FAILURES
from bench.results import Outcome, show

RESULTS = Path(__file__).with_name("results")
WIDTH = 132  # of the tables, where there is no terminal to ask

BENCHMARKS = (
    first.BENCHMARK,
    snapshots.BENCHMARK,
    restores.BENCHMARK,
    working_set.BENCHMARK,
    native.BENCHMARK,
    live.BENCHMARK,
    plane.BENCHMARK,
)


def outcome(benchmark: Benchmark, arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run a benchmark, and note when, where and on how quiet a machine."""
    began, busy = datetime.now(UTC), machine.busy()
    found = benchmark.run(
        arguments, lambda text: console.print(Text(text, style="dim"), soft_wrap=True)
    )
    return Outcome(
        bench=benchmark.name,
        when=began,
        machine=machine.Machine.here(),
        commit=machine.commit(),
        versions=found.versions,
        settings=found.settings,
        busy_before=busy,
        rows=found.rows,
        unavailable=found.unavailable,
    )


def stop(number: int, _: FrameType | None) -> NoReturn:
    """End like Ctrl-C does, so that the lab is taken down."""
    raise SystemExit(128 + number)


def main() -> int:
    """Run what is asked for; the exit code says nothing about who is faster."""
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True)
    for each in BENCHMARKS:
        bench = benches.add_parser(each.name, help=each.help)
        each.add_options(bench)
        bench.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
        bench.set_defaults(benchmark=each)
    arguments = parser.parse_args()
    benchmark: Benchmark = arguments.benchmark
    if os.geteuid() != 0:
        print("bench: this needs root\nhint: sudo ./bench/run", file=sys.stderr)
        return 20
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    progress = Console(stderr=True, highlight=False)
    try:
        found = outcome(benchmark, arguments, progress)
    except FAILURES as error:
        progress.print(Text(f"bench: {error}", style="bold red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        progress.print(Text("bench: interrupted; the lab is gone", style="bold red"))
        return 130
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    measured = {row.measure for row in found.rows}
    show(found, [each for each in benchmark.measures(arguments) if each.name in measured], console)
    console.print(Text(f"kept in {found.keep(arguments.output)}", style="dim"), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
