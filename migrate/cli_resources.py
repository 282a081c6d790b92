"""The verbs about what a container uses and may use: stats, update."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pymigrate.migrate import output
from pymigrate.runtime import errors, lifecycle, usage
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from pymigrate.runtime.usage import Usage

if TYPE_CHECKING:
    from rich.table import Table

_HEADERS = ("NAME", "CPU", "OF CPUS", "MEMORY", "OF", "PIDS", "OF", "NET IN / OUT", "DISK IN / OUT")
_INTERVAL_SECONDS = 1.0
Row = tuple[Usage, float | None]


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add stats and update."""
    watching = verbs.add_parser(
        "stats",
        help="show what running containers use: cpu, memory, processes, network, disk",
        description="A live table on a terminal; --json prints an object a line.",
        epilog="example: pymigrate stats --no-stream web",
    )
    watching.add_argument("--no-stream", action="store_true", help="show it once")
    watching.add_argument(
        "--interval", type=float, default=_INTERVAL_SECONDS, metavar="S",
        help="seconds over which the use of the CPUs is measured (default: 1)",
    )  # fmt: skip
    watching.add_argument("names", nargs="*", metavar="NAME", help="containers (default: all)")
    watching.set_defaults(run=stats)
    updating = verbs.add_parser(
        "update",
        usage="pymigrate update [LIMITS] NAME...",
        help="change the limits of a container, also while it runs",
        description="All limits that are given change, or none does; they move with it.",
        epilog="example: pymigrate update --memory 1g --cpus 1.5 web",
    )
    from pymigrate.migrate.cli_run import add_limits

    add_limits(updating)
    updating.add_argument("names", nargs="+", metavar="NAME", help="a container, or several")
    updating.set_defaults(run=update)


def update(arguments: argparse.Namespace) -> int:
    """Change limits of each."""
    from pymigrate.migrate import limit_options

    host = Host.open(arguments.root)
    for container in [Container.open(host, name) for name in arguments.names]:
        lifecycle.update(container, lambda old: limit_options.changed_resources(old, arguments))
        if arguments.json:
            output.emit({"name": container.name})
        elif not arguments.quiet:
            output.say(container.name)
    return 0


def stats(arguments: argparse.Namespace) -> int:
    """Show what is used, once or until interrupted."""
    if not 0.05 <= arguments.interval <= 3600:
        raise errors.UsageError(f"--interval {arguments.interval}: not from 0.05 to 3600 seconds")
    host = Host.open(arguments.root)
    for name in arguments.names:
        container = Container.open(host, name)
        now = container.state()
        if not now.status.is_alive:
            raise errors.WrongState(f"{container.name} is {now.status.value}: it uses nothing")
    rows = _measurements(host, arguments.names, arguments.interval)
    if arguments.no_stream:
        _print(next(rows), as_json=arguments.json)
    elif arguments.json or not sys.stdout.isatty():
        for each in rows:
            _print(each, as_json=arguments.json)
    else:
        _live(rows)
    return 0


def _measurements(host: Host, names: Sequence[str], interval: float) -> Iterator[list[Row]]:
    """Yield what is used, once an interval, as long as one of the named ones runs."""
    before = _usages(host, names)
    while True:
        time.sleep(interval)  # what is measured is this time
        now = _usages(host, names)
        if names and not now:
            return
        yield [
            (each, each.cpus(before[identity]) if identity in before else None)
            for identity, each in now.items()
        ]
        before = now


def _usages(host: Host, names: Sequence[str]) -> dict[str, Usage]:
    found: dict[str, Usage] = {}
    for container in Container.all(host):
        chosen = not names or container.name in names
        chosen = chosen or any(container.record.id.startswith(name) for name in names)
        used = usage.read(container) if chosen else None
        if used is not None:
            found[used.id] = used
    return found


def _print(rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        for each, cpus in rows:
            output.emit(_document(each, cpus))
        return
    output.table(_HEADERS, [_cells(each, cpus) for each, cpus in rows])
    sys.stdout.flush()


def _live(measurements: Iterator[list[Row]]) -> None:
    """Redraw one table until the last one ends or Ctrl-C."""
    from rich.live import Live

    with Live(auto_refresh=False) as screen:
        for rows in measurements:
            screen.update(_table(rows), refresh=True)


def _table(rows: list[Row]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(_HEADERS):
        table.add_column(header, justify="left" if number == 0 else "right", no_wrap=True)
    for each, cpus in rows:
        table.add_row(*_cells(each, cpus))
    return table


def _cells(each: Usage, cpus: float | None) -> tuple[str, ...]:
    counted, limits = each.counted, each.limits
    return (
        each.name if each.status == "running" else f"{each.name} ({each.status})",
        "-" if cpus is None else f"{cpus:.2f}",
        "-" if not limits.cpu_quota_us else f"{_cpus(limits.cpu_quota_us, limits.cpu_period_us):g}",
        _size(counted.memory_bytes),
        _size(limits.memory_limit),
        "-" if counted.processes is None else str(counted.processes),
        "-" if limits.pids_limit is None else str(limits.pids_limit),
        f"{_size(each.received_bytes)} / {_size(each.sent_bytes)}",
        f"{_size(counted.read_bytes)} / {_size(counted.written_bytes)}",
    )


def _cpus(quota: int, period: int | None) -> float:
    return quota / (period or 100_000)


def _size(count: int | None) -> str:
    return "-" if count is None else output.size(count)


def _document(each: Usage, cpus: float | None) -> dict[str, object]:
    counted, limits = each.counted, each.limits
    quota = limits.cpu_quota_us
    return {
        "name": each.name,
        "id": each.id,
        "status": each.status,
        "cpus": None if cpus is None else round(cpus, 4),
        "cpus_limit": _cpus(quota, limits.cpu_period_us) if quota else None,
        "cpu_microseconds": counted.cpu_microseconds,
        "memory_bytes": counted.memory_bytes,
        "memory_peak_bytes": counted.memory_peak_bytes,
        "memory_limit_bytes": limits.memory_limit,
        "processes": counted.processes,
        "pids_limit": limits.pids_limit,
        "received_bytes": each.received_bytes,
        "sent_bytes": each.sent_bytes,
        "read_bytes": counted.read_bytes,
        "written_bytes": counted.written_bytes,
    }
