"""Drive a migration: forward, back, or on from where a crash left it.

The driver knows phases and the journal and nothing of containers or networks. Its promises, which
``tests/unit/test_driver.py`` explores case by case:

* at no instant may both sides run, since only the step HANDED_OVER lets the target run and only
  after the commit line is on disk, and only ``undo`` lets the source run and only while it is not;
* when `drive` or `recover` has ended without `MigrationInDoubt`, exactly one side runs.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from pymigrate.migrate.journal import Journal, JournalBroken
from pymigrate.migrate.phases import Phase
from pymigrate.runtime.errors import (
    MigrationError,
    MigrationInDoubt,
    PymigrateError,
    RolledBack,
    WrongState,
)

Facts = Mapping[str, object]


class Step(Protocol):
    """The work towards one phase. ``do`` and ``undo`` may each be repeated without harm."""

    phase: Phase

    def facts(self) -> Facts:
        """Return what undo will need after a crash; written to the journal before ``do``."""
        ...

    def do(self) -> Facts:
        """Reach the phase; the result goes into the journal and the report."""
        ...

    def undo(self) -> None:
        """Take the effects back, also those of a ``do`` that got half-way or never began."""
        ...


class Barrier(Step, Protocol):
    """The step FROZEN of a member of a group, which stands still before it is written down."""

    def hold(self) -> None:
        """Stop the container; ``do`` writes it down. ``undo`` takes back both."""
        ...


class Observer(Protocol):
    """Somebody who watches, such as a progress bar or a test that kills us at a given point."""

    def began(self, phase: Phase) -> None:
        """Work towards `phase` starts now."""
        ...

    def reached(self, phase: Phase, seconds: float) -> None:
        """`phase` is reached and on disk."""
        ...


def drive(
    name: str,
    migration_id: str,
    journal: Journal,
    steps: Sequence[Step],
    observer: Observer,
    *,
    pause: Callable[[float], None] = time.sleep,
    patience: float = 30.0,
) -> None:
    """Take every step; on failure roll back before the commit, and insist after it.

    Raises `RolledBack` (the source runs on as before) or `MigrationInDoubt` (committed, and the
    target did not answer within `patience` seconds: the source stays frozen).
    """
    reached = journal.history.reached
    ahead = [step for step in steps if step.phase > reached or not journal.history.lines]
    try:
        for step in ahead:
            if step.phase.may_roll_back:
                take(step, journal, observer)
        with interrupts_held():
            for step in ahead:
                if step.phase is Phase.COMMITTED:
                    take(step, journal, observer)
                elif not step.phase.may_roll_back:
                    insist(name, migration_id, step, journal, observer, pause, patience)
    except JournalBroken:
        # Nobody knows whether the commit is on disk, so neither side may run.
        raise
    except BaseException as error:
        # Also for Ctrl-C, wherever it strikes, and for our own mistakes: a container must not stay
        # frozen for those. Only the journal says whether there is a way back.
        if journal.history.reached.may_roll_back:
            with interrupts_held():
                _roll_back(name, migration_id, journal, steps, error)
        raise


def recover(
    name: str,
    migration_id: str,
    journal: Journal,
    steps: Sequence[Step],
    observer: Observer,
    *,
    pause: Callable[[float], None] = time.sleep,
    patience: float = 30.0,
) -> bool:
    """Settle what a crash left: back before the commit, forward after it.

    Returns true where the migration was completed, false where it was rolled back.
    """
    history = journal.history
    if history.settled:
        return not history.rolled_back
    if not history.reached.may_roll_back:
        drive(name, migration_id, journal, steps, observer, pause=pause, patience=patience)
        return True
    failures = undo_all(journal, steps)
    if failures:
        raise half_undone(name, migration_id, failures)
    journal.roll_back()
    return False


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: around the commit an interrupt must not look like a failure.

    Signal masks would not do, since another thread (paramiko's) takes the signal then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def take(step: Step, journal: Journal, observer: Observer) -> None:
    """Take one step, between its two lines in the journal."""
    observer.began(step.phase)
    started = time.monotonic()
    _write_and_do(step, journal)
    observer.reached(step.phase, time.monotonic() - started)


def _write_and_do(step: Step, journal: Journal) -> None:
    journal.begin(step.phase, **step.facts())
    journal.reach(step.phase, **step.do())


def insist(
    name: str,
    migration_id: str,
    step: Step,
    journal: Journal,
    observer: Observer,
    pause: Callable[[float], None],
    patience: float,
) -> None:
    """Take a step behind the commit: it cannot be refused, only be late."""
    deadline = time.monotonic() + patience
    delay = 0.05
    observer.began(step.phase)
    started = time.monotonic()
    while True:
        try:
            _write_and_do(step, journal)
        except (PymigrateError, OSError) as error:
            temporary = isinstance(error, PymigrateError) and error.temporary
            if not temporary or time.monotonic() + delay > deadline:
                raise _in_doubt(name, migration_id, step.phase, error) from error
        else:
            break
        pause(delay)
        delay = min(delay * 2, 2.0)
    observer.reached(step.phase, time.monotonic() - started)


def _in_doubt(name: str, migration_id: str, phase: Phase, error: Exception) -> MigrationInDoubt:
    if phase is Phase.DONE:
        return MigrationInDoubt(
            f"{name} runs on the target, but the frozen copy here could not be removed: {error}",
            hint=f"pymigrate recover {migration_id}",
        )
    return MigrationInDoubt(
        f"the move of {name} is committed, but the target did not confirm that it runs: {error}; "
        "the copy here stays frozen",
        hint=f"when the target answers again: pymigrate recover {migration_id}; if it is lost for "
        f"good: pymigrate abandon {migration_id} --target-is-dead",
    )


def _roll_back(
    name: str,
    migration_id: str,
    journal: Journal,
    steps: Sequence[Step],
    cause: BaseException,
) -> None:
    """Undo every step that began, newest first, and raise what the person should read.

    Returns only for causes that are no message for people; the caller raises those again.
    """
    failures = undo_all(journal, steps)
    if Phase.FROZEN in failures:
        raise half_undone(name, migration_id, failures) from cause
    if not failures:
        journal.roll_back(cause=str(cause) or type(cause).__name__)
    if isinstance(cause, WrongState) and journal.history.begun is Phase.RESERVED:
        return  # another migration has it: whether it runs is not ours to say
    if isinstance(cause, (PymigrateError, OSError)):
        hint = cause.hint if isinstance(cause, PymigrateError) else ""
        rolled_back = RolledBack(f"{name}: {cause}; it runs on here as before", hint=hint)
    elif failures:
        rolled_back = RolledBack(f"{name}: interrupted; it runs on here as before")
    else:
        return
    for phase, failure in failures.items():
        # What is left at the target never runs by itself; it only takes up room and the name.
        rolled_back.add_note(
            f"not put back ({phase.label}): {failure}; when the target answers again: "
            f"pymigrate recover {migration_id}"
        )
    raise rolled_back from cause


def undo_all(journal: Journal, steps: Sequence[Step]) -> dict[Phase, str]:
    """Undo what began, newest first; one failure does not keep the others from being undone."""
    begun = journal.history.begun
    failures: dict[Phase, str] = {}
    for step in reversed(steps):
        if step.phase > begun or not step.phase.may_roll_back:
            continue
        try:
            step.undo()
        except (PymigrateError, OSError) as error:
            failures[step.phase] = str(error)
    return failures


def half_undone(name: str, migration_id: str, failures: Mapping[Phase, str]) -> MigrationError:
    """Return the error for a container that may still be frozen here, though it is given up."""
    left = "; ".join(f"{phase.label}: {failure}" for phase, failure in failures.items())
    return MigrationError(
        f"the move of {name} was given up, but not everything could be put back ({left}); the "
        "target has not run it and will not",
        hint=f"pymigrate recover {migration_id}",
    )
