"""The verbs ``migrations``, ``recover`` and ``abandon``: what became of moves."""

from __future__ import annotations

import argparse
import json

from pymigrate.migrate import moving, outgoing, output
from pymigrate.migrate.journal import read
from pymigrate.runtime.errors import NotFound, PymigrateError, UsageError
from pymigrate.runtime.host import Host


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
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
        report = moving.report_of(migration_id, migration_id, "", arguments)
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
