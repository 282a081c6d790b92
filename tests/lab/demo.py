"""Show the main job: a Redis under load moves between two hosts, and its client does not notice.

Run by ./demo after it has set the machine up. All numbers in "seen by the client" are measured by
the client. The exit code is 0 only if no acknowledged write was lost and the connection is the one
that was opened at the beginning.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab import Client, Host, Lab, LabError, images  # found by the line above

ADDRESS = "10.88.0.5"
PORT = 6379
SERVER = ("redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", "")
Report = dict[str, Any]  # what `pymigrate --json migrate` prints
SETTLING = 1.0  # seconds of writing before, between and after the moves


@dataclass(frozen=True)
class Move:
    """One move, as pymigrate reports it and as the client saw it."""

    source: str
    target: str
    command_seconds: float
    report: Report
    seen: dict[str, Any]

    @property
    def title(self) -> str:
        """The head of its column."""
        return f"{self.source} → {self.target}"


@dataclass(frozen=True)
class Outcome:
    """What the client says at the end."""

    moves: tuple[Move, ...]
    acknowledged: int
    lost: int
    same_connection: bool
    connection: dict[str, Any]
    data_intact: bool
    running_on: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether all is as it was promised."""
        return (
            self.lost == 0
            and self.acknowledged > 0
            and self.same_connection
            and self.data_intact
            and self.running_on == (self.moves[-1].target,)
        )


class Demo:
    """The story, told while it happens."""

    def __init__(self, console: Console, mib: int) -> None:
        self.console = console
        self.mib = mib

    def say(self, text: str) -> None:
        """Tell what comes next."""
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def note(self, text: str) -> None:
        """Add a line to what was told."""
        self.console.print(Text(f"  {text}", style="dim"))

    def type(self, host: Host, *words: str) -> subprocess.CompletedProcess[str]:
        """Run pymigrate on a host, shown as a person would type it."""
        typed = shlex.join(["pymigrate", *(word for word in words if word != "--json")])
        prompt = Text(f"  {host.name}# ", style="cyan")
        self.console.print(prompt.append(typed, style="default"), soft_wrap=True)
        return host.pymigrate(*words)

    def tell(self) -> Outcome:
        """Make the lab, move Redis there and back, and return what came of it."""
        self.say("An image with Redis, made from Debian's packages and kept for the next time")
        began = time.monotonic()
        image = images.bootstrap("demo-redis", ["redis-server"])
        self.note(f"{image.root} ({time.monotonic() - began:.1f} s)")

        self.say("Two hosts, alpha and beta, and a client: namespaces on this machine")
        began = time.monotonic()
        with Lab(("alpha", "beta")) as lab:
            images.lend(image, lab["alpha"])
            self.note("each host has its own network, name, processes, disk, and an sshd;")
            self.note(f"both are up after {time.monotonic() - began:.2f} s")
            return self._move_redis(lab, image.name)

    def _move_redis(self, lab: Lab, image: str) -> Outcome:
        alpha, beta = lab["alpha"], lab["beta"]
        self.say(f"Redis runs on alpha, with {self.mib} MiB of random data")
        self.type(alpha, "run", "-d", "--name", "redis", "--ip", ADDRESS, image, *SERVER)
        fill = ("--mib", str(self.mib))
        with Client(lab.client, "redis-fill", ADDRESS, PORT, *fill) as filler:
            self.note(f"{filler.ready['keys']} values written by the client at {ADDRESS}:{PORT}")

        self.say("The client writes one value after the other, over one TCP connection")
        with Client(lab.client, "redis-writer", ADDRESS, PORT, "--rate", "2000") as writer:
            self.note(f"from port {writer.ready['local_port']}; each write waits for its “OK”")
            time.sleep(SETTLING)
            rate = self._rate(writer)
            self.note(f"{rate:.0f} writes a second")

            self.say("One command moves the running container. The client is not told")
            moves = [self._move(alpha, beta, writer)]
            self.say("And back")
            moves.append(self._move(beta, alpha, writer))
            said = writer.finish()
        with Client(lab.client, "redis-check", ADDRESS, PORT, *fill) as checker:
            damaged = checker.ready["damaged"]
        return Outcome(
            moves=tuple(moves),
            acknowledged=said["acknowledged"],
            lost=said["lost"],
            same_connection=said["same_connection"],
            connection=said["connection"],
            data_intact=damaged == 0,
            running_on=tuple(host.name for host in (alpha, beta) if self._runs_redis(host)),
        )

    def _rate(self, writer: Client) -> float:
        seen = writer.ask("before")
        return float(seen["answers"] / seen["seconds"])

    def _move(self, source: Host, target: Host, writer: Client) -> Move:
        writer.ask("before")
        began = time.monotonic()
        said = self.type(source, "--json", "migrate", "redis", target.ssh_destination)
        seconds = time.monotonic() - began
        time.sleep(SETTLING)
        seen = writer.ask(f"{source.name} to {target.name}")
        self.note(
            f"done after {seconds:.1f} s; the client waited {milliseconds(seen['longest_gap'])}"
            " for one answer, and writes on"
        )
        report = json.loads(said.stdout)
        return Move(source.name, target.name, seconds, report, seen)

    def _runs_redis(self, host: Host) -> bool:
        listed = json.loads(host.pymigrate("--json", "ps").stdout)
        return any(container["name"] == "redis" for container in listed)


def show(outcome: Outcome, console: Console) -> None:
    """Print the table and the verdict."""
    table = Table(box=box.ROUNDED, header_style="bold")
    table.add_column("Redis moved", min_width=34)
    for move in outcome.moves:
        table.add_column(move.title, justify="right", min_width=14)

    def row(title: str, cells: Iterable[str], style: str = "") -> None:
        table.add_row(title, *cells, style=style)

    reports = [move.report for move in outcome.moves]
    row(
        "blackout seen by the client",
        (milliseconds(move.seen["longest_gap"]) for move in outcome.moves),
        "bold green",
    )
    row(
        "frozen, by pymigrate's clock",
        (milliseconds(report["blackout_seconds"]) for report in reports),
    )
    row("whole command", (milliseconds(move.command_seconds) for move in outcome.moves))
    table.add_section()
    row("bytes sent", (size(report["bytes_sent"]) for report in reports))
    row("  before compression:", ("" for _ in reports), "dim")
    for name in names(reports, lambda report: report["bytes"]):
        row(f"    {name}", (size(report["bytes"].get(name, 0)) for report in reports), "dim")
    table.add_section()
    row("time per phase", ("" for _ in reports))
    for name in names(reports, phases):
        row(f"  {name}", (milliseconds(phases(report).get(name)) for report in reports), "dim")
    console.print()
    console.print(table)
    console.print()
    verdict(console, f"acknowledged writes lost: {outcome.lost}", outcome.lost == 0)
    console.print(Text(f"  of {outcome.acknowledged} that Redis acknowledged", style="dim"))
    same = "the same" if outcome.same_connection else "another"
    verdict(console, f"connection: {same}", outcome.same_connection)
    connection = outcome.connection
    console.print(
        Text(
            f"  client port {connection['local_port']}, Redis's client number"
            f" {connection['client_id']}, PID {connection['server_pid']} in the container",
            style="dim",
        )
    )
    verdict(
        console,
        f"data: {'intact' if outcome.data_intact else 'damaged'}",
        outcome.data_intact,
    )
    where = " and ".join(outcome.running_on) or "no host"
    verdict(console, f"running on: {where}", outcome.running_on == (outcome.moves[-1].target,))


def verdict(console: Console, text: str, good: bool) -> None:
    """Print one line of the verdict, green or red."""
    console.print(Text(text, style="bold green" if good else "bold red"))


def names(reports: list[Report], part: Callable[[Report], Iterable[str]]) -> list[str]:
    """List the names in a part of each report, in their order, each once."""
    return list(dict.fromkeys(name for report in reports for name in part(report)))


def phases(report: Report) -> dict[str, float]:
    """Return the seconds of each phase by its name."""
    return {phase["name"]: phase["seconds"] for phase in report["phases"]}


def milliseconds(seconds: float | None) -> str:
    """Write a time."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def size(count: int) -> str:
    """Write a number of bytes."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def stop(number: int, _: FrameType | None) -> NoReturn:
    """End like Ctrl-C does, so that the lab is taken down."""
    raise SystemExit(128 + number)


def main() -> int:
    """Tell the story; return 0 if it ends well."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=64, help="of data in Redis (default: 64)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    console = Console(stderr=arguments.json, highlight=False)
    try:
        outcome = Demo(console, arguments.mib).tell()
    except (LabError, subprocess.SubprocessError) as error:
        console.print(Text(f"demo: {error}", style="bold red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(Text("demo: interrupted; the lab is gone", style="bold red"))
        return 130
    if arguments.json:
        print(json.dumps(asdict(outcome)))
    else:
        show(outcome, console)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
