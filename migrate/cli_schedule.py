"""The verb ``schedule`` and its actions."""

from __future__ import annotations

import argparse
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.migrate import output
from pymigrate.migrate.cli_snapshot import add_repository, add_rules, policy
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymigrate.migrate.run_history import Run
    from pymigrate.migrate.schedule import Schedule, Schedules


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``schedule``."""
    parser = verbs.add_parser(
        "schedule",
        help="make snapshots at times, by cron",
        epilog='example: pymigrate schedule add web "*/10 * * * *" --keep-last 6 --keep-daily 7',
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(
        name: str, function: Callable[[argparse.Namespace], int], text: str, example: str = ""
    ) -> argparse.ArgumentParser:
        added = actions.add_parser(
            name, help=text, epilog=f"example: pymigrate schedule {name} {example}".rstrip()
        )
        added.set_defaults(run=function)
        return added

    adding = action(
        "add",
        add,
        "have a container's snapshots made by cron; again: change what was said before",
        'web "*/10 * * * *" --keep-last 6 --keep-daily 7',
    )
    adding.add_argument("name", metavar="NAME", help="the container")
    adding.add_argument("expression", metavar="WHEN", help="five fields, or @hourly; crontab(5)")
    add_repository(adding)
    add_rules(adding)
    adding.add_argument(
        "--jitter",
        type=int,
        default=0,
        metavar="SECONDS",
        help="begin up to so much later, at random (default: 0)",
    )
    adding.add_argument(
        "--pre",
        metavar="COMMAND",
        help="run this first, without a shell; if it fails, so does the run",
    )
    adding.add_argument(
        "--post",
        metavar="COMMAND",
        help="run this at the end, also of a run that failed: $PYMIGRATE_RESULT says ok, failed or "
        "skipped; $PYMIGRATE_CONTAINER, $PYMIGRATE_SNAPSHOT, $PYMIGRATE_ERROR",
    )
    adding.add_argument(
        "--on-failure",
        metavar="COMMAND",
        help="run this at the end of a run that failed or was skipped; told as much as --post",
    )
    adding.add_argument(
        "--webhook",
        type=Path,
        metavar="FILE",
        help="post a run that failed or was skipped, as JSON, to the address that this file has",
    )
    adding.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE.prom",
        help="keep this file for Prometheus' node_exporter (textfile collector)",
    )
    output.add_skip(adding)
    adding.add_argument(
        "--systemd", action="store_true", help="by a timer of systemd, not by cron's crontab"
    )
    action("ls", ls, "list schedules, and how the last run of each went")
    for name, function, text in (
        ("show", show, "show one"),
        ("rm", rm, "end one; its snapshots stay"),
        ("history", history, "list its runs, the oldest first"),
    ):
        action(name, function, text, "web").add_argument("name", metavar="NAME", help="whose")
    running = action("run", run, "make a snapshot now, as cron does, and apply the rules", "web")
    running.add_argument("name", metavar="NAME", help="whose")


def _schedules(arguments: argparse.Namespace) -> Schedules:
    from pymigrate.migrate.schedule import Schedules

    return Schedules(Host.open(arguments.root))


def add(arguments: argparse.Namespace) -> int:
    """Keep a schedule and its line in the crontab."""
    from pymigrate.checkpoint import scan
    from pymigrate.migrate import crontabs, snapshots
    from pymigrate.migrate.run_report import parse_command, read_address
    from pymigrate.migrate.schedule import MAX_JITTER, Schedule, program

    if not 0 <= arguments.jitter <= MAX_JITTER:
        raise UsageError(f"--jitter {arguments.jitter}: from 0 to {MAX_JITTER} seconds")
    if arguments.webhook is not None:
        read_address(arguments.webhook)
    scan.check_names(output.skipped(arguments))
    schedules = _schedules(arguments)
    # Cron's run has another environment: what names the secret now is written down.
    named = arguments.key_file or os.environ.get(snapshots.PASSPHRASE)
    key_file = str(Path(named).absolute()) if named else None
    snapshots.read_secret(arguments.key_file)
    where = arguments.repo and snapshots.location(schedules.host, arguments.repo)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    schedule = Schedule(
        name=arguments.name,
        expression=crontabs.check(arguments.expression),
        repository=where,
        key_file=key_file,
        policy=policy(arguments),
        jitter=arguments.jitter,
        before=parse_command(arguments.pre, "--pre") if arguments.pre else (),
        after=parse_command(arguments.post, "--post") if arguments.post else (),
        on_failure=(
            parse_command(arguments.on_failure, "--on-failure") if arguments.on_failure else ()
        ),
        webhook=str(arguments.webhook.absolute()) if arguments.webhook else None,
        metrics=str(arguments.metrics.absolute()) if arguments.metrics else None,
        systemd=arguments.systemd,
        created=now,
        since=now,
        skip=output.skipped(arguments),
    )
    changed = schedules.add(schedule, program(schedules.host))
    if arguments.json:
        output.emit({**_document(schedules, schedule), "changed": changed})
    else:
        output.say(schedule.name)
        what = "will be made" if changed else "were scheduled so already"
        output.progress(f"snapshots of {schedule.name} {what}: {schedule.expression}", arguments)
    return 0


def _document(schedules: Schedules, schedule: Schedule) -> dict[str, object]:
    runs = schedules.history(schedule.name)
    absent = [run.started for run in runs if run.is_missed]
    runs = [run for run in runs if not run.is_missed]
    return {
        "name": schedule.name,
        "when": schedule.expression,
        "repository": schedule.repository or str(schedules.host.root / "snapshots"),
        "key_file": schedule.key_file,
        "keep": schedule.policy.to_document(),
        "jitter": schedule.jitter,
        "pre": shlex.join(schedule.before) or None,
        "post": shlex.join(schedule.after) or None,
        "on_failure": shlex.join(schedule.on_failure) or None,
        "webhook": schedule.webhook,
        "metrics": schedule.metrics,
        "systemd": schedule.systemd,
        "skip": ",".join(schedule.skip) or None,
        "created": schedule.created,
        "installed": schedules.is_installed(schedule.name),
        "runs": len(runs),
        "failures_in_a_row": _failures(runs),
        "missed": len(absent),
        "last_missed": absent[-1] if absent else None,
        "last": runs[-1].to_document() if runs else None,
    }


def _failures(runs: list[Run]) -> int:
    count = 0
    for one in reversed(runs):
        if one.result == "ok":
            break
        count += one.result == "failed"
    return count


def _result(runs: list[Run]) -> str:
    if not runs:
        return "not run yet"
    last = runs[-1]
    if last.result == "ok":
        return "ok"
    again = _failures(runs)
    times = f" {again} times" if again > 1 else ""
    return f"{last.result}{times}: {last.error}"


def ls(arguments: argparse.Namespace) -> int:
    """List schedules with the result of their last run."""
    schedules = _schedules(arguments)
    found = [schedules.get(name) for name in schedules.names()]
    if arguments.json:
        output.emit([_document(schedules, one) for one in found])
        return 0
    rows = []
    for one in found:
        runs = schedules.history(one.name)
        absent = [run for run in runs if run.is_missed]
        runs = [run for run in runs if not run.is_missed]
        result = _result(runs)
        if absent:
            when = absent[-1].started.replace("T", " ").rstrip("Z")
            result = f"missed {len(absent)} runs, the last at {when}; {result}"
        if not schedules.is_installed(one.name):
            what = "timer is not enabled" if one.systemd else "line is not in the crontab"
            result = f"its {what}; {result}"
        last = runs[-1].started.replace("T", " ").rstrip("Z") if runs else "-"
        rows.append((one.name, one.expression, last, result))
    output.table(("NAME", "WHEN", "LAST RUN", "RESULT"), rows)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Show one schedule."""
    schedules = _schedules(arguments)
    details = _document(schedules, schedules.get(arguments.name))
    if arguments.json:
        output.emit(details)
        return 0
    rules = details.pop("keep")
    last = details.pop("last")
    for name, value in details.items():
        output.say(f"{name.replace('_', ' ') + ':':20} {'-' if value is None else value}")
    if isinstance(rules, dict):
        kept = ", ".join(f"{count} {name}" for name, count in rules.items() if count)
        output.say(f"{'keep:':20} {kept or 'everything'}")
    if isinstance(last, dict):
        output.say(f"{'last run:':20} {last['started']}, {last['error'] or last['result']}")
    return 0


def rm(arguments: argparse.Namespace) -> int:
    """End a schedule."""
    _schedules(arguments).remove(arguments.name)
    if arguments.json:
        output.emit({"removed": arguments.name})
    else:
        output.say(arguments.name)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Make a snapshot now."""
    done = _schedules(arguments).run(arguments.name, debug=arguments.debug)
    if arguments.json:
        output.emit(done.to_document())
        return 0
    output.progress(
        f"{arguments.name}: snapshot {done.snapshot[:8]}, {output.size(done.new_bytes)} new, "
        f"stood still for {output.duration(done.frozen_seconds)}; {done.removed} older ones "
        f"forgotten, {output.size(done.freed_bytes)} freed",
        arguments,
    )
    return 0


def history(arguments: argparse.Namespace) -> int:
    """List the runs of a schedule; with --json, an object a line."""
    runs = _schedules(arguments).history(arguments.name)
    if arguments.json:
        for one in runs:
            output.emit(one.to_document())
        return 0
    rows = [
        (
            one.started.replace("T", " ").rstrip("Z"),
            output.duration(one.seconds),
            output.duration(one.frozen_seconds),
            output.size(one.new_bytes),
            str(one.removed),
            one.snapshot[:8] or "-",
            one.error or one.result,
        )
        for one in runs
    ]
    headers = ("STARTED", "TOOK", "PAUSE", "NEW", "FORGOTTEN", "SNAPSHOT", "RESULT")
    output.table(headers, rows)
    return 0
