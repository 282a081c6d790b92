"""Run a benchmark, print its tables and keep its results. Started by ./bench/run."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import machine
from bench.first import Scene
from bench.harness import FAILURES, interleave
from bench.live import GIGABIT, UNLIMITED, WARMING, Live, measure
from bench.live import LINKS as LIVE_LINKS
from bench.native import WORKS, Native
from bench.plane import CONTENTS, LINKS, WAYS, Plane
from bench.restores import Restores
from bench.results import Column, Measure, Outcome, show
from bench.snapshots import SUBJECTS
from bench.snapshots import Scene as SnapshotScene
from bench.writers import CONNECTIONS, RATE
from tests.lab import Lab  # all found by the line above

RESULTS = Path(__file__).with_name("results")
WIDTH = 132  # of the tables, where there is no terminal to ask
UNITS = {"": 1, "MIB": 1, "M": 1, "GIB": 1024, "G": 1024}

FIRST = (
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


RESTORES = (
    Measure(
        "restores",
        "Restore of a program with so much memory",
        (
            Column("seconds", "until it answers"),
            Column("all_seconds", "until all is there", compared=False),
            Column("stall_seconds", "worst stall between", compared=False),
            Column("command_seconds", "until the command ends", compared=False),
        ),
    ),
)


NATIVE = (
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

PLANE = (
    Measure(
        "plane",
        "All memory of a process to another host",
        (
            Column("seconds", "until all is there"),
            Column("pause_seconds", "blackout", compared=False),
            Column("cpu_seconds", "CPU per GB", compared=False),
            Column("source_bytes", "memory here", compared=False),
            Column("target_bytes", "memory there", compared=False),
        ),
    ),
)


SNAPSHOTS = (
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


LIVE = (
    Column("pause_seconds", "blackout"),
    Column("seconds", "whole move"),
    Column("stall_seconds", "worst after", compared=False, unit="ms"),
    Column("before_seconds", "p99 before", compared=False, unit="ms"),
    Column("rounds_seconds", "p99 in it", compared=False, unit="ms"),
    Column("bytes", "sent", compared=False),
    Column("lost", "lost", compared=False, unit="most"),
    Column("dropped", "dropped", compared=False, unit="most"),
)


def mebibytes(text: str) -> int:
    """Read a size such as 512MiB or 1GiB; without a unit it is in MiB."""
    match = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", text)
    if match is None or match[2].upper() not in UNITS or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512MiB")
    return int(match[1]) * UNITS[match[2].upper()]


def positive(text: str) -> int:
    """Read a number of runs."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of runs")
    return int(text)


def number(text: str) -> int:
    """Read a number of runs, which may be 0."""
    return 0 if text == "0" else positive(text)


def first(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run the first benchmark."""
    began, busy = datetime.now(UTC), machine.busy()
    with ExitStack() as stack:
        scene = Scene(stack.enter_context(Lab(("alpha", "beta"))), arguments.size)
        scene.prepare(stack)
        rows = interleave(
            [episode for episode in scene.episodes() if {*episode.measures} & {*arguments.only}],
            arguments.runs,
            tell=lambda text: console.print(Text(text, style="dim"), soft_wrap=True),
        )
    return Outcome(
        bench="first",
        when=began,
        machine=machine.Machine.here(),
        commit=machine.commit(),
        versions=scene.versions,
        settings={"runs": arguments.runs, "memory_mib": arguments.size},
        busy_before=busy,
        rows=rows,
        unavailable=scene.unavailable,
    )


def snapshots(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run the second benchmark."""
    began, busy = datetime.now(UTC), machine.busy()

    def tell(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    with ExitStack() as stack:
        lab = stack.enter_context(Lab(("alpha", "beta")))
        wanted = (arguments.size, arguments.count, arguments.changed, arguments.only)
        scene = SnapshotScene(lab, *wanted)
        scene.prepare(stack)
        rows = interleave([*scene.episodes()], arguments.runs, tell=tell)
        if arguments.count:
            tell(f"up to {arguments.count} snapshots")
            scene.fill_up()
            rows += interleave([*scene.many()], 1, warm_up=False, tell=tell)
    return Outcome(
        bench="snapshots",
        when=began,
        machine=machine.Machine.here(),
        commit=machine.commit(),
        versions=scene.versions,
        settings={
            "runs": arguments.runs,
            "memory_mib": arguments.size,
            "changed_pages": scene.changed,
            "count": arguments.count,
        },
        busy_before=busy,
        rows=rows,
        unavailable=scene.unavailable,
    )


def restores(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run the third benchmark."""
    began, busy = datetime.now(UTC), machine.busy()
    with ExitStack() as stack:
        scene = Scene(stack.enter_context(Lab(("alpha", "beta"))), max(arguments.sizes))
        scene.prepare(stack)
        rows = interleave(
            [each for mib in arguments.sizes for each in Restores(scene, mib).episodes()],
            arguments.runs,
            tell=lambda text: console.print(Text(text, style="dim"), soft_wrap=True),
        )
    return Outcome(
        bench="restores",
        when=began,
        machine=machine.Machine.here(),
        commit=machine.commit(),
        versions=scene.versions,
        settings={"runs": arguments.runs, "memory_mib": max(arguments.sizes)},
        busy_before=busy,
        rows=rows,
        unavailable=scene.unavailable,
    )


def native(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run the fourth benchmark."""
    began, busy = datetime.now(UTC), machine.busy()

    def tell(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    with ExitStack() as stack:
        scene = Native(stack)
        rows = interleave([*scene.episodes()], arguments.runs, tell=tell)
        rows += interleave([*scene.once()], 1, warm_up=False, tell=tell)
    return Outcome(
        bench="native",
        when=began,
        machine=machine.Machine.here(),
        commit=machine.commit(),
        versions={"pymigrate": scene.version},
        settings={"runs": arguments.runs},
        busy_before=busy,
        rows=rows,
        unavailable={},
    )


def live(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run the fifth benchmark; the others take one turn, since theirs is a matter of seconds."""
    began, busy = datetime.now(UTC), machine.busy()
    links = [LIVE_LINKS[name] for name in arguments.links]

    def tell(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    with ExitStack() as stack:
        scene = Live(stack.enter_context(Lab(("alpha", "beta"))), arguments.sizes, links)
        scene.prepare(stack)
        ours = [*scene.ours()]
        interleave(ours[:WARMING], 0, tell=tell)
        rows = interleave(ours, arguments.runs, warm_up=False, tell=tell)
        rows += interleave([*scene.others()], arguments.other_runs, warm_up=False, tell=tell)
    names = [measure(mib, link) for mib in arguments.sizes for link in links]
    arguments.measures = [Measure(name, f"Move of a Redis: {name}", LIVE) for name in names]
    return Outcome(
        bench="live",
        when=began,
        machine=machine.Machine.here(),
        commit=machine.commit(),
        versions=scene.versions,
        settings={"runs": arguments.runs, "connections": CONNECTIONS, "writes_per_second": RATE},
        busy_before=busy,
        rows=rows,
        unavailable=scene.unavailable,
    )


def plane(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run the sixth benchmark."""
    began, busy = datetime.now(UTC), machine.busy()
    ways = [each for each in WAYS if not arguments.ways or "-".join(each) in arguments.ways]
    with ExitStack() as stack:
        scene = Scene(stack.enter_context(Lab(("alpha", "beta"))), arguments.size)
        scene.prepare(stack)
        wanted = (tuple(arguments.links), tuple(arguments.contents), tuple(ways))
        episodes = [
            each
            for each in Plane(scene, arguments.size, *wanted).episodes()
            if each.subject in arguments.only
        ]
        rows = interleave(
            episodes,
            arguments.runs,
            warm_up=arguments.warm_up,
            tell=lambda text: console.print(Text(text, style="dim"), soft_wrap=True),
        )
    return Outcome(
        bench="plane",
        when=began,
        machine=machine.Machine.here(),
        commit=machine.commit(),
        versions=scene.versions,
        settings={"runs": arguments.runs, "memory_mib": arguments.size},
        busy_before=busy,
        rows=rows,
        unavailable=scene.unavailable,
    )


def measured(outcome: Outcome) -> set[str]:
    """Return the names of what was measured."""
    return {row.measure for row in outcome.rows}


def stop(number: int, _: FrameType | None) -> NoReturn:
    """End like Ctrl-C does, so that the lab is taken down."""
    raise SystemExit(128 + number)


def _add_snapshots(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = benches.add_parser("snapshots", help="snapshots of a Redis, podman, tar, restic, borg")
    bench.add_argument("--runs", type=positive, default=5, metavar="N", help="default: 5")
    bench.add_argument(
        "--size", type=mebibytes, default=1024, help="of the Redis' data (default: 1GiB)"
    )
    bench.add_argument(
        "--changed",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="of its pages before each snapshot (default: 1)",
    )
    bench.add_argument(
        "--count",
        type=number,
        default=100,
        metavar="N",
        help="of the snapshots that are listed, restored, pruned (default: 100; 0: none is)",
    )
    bench.add_argument(
        "--only",
        nargs="+",
        choices=SUBJECTS,
        default=SUBJECTS,
        help="measure these; pymigrate always (default: all)",
    )
    bench.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    bench.set_defaults(act=snapshots, measures=SNAPSHOTS)


def _add_plane(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = benches.add_parser("plane", help="memory to another host; scp, rsync, CRIU's own")
    bench.add_argument("--runs", type=positive, default=5, metavar="N", help="default: 5")
    bench.add_argument(
        "--size", type=mebibytes, default=1144, help="of the workload's memory (default: 1.2 GB)"
    )
    bench.add_argument("--links", nargs="+", choices=[*LINKS], default=["unlimited"])
    bench.add_argument("--contents", nargs="+", choices=CONTENTS, default=["mix"])
    bench.add_argument(
        "--ways", nargs="+", choices=["-".join(way) for way in WAYS], help="of ours (default: all)"
    )
    names = ["pymigrate", "scp", "rsync", "criu"]
    bench.add_argument("--only", nargs="+", choices=names, default=names)
    bench.add_argument(
        "--no-warm-up", dest="warm_up", action="store_false", help="count the first round too"
    )
    bench.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    bench.set_defaults(act=plane, measures=PLANE)


def main() -> int:
    """Run what is asked for; the exit code says nothing about who is faster."""
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True)
    bench = benches.add_parser("first", help="start, exec, checkpoint, restore, migration")
    bench.add_argument("--runs", type=positive, default=5, metavar="N", help="default: 5")
    bench.add_argument(
        "--size", type=mebibytes, default=512, help="of the workload's memory (default: 512MiB)"
    )
    names = [measure.name for measure in FIRST]
    bench.add_argument(
        "--only", nargs="+", choices=names, default=names, help="measure these (default: all)"
    )
    bench.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    bench.set_defaults(act=first, measures=FIRST)
    _add_snapshots(benches)
    bench = benches.add_parser("restores", help="how soon a restored program answers")
    bench.add_argument("--runs", type=positive, default=5, metavar="N", help="default: 5")
    bench.add_argument(
        "--sizes",
        type=mebibytes,
        nargs="+",
        default=[64, 1024, 4096],
        help="of the workload's memory (default: 64MiB 1GiB 4GiB)",
    )
    bench.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    bench.set_defaults(act=restores, measures=RESTORES)
    bench = benches.add_parser("native", help="the same work inside and outside a container")
    bench.add_argument("--runs", type=positive, default=15, metavar="N", help="default: 15")
    bench.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    bench.set_defaults(act=native, measures=NATIVE)
    bench = benches.add_parser("live", help="moves of a Redis that is written to all the while")
    bench.add_argument("--runs", type=positive, default=3, metavar="N", help="default: 3")
    bench.add_argument(
        "--other-runs", type=number, default=1, metavar="N", help="of the others (default: 1)"
    )
    bench.add_argument(
        "--sizes",
        type=mebibytes,
        nargs="+",
        default=[64, 1024],
        help="of the Redis' data (default: 64MiB 1GiB)",
    )
    bench.add_argument(
        "--links",
        nargs="+",
        choices=LIVE_LINKS,
        default=[UNLIMITED.name, GIGABIT.name],
        help="between the hosts (default: unlimited 1gbit; a delay needs a kernel with netem)",
    )
    bench.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    bench.set_defaults(act=live, measures=())
    _add_plane(benches)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: this needs root\nhint: sudo ./bench/run", file=sys.stderr)
        return 20
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    progress = Console(stderr=True, highlight=False)
    try:
        outcome: Outcome = arguments.act(arguments, progress)
    except FAILURES as error:
        progress.print(Text(f"bench: {error}", style="bold red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        progress.print(Text("bench: interrupted; the lab is gone", style="bold red"))
        return 130
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    show(outcome, [each for each in arguments.measures if each.name in measured(outcome)], console)
    console.print(Text(f"kept in {outcome.keep(arguments.output)}", style="dim"), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
