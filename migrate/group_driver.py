"""Drive a group of migrations as one: all are prepared, all stand still, all are committed or none.

::

    member a   RESERVED PRECOPIED │ hold │ FROZEN SHIPPED RESTORED │          │ HANDED_OVER ... DONE
    member b   RESERVED PRECOPIED │ hold │ FROZEN SHIPPED RESTORED │          │ HANDED_OVER ... DONE
    group                                                          │ COMMITTED│

Each member has a journal of its own, as if it moved alone, but for the line COMMITTED: that of the
group's journal counts for all of them. It is written while we have every member's journal locked,
and by nobody else; so whoever gets such a lock after a crash reads there what was decided for all,
and it will not change any more. ``tests/unit/test_group_driver.py`` explores it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pymigrate.migrate import driver
from pymigrate.migrate.driver import Barrier, Observer, Step
from pymigrate.migrate.journal import History, Journal, JournalBroken
from pymigrate.migrate.phases import Phase
from pymigrate.runtime.errors import (
    MigrationError,
    MigrationInDoubt,
    PymigrateError,
    RolledBack,
    WrongState,
)


@dataclass(frozen=True)
class Member:
    """One container of the group: its own migration, with its journal open and locked."""

    name: str
    migration_id: str
    journal: Journal
    steps: Sequence[Step]
    observer: Observer

    def step(self, phase: Phase) -> Step:
        """Return the step of a phase."""
        return next(step for step in self.steps if step.phase is phase)


def drive(
    group: Journal,
    members: Sequence[Member],
    *,
    pause: Callable[[float], None] = time.sleep,
    patience: float = 30.0,
) -> None:
    """Take every member through every phase.

    Raises `RolledBack` (all run on here as before) or `MigrationInDoubt` (committed, and the target
    of one or more did not answer; the others run there).
    """
    try:
        for phase in takewhile(lambda phase: phase.may_roll_back, _stepped()):
            if phase is Phase.FROZEN:
                _hold_all(members)
            for member in members:
                driver.take(member.step(phase), member.journal, member.observer)
        with driver.interrupts_held():
            group.reach(Phase.COMMITTED)
            _go_forward(members, pause, patience)
            group.reach(Phase.DONE)
    except JournalBroken:
        raise  # nobody knows what is on disk, so none may run
    except BaseException as error:
        if group.history.reached.may_roll_back:
            with driver.interrupts_held():
                failures = _undo(members, error)
                if not any(failures.values()):
                    group.roll_back(cause=str(error) or type(error).__name__)
                _explain(members, failures, error)
        raise


def adopt(group: History, member: Journal) -> None:
    """Give a member's journal the commit that a crash kept from it; the journal is locked."""
    history = member.history
    if group.reached >= Phase.COMMITTED and history.reached.may_roll_back:
        if history.reached is not Phase.RESTORED or history.rolled_back:
            raise MigrationError(
                "the group is committed, but this container had not been restored: its journal "
                "and that of the group do not belong together",
                hint="compare both hosts with `pymigrate ps`, then settle it by hand",
            )
        member.reach(Phase.COMMITTED)


def _stepped() -> Sequence[Phase]:
    return [phase for phase in Phase if phase is not Phase.PLANNED]


def _hold_all(members: Sequence[Member]) -> None:
    """Stop them all, one right behind the other, before any is written down."""
    barriers: list[Barrier] = []
    for member in members:
        step = member.step(Phase.FROZEN)
        member.journal.begin(Phase.FROZEN, **step.facts())
        barriers.append(step)  # type: ignore[arg-type]  # the step FROZEN has it
    for member, barrier in zip(members, barriers, strict=True):
        member.observer.began(Phase.FROZEN)
        barrier.hold()


def _go_forward(members: Sequence[Member], pause: Callable[[float], None], patience: float) -> None:
    """Take all of them on, phase by phase; one that is in doubt does not keep the others."""
    doubts: dict[str, MigrationInDoubt] = {}
    for phase in _stepped():
        if phase.may_roll_back:
            continue
        for member in members:
            if member.name in doubts:
                continue
            try:
                if phase is Phase.COMMITTED:
                    driver.take(member.step(phase), member.journal, member.observer)
                else:
                    driver.insist(
                        member.name,
                        member.migration_id,
                        member.step(phase),
                        member.journal,
                        member.observer,
                        pause,
                        patience,
                    )
            except MigrationInDoubt as error:
                doubts[member.name] = error
            except (PymigrateError, OSError) as error:
                # Its own journal cannot say so, but the group's does: it is committed.
                doubts[member.name] = MigrationInDoubt(
                    f"the move of {member.name} is committed, but its journal could not be "
                    f"written: {error}; the copy here stays frozen",
                    hint=f"pymigrate recover {member.migration_id}",
                )
    if doubts:
        first, *others = doubts.values()
        for each in others:
            first.add_note(f"{each.message}; {each.hint}")
        raise first


def _undo(members: Sequence[Member], cause: BaseException) -> dict[str, dict[Phase, str]]:
    """Put every member back, newest step first; return by its name what could not be."""
    failures = {}
    for member in reversed(members):
        failed = failures[member.name] = driver.undo_all(member.journal, member.steps)
        if not failed:
            member.journal.roll_back(cause=str(cause) or type(cause).__name__)
    return failures


def _explain(
    members: Sequence[Member], failures: Mapping[str, Mapping[Phase, str]], cause: BaseException
) -> None:
    """Raise what the person should read.

    Returns only for causes that are no message for people; the caller raises those again.
    """
    half = [
        driver.half_undone(member.name, member.migration_id, failures[member.name])
        for member in members
        if Phase.FROZEN in failures[member.name]
    ]
    if half:
        for each in half[1:]:
            half[0].add_note(f"{each.message}; {each.hint}")
        raise half[0] from cause
    begun = max(member.journal.history.begun for member in members)
    if isinstance(cause, WrongState) and begun is Phase.RESERVED:
        return  # another migration has one of them: whether it runs is not ours to say
    if isinstance(cause, (PymigrateError, OSError)):
        reason, hint = str(cause), cause.hint if isinstance(cause, PymigrateError) else ""
    elif any(failures.values()):
        reason, hint = "interrupted", ""
    else:
        return
    names = ", ".join(member.name for member in members)
    rolled_back = RolledBack(f"{names}: {reason}; all of them run on here as before", hint=hint)
    for member in members:
        for phase, failure in failures[member.name].items():
            rolled_back.add_note(
                f"{member.name}: not put back ({phase.label}): {failure}; when the target answers "
                f"again: pymigrate recover {member.migration_id}"
            )
    raise rolled_back from cause
