"""Move containers as the command line asks: plan, do, show. What it takes is loaded here."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack

from pymigrate.migrate import group, outgoing, output, watching
from pymigrate.migrate.budget import Budget
from pymigrate.migrate.peer import Peer
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.plan import Plan, Refusal
from pymigrate.migrate.report import Report
from pymigrate.migrate.report_page import page
from pymigrate.migrate.target import Logins
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from pymigrate.transport.limit import RateLimit


def move(
    host: Host,
    containers: Sequence[Container],
    logins: Logins,
    budget: Budget,
    limit: RateLimit | None,
    streams: int | None,
    arguments: argparse.Namespace,
) -> int:
    """Move them, several together; ``limit`` is for all connections, ``streams`` for memory's."""
    with ExitStack() as undo:
        prepared: list[outgoing.Prepared] = []
        for container in containers:
            outgoing.check_budget(container, budget)
            attempt = outgoing.Attempt(
                host,
                outgoing.new_id(container.name),
                container.name,
                logins.target,
                arguments.tcp,
                arguments.data,
                budget=budget,
                debug=arguments.debug,
                limit=limit,
                streams=streams,
                logins=logins,
            )
            peer = undo.enter_context(attempt.peer())
            beside = [each.planned for each in prepared]
            prepared.append(_prepare(attempt, peer, container, beside, arguments))
        if arguments.dry_run:
            _show_plans([each.planned for each in prepared], arguments)
            return 0
        reports = [each.report for each in prepared]
        try:
            with watching.watched(reports, arguments):
                if len(prepared) == 1:
                    outgoing.execute(prepared[0])
                else:
                    group.execute(host, outgoing.new_id("group"), prepared)
        finally:
            if arguments.report is not None:
                arguments.report.write_text(_written(reports, arguments.report.suffix))
    for report in reports:
        _show_report(report, arguments)
    if arguments.json:
        output.emit(_document(reports))
    return 0


def _prepare(
    attempt: outgoing.Attempt,
    peer: Peer,
    container: Container,
    beside: Sequence[Plan],
    arguments: argparse.Namespace,
) -> outgoing.Prepared:
    """Compare the hosts for one container; nothing is touched."""
    skip = output.skipped(arguments)
    planned = outgoing.plan(attempt, peer, container, skip, arguments.mode, beside)
    if isinstance(planned, Refusal):
        raise planned.error()
    report = report_of(attempt.migration_id, container.name, planned.target, arguments)
    report.mode = planned.mode.value
    if arguments.max_downtime is not None and not planned.mode.has_rounds:
        output.progress(
            f"{container.name}: mode {planned.mode.value} has no rounds: --max-downtime is not "
            "kept to",
            arguments,
        )
    if attempt.streams is not None and not planned.lazy:
        output.progress(
            f"{container.name}: in mode {planned.mode.value} memory goes with the files: --streams "
            "is not kept to",
            arguments,
        )
    return outgoing.Prepared(attempt, planned, peer, container, report)


def report_of(migration_id: str, name: str, target: str, arguments: argparse.Namespace) -> Report:
    """Make the report of one move, which tells of it as the command line asks."""

    def observed(phase: Phase, seconds: float) -> None:
        if arguments.json:
            reached = {"event": "reached", "name": name, "phase": phase.label}
            output.event({**reached, "seconds": round(seconds, 4)}, arguments)

    return Report(
        migration_id,
        name,
        os.uname().nodename,
        target,
        "stop",
        announce=lambda text: output.progress(text, arguments),
        observed=observed,
    )


def _document(reports: Sequence[Report]) -> dict[str, object]:
    """Return the report; of a group, one that holds those of its members."""
    if len(reports) == 1:
        return reports[0].to_document()
    return {"group": reports[0].group, "containers": [each.to_document() for each in reports]}


def _written(reports: Sequence[Report], suffix: str) -> str:
    if suffix == ".html":
        return page([each.to_document() for each in reports])
    return json.dumps(_document(reports), indent=2) + "\n"


def _show_plans(plans: Sequence[Plan], arguments: argparse.Namespace) -> None:
    if arguments.json:
        documents = [planned.to_document() for planned in plans]
        output.emit(documents[0] if len(documents) == 1 else documents)
        return
    for planned in plans:
        output.say(f"{planned.name} can move from {planned.source} to {planned.target}:")
        output.say(f"  memory {output.size(planned.memory)}, files {output.size(planned.files)}")
        output.say(f"  mode {planned.mode.value}")
        for finding in planned.skipped:
            output.say(f"  skipped [{finding.check}]: {finding.seen}")
        for note in planned.notes:
            output.say(f"  note: {note}")
        output.say(f"  looked at in {output.duration(planned.scan_seconds)}")
    output.say("nothing was touched")


def _show_report(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.json:
        return
    blackout = report.blackout_seconds
    waited = f", clients waited about {output.duration(blackout)}" if blackout is not None else ""
    if waited and report.predicted is not None:
        waited += f" ({output.duration(report.predicted.blackout)} predicted)"
    output.say(
        f"{report.name} runs on {report.target}: {output.size(report.wire_bytes)} sent in "
        f"{output.duration(report.seconds)}{waited}"
    )
