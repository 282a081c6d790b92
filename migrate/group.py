"""Move several containers of this host together: see group_driver.py for what that promises."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from pymigrate.migrate import group_driver
from pymigrate.migrate.group_driver import Member
from pymigrate.migrate.journal import Journal
from pymigrate.migrate.outgoing import Prepared
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.steps import Move
from pymigrate.runtime.host import Host


def execute(host: Host, group_id: str, prepared: Sequence[Prepared]) -> None:
    """Move all of them; on return all run at the target. See group_driver.drive for the errors."""
    prepared = [replace(each, group=group_id) for each in prepared]
    with ExitStack() as undo:
        group = undo.enter_context(Journal.create(host.migrations / group_id / "journal"))
        group.begin(
            Phase.PLANNED,
            role="group",
            name=",".join(each.attempt.name for each in prepared),
            members=[each.attempt.migration_id for each in prepared],
        )
        moves: list[Move] = []
        members: list[Member] = []
        for each in prepared:
            # Locked until all is over: nobody recovers one of them while the others go on.
            journal = undo.enter_context(Journal.create(each.attempt.journal_path))
            move = each.begin(journal)
            move.fixed *= len(prepared)  # they are written down and restored one by one
            moves.append(move)
            attempt = each.attempt
            members.append(
                Member(attempt.name, attempt.migration_id, journal, move.steps(), each.report)
            )
        try:
            group_driver.drive(group, members)
        finally:
            for each, move, member in zip(prepared, moves, members, strict=True):
                each.tell(move, member.journal.history)
        for each, member in zip(prepared, members, strict=True):
            member.journal.note(report=each.report.to_document())
