"""The verbs ``migrate``, ``migrations``, ``recover``, ``abandon`` and ``agent``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pymigrate.migrate import group, outgoing, output, watching
from pymigrate.migrate.amounts import bandwidth, stream_number
from pymigrate.migrate.budget import MAX_DOWNTIME, MAX_ROUNDS, Budget, NoConverge, duration
from pymigrate.migrate.journal import read
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.plan import Plan, Refusal
from pymigrate.migrate.report import Report
from pymigrate.migrate.report_page import page
from pymigrate.runtime import priority, syscalls
from pymigrate.runtime.errors import NotFound, PymigrateError, UsageError
from pymigrate.runtime.host import Host
from pymigrate.transport import stream_count
from pymigrate.transport.limit import RateLimit

AGENT_NAME = "pymigrate-agent"  # of its process


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    _add_migrate(verbs)
    _add_migrations(verbs)
    recover = verbs.add_parser(
        "recover",
        help="settle a migration that was cut short: back before its commit, forward after it",
        epilog="example: pymigrate recover (all of them)",
    )
    recover.add_argument("id", nargs="?", help="the migration; without it, every unsettled one")
    recover.set_defaults(run=recover_verb)
    abandon = verbs.add_parser(
        "abandon",
        help="run the frozen source again, after the target was lost for good",
        epilog="example: pymigrate abandon 20260102-030405-web-a1b2c3 --target-is-dead",
    )
    abandon.add_argument("id")
    abandon.add_argument(
        "--target-is-dead",
        action="store_true",
        help="you know that the target does not run it and never will: else two copies run",
    )
    abandon.set_defaults(run=abandon_verb)
    agent = verbs.add_parser(
        "agent",
        help="serve a migration, or a repository, on stdin and stdout; started over SSH",
        epilog="example: ssh root@beta pymigrate agent (nothing a person would type)",
    )
    agent.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="serve this repository of snapshots and nothing else; for a key that may do only "
        "this, put it behind command= in authorized_keys",
    )
    agent.set_defaults(run=agent_verb)


def _add_migrate(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    migrate = verbs.add_parser(
        "migrate",
        help="move a running container to another host, its connections alive",
        epilog="example: pymigrate migrate web root@beta",
    )
    migrate.add_argument(
        "name",
        metavar="NAME[,NAME...]",
        help="several move together: all stand still before one is written down, and all or none "
        "run at the target",
    )
    migrate.add_argument("destination", metavar="[USER@]HOST[:PORT]")
    add_options(migrate)
    migrate.add_argument(
        "--dry-run", action="store_true", help="compare the hosts, print the plan, touch nothing"
    )
    migrate.add_argument(
        "--report",
        metavar="FILE.json|FILE.html",
        type=Path,
        help="write the report there: as JSON, or as a page that needs no network",
    )
    migrate.set_defaults(run=migrate_verb)


def add_options(migrate: argparse.ArgumentParser) -> None:
    """Add what says how a container is moved; also for ``evacuate``."""
    migrate.add_argument(
        "--mode",
        choices=("auto", *(mode.value for mode in Mode)),
        default="auto",
        help="how memory moves: all of it while frozen (stop); in rounds while it runs, and what "
        "changed while frozen (pre); after it runs at the target, which asks for what it needs "
        "(post); rounds, and the rest after (hybrid). auto means hybrid where the target can fill "
        "memory in later, else stop",
    )
    migrate.add_argument(
        "--max-downtime",
        metavar="TIME",
        help="in modes with rounds: freeze as soon as clients are predicted to wait no longer, "
        "such as 200ms or 1.5s (default: 300ms)",
    )
    migrate.add_argument(
        "--max-rounds",
        metavar="N",
        type=int,
        default=MAX_ROUNDS,
        help=f"send memory at most so often while it runs (default: {MAX_ROUNDS})",
    )
    migrate.add_argument(
        "--on-no-converge",
        choices=[remedy.value for remedy in NoConverge],
        help="where rounds do not come below --max-downtime: slow the container down (throttle), "
        "send the rest after the target runs (post), send it frozen however long that takes "
        "(stop), or give up (abort). Default: stop in mode pre, post in hybrid",
    )
    migrate.add_argument(
        "--tcp",
        choices=("established", "close", "skip"),
        default="established",
        help="what becomes of TCP connections: kept; closed; or kept but for half-open ones",
    )
    migrate.add_argument(
        "--data",
        choices=("auto", "ssh", "tls"),
        default="auto",
        help="how memory and files go: by a TLS connection of their own where the target's ports "
        "can be reached, else by SSH (default: auto)",
    )
    migrate.add_argument(
        "--bandwidth",
        metavar="RATE",
        help="send no more than so many bits a second, such as 100mbit, by all connections "
        "together (default: as fast as it goes)",
    )
    migrate.add_argument(
        "--streams",
        metavar="N",
        help="send memory by so many TLS connections in turn, 1 to 8, so that encryption uses "
        "several processors (default: half of those of the host that has fewer, and 4 at most)",
    )
    output.add_skip(migrate)
    migrate.add_argument("--identity", metavar="FILE", help="the private key to log in with")
    migrate.add_argument("--known-hosts", metavar="FILE", help="the host keys to believe")
    migrate.add_argument("--ssh-config", metavar="FILE", help="instead of ~/.ssh/config")
    migrate.add_argument("--remote-root", metavar="DIR", help="the --root at the target")
    migrate.add_argument(
        "--remote-command",
        metavar="CMD",
        default="pymigrate",
        help="pymigrate at the target, if it is not on its PATH there",
    )


def _add_migrations(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    migrations = verbs.add_parser("migrations", help="look at migrations of the past")
    kinds = migrations.add_subparsers(metavar="ls|show")
    ls = kinds.add_parser("ls", help="list them", epilog="example: pymigrate migrations ls")
    show = kinds.add_parser(
        "show", help="print one's journal", epilog="example: pymigrate migrations show ID"
    )
    show.add_argument("id")
    show.set_defaults(run=show_verb)
    for parser in (migrations, ls):
        parser.set_defaults(run=ls_verb)


def migrate_verb(arguments: argparse.Namespace) -> int:
    """Move one container."""
    if arguments.report is not None and arguments.report.suffix not in (".json", ".html"):
        raise UsageError(
            f"{arguments.report} ends in neither .json nor .html, so it is not known what the "
            "report is to be; nothing was touched",
            hint="pymigrate migrate NAME HOST --report move.html",
        )
    if arguments.remote_root is not None and not arguments.remote_root.startswith("/"):
        raise UsageError(
            f"--remote-root {arguments.remote_root} is relative, and to what is not said: it would "
            "be another directory for each user that logs in; nothing was touched",
            hint="give it from / on, as in --remote-root /srv/pymigrate",
        )
    budget = _budget(arguments)
    limit = None if arguments.bandwidth is None else RateLimit(bandwidth(arguments.bandwidth) / 8)
    wanted_streams(arguments)
    host = Host.open(arguments.root)
    names = arguments.name.split(",")
    if len(set(names)) < len(names):
        raise UsageError(f"{arguments.name} names a container twice; nothing was touched")
    with ExitStack() as undo:
        prepared: list[outgoing.Prepared] = []
        for name in names:
            beside = [each.planned for each in prepared]
            prepared.append(_prepare(host, name, budget, limit, beside, undo, arguments))
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
    host: Host,
    name: str,
    budget: Budget,
    limit: RateLimit | None,
    beside: Sequence[Plan],
    undo: ExitStack,
    arguments: argparse.Namespace,
) -> outgoing.Prepared:
    """Open one container and compare the hosts for it; nothing is touched."""
    container = outgoing.open_movable(host, name)
    outgoing.step_aside(container)
    outgoing.check_budget(container, budget)
    attempt = outgoing.Attempt(
        host,
        outgoing.new_id(container.name),
        container.name,
        outgoing.Target(
            destination=arguments.destination,
            identity=arguments.identity,
            known_hosts=arguments.known_hosts,
            ssh_config=arguments.ssh_config,
            remote_root=arguments.remote_root,
            remote_command=arguments.remote_command,
        ),
        arguments.tcp,
        arguments.data,
        budget=budget,
        debug=arguments.debug,
        limit=limit,
        streams=wanted_streams(arguments),
    )
    skip = output.skipped(arguments)
    peer = undo.enter_context(attempt.peer())
    planned = outgoing.plan(attempt, peer, container, skip, arguments.mode, beside)
    if isinstance(planned, Refusal):
        raise planned.error()
    report = _report(attempt.migration_id, container.name, planned.target, arguments)
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


def wanted_streams(arguments: argparse.Namespace) -> int | None:
    """Read by how many connections memory is to go; UsageError where that is impossible."""
    if arguments.streams is None:
        return None
    found = stream_number(arguments.streams)
    if arguments.data == "ssh" and found > 1:
        raise UsageError(
            f"--streams {found} is about TLS connections, and --data ssh makes none; "
            "nothing was touched",
            hint="leave one of the two out",
        )
    return found


def _budget(arguments: argparse.Namespace) -> Budget:
    """Read the budget; UsageError where it would be ignored."""
    asked = [
        option
        for option, given in (
            ("--max-downtime", arguments.max_downtime is not None),
            ("--max-rounds", arguments.max_rounds != MAX_ROUNDS),
            ("--on-no-converge", arguments.on_no_converge is not None),
        )
        if given
    ]
    if asked and arguments.mode in (Mode.STOP.value, Mode.POST.value):
        raise UsageError(
            f"{asked[0]} is about rounds, and --mode {arguments.mode} has none; "
            "nothing was touched",
            hint="use --mode pre or --mode hybrid",
        )
    if arguments.max_rounds < 1:
        raise UsageError(f"--max-rounds {arguments.max_rounds}: one is the least")
    text = arguments.max_downtime
    return Budget(
        MAX_DOWNTIME if text is None else duration(text, "--max-downtime"),
        arguments.max_rounds,
        NoConverge(arguments.on_no_converge) if arguments.on_no_converge else None,
    )


def _report(migration_id: str, name: str, target: str, arguments: argparse.Namespace) -> Report:
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


def ls_verb(arguments: argparse.Namespace) -> int:
    """List migrations with what became of them."""
    host = Host.open(arguments.root)
    rows = []
    for migration_id in outgoing.all_ids(host):
        history = read(host.migrations / migration_id / "journal")
        known = history.facts()
        rows.append(
            {
                "id": migration_id,
                "name": str(known.get("name", "")),
                "role": str(known.get("role", "")),
                "state": outgoing.describe(history),
                "settled": history.settled,
            }
        )
    if arguments.json:
        output.emit(rows)
        return 0
    output.table(
        ("ID", "NAME", "THIS HOST WAS", "STATE"),
        [tuple(str(row[key]) for key in ("id", "name", "role", "state")) for row in rows],
    )
    if any(not row["settled"] and row["role"] == "source" for row in rows):
        output.progress("hint: pymigrate recover settles what is open", arguments)
    return 0


def show_verb(arguments: argparse.Namespace) -> int:
    """Print one migration's journal."""
    host = Host.open(arguments.root)
    if arguments.id not in outgoing.all_ids(host):
        raise NotFound(
            f"there is no migration {arguments.id!r} on this host", hint="pymigrate migrations ls"
        )
    history = read(host.migrations / arguments.id / "journal")
    lines = [
        {"event": line.event, "phase": line.phase.label, "facts": dict(line.facts)}
        for line in history.lines
    ]
    if arguments.json:
        output.emit({"id": arguments.id, "state": outgoing.describe(history), "lines": lines})
        return 0
    output.say(f"{arguments.id}: {outgoing.describe(history)}")
    for line in lines:
        output.say(f"  {line['event']:<12} {line['phase']:<12} {json.dumps(line['facts'])}")
    return 0


def recover_verb(arguments: argparse.Namespace) -> int:
    """Settle one migration, or all that are open; a failure of one does not stop the others."""
    host = Host.open(arguments.root)
    wanted = [arguments.id] if arguments.id else outgoing.unsettled(host)
    failed = 0
    results = []
    for migration_id in wanted:
        report = _report(migration_id, migration_id, "", arguments)
        try:
            moved = outgoing.recover(host, migration_id, report)
        except PymigrateError as error:
            if arguments.id:
                raise
            output.complain(error)
            failed = failed or error.exit_code
            continue
        results.append({"id": migration_id, "runs_at": "target" if moved else "source"})
        if not arguments.json:
            where = "at the target" if moved else "on this host"
            output.say(f"{migration_id}: settled, the container runs {where}")
    if not failed:
        outgoing.settle_groups(host)
    if arguments.json:
        output.emit(results)
    elif not wanted:
        output.say("nothing to recover")
    return failed


def abandon_verb(arguments: argparse.Namespace) -> int:
    """Run the source again, on a person's word that the target is dead."""
    if not arguments.target_is_dead:
        raise UsageError(
            "abandon runs the copy on this host again: if the target runs it too, there are two",
            hint="make sure that the target is dead, then add --target-is-dead",
        )
    outgoing.abandon(Host.open(arguments.root), arguments.id)
    if not arguments.json:
        output.say(f"{arguments.id}: abandoned, the container runs on this host")
    return 0


def agent_verb(arguments: argparse.Namespace) -> int:
    """Serve until the source hangs up."""
    from pymigrate.checkpoint.repository_directory import Directory
    from pymigrate.migrate.agent import Agent  # protobuf and pycriu are for this verb only
    from pymigrate.migrate.repository_agent import RepositoryAgent
    from pymigrate.transport.channel import stdio_channel
    from pymigrate.transport.rpc import Server

    syscalls.set_name(AGENT_NAME)
    channel = stdio_channel(peer="the source" if arguments.repository is None else "the client")
    agent: Agent | RepositoryAgent
    streams_here = stream_count.usual(priority.processors())
    if arguments.repository is None:
        priority.step_aside(os.sched_getaffinity(0))  # until somebody waits for us
        agent = Agent(Host.open(arguments.root))
    else:  # no container is touched, so this needs not be root
        agent = RepositoryAgent(Directory(arguments.repository.absolute()))
    try:
        Server(channel, agent.handlers(), streams=streams_here).serve()
    finally:
        agent.close()
    return 0
