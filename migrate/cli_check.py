"""The verbs ``check`` and ``report-bug``: what is fit, and what a maintainer must know."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.migrate import output
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import IncompatibleHosts, MissingFeature, UsageError
from pymigrate.runtime.host import Host

if TYPE_CHECKING:
    from pymigrate.checkpoint.findings import Obstacle
    from pymigrate.migrate.cpu import Tie
    from pymigrate.migrate.plan import Finding as PairFinding
    from pymigrate.runtime.features import Finding


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``check`` and ``report-bug``."""
    parser = verbs.add_parser(
        "check",
        usage="pymigrate check [NAME] [[USER@]HOST[:PORT]]",
        help="is this host fit, can this container be checkpointed, can it go to that host",
        epilog="example: pymigrate check web root@beta",
    )
    parser.add_argument("words", nargs="*", metavar="NAME HOST", help="a container; another host")
    parser.set_defaults(run=check)
    report = verbs.add_parser(
        "report-bug",
        help="collect what a maintainer needs into one file, without secrets",
        epilog="example: pymigrate report-bug web -o bug.json",
    )
    report.add_argument("name", nargs="?", metavar="NAME", help="the container it is about")
    report.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="must not exist yet"
    )
    report.set_defaults(run=report_bug)


def check(arguments: argparse.Namespace) -> int:
    """Look at everything; exit 22 if something required is missing, 21 if a pair does not fit."""
    from pymigrate.checkpoint import probe, scan
    from pymigrate.runtime import features

    words = list(arguments.words)
    if len(words) > 2 or (len(words) == 1 and "@" in words[0]):
        raise UsageError(
            f"check {' '.join(words)}: give a container, and with it a host",
            hint="pymigrate check web root@beta",
        )
    host = Host.open(arguments.root)
    container = Container.open(host, words[0]) if words else None
    found = [*features.findings(), *probe.findings()]
    begun = time.monotonic()
    obstacles = scan.scan(container) if container is not None else []
    spent = time.monotonic() - begun
    ties = _ties(container) if container is not None else []
    pair = _pair(host, container, words[1]) if container and len(words) == 2 else []
    missing = [each for each in found if each.required and not each.present]
    fatal = [each for each in obstacles if each.fatal]
    if arguments.json:
        output.emit(
            {
                "fit": not (missing or fatal or pair),
                "host": [asdict(each) for each in found],
                "container": [each.to_document() for each in obstacles],
                "scan_seconds": round(spent, 6),
                "cpu": [asdict(each) for each in ties],
                "pair": [asdict(each) for each in pair],
            }
        )
    else:
        _show(found, verbose=arguments.verbose)
        if container is not None:
            _show_obstacles(container.name, obstacles, spent)
            for tie in ties:
                output.say(f"{container.name}: {tie.seen}\n  remedy: {tie.remedy}")
        for each in pair:
            output.say(f"not to {words[1]}: {each.seen} ({each.check})\n  remedy: {each.remedy}")
    if missing or fatal:
        return MissingFeature.exit_code
    return IncompatibleHosts.exit_code if pair else 0


def report_bug(arguments: argparse.Namespace) -> int:
    """Write a report to attach to an issue; a file that only its owner may read."""
    from pymigrate.migrate import bug_report

    host = Host.open(arguments.root)
    container = Container.open(host, arguments.name) if arguments.name else None
    text = json.dumps(bug_report.collect(host, container), indent=2) + "\n"
    try:
        descriptor = os.open(arguments.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(
            f"{arguments.output} exists already; nothing was written", hint="give another name"
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    if arguments.json:
        output.emit({"file": str(arguments.output), "bytes": len(text.encode())})
    else:
        output.say(str(arguments.output))
        output.progress("read it before you attach it to an issue", arguments)
    return 0


def _ties(container: Container) -> list[Tie]:
    """Say what ties the container to this CPU: that is worth knowing, and no fault."""
    from pymigrate.migrate import cpu, facts

    features = facts.cpu_features(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return cpu.ties(container.record.cpu_baseline, features, container.cgroup.pids())


def _pair(host: Host, container: Container, destination: str) -> tuple[PairFinding, ...]:
    from pymigrate.migrate import outgoing
    from pymigrate.migrate.plan import Refusal
    from pymigrate.migrate.target import Target

    attempt = outgoing.Attempt(
        host,
        outgoing.new_id(container.name),
        container.name,
        Target(destination=destination),
        "established",
    )
    with attempt.peer() as peer:
        planned = outgoing.plan(attempt, peer, container, (), scanned=False)
    return planned.findings if isinstance(planned, Refusal) else ()


def _show(found: list[Finding], *, verbose: bool) -> None:
    rows = []
    for each in found:
        mark = "yes" if each.present else "NO" if each.required else "no"
        rows.append((mark, each.name, each.purpose, each.seen if each.present or verbose else ""))
    output.table(("HERE", "WHAT", "NEEDED FOR", "SEEN"), rows)
    absent = [each for each in found if not each.present]
    if absent:
        output.say("")
    for each in absent:
        weight = "required" if each.required else "optional"
        output.say(f"{each.name} ({weight}): {each.remedy}")


def _show_obstacles(name: str, obstacles: list[Obstacle], seconds: float) -> None:
    output.say("")
    if not any(each.fatal for each in obstacles):
        output.say(
            f"{name}: nothing was found that speaks against a checkpoint "
            f"({output.duration(seconds)})"
        )
    for each in obstacles:
        output.say(f"{name}: {each.seen} [{each.check}, {each.severity}]\n  remedy: {each.remedy}")
