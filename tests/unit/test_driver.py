"""The driver's promises, explored: every phase, before and after its effect, error or crash."""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate.driver import drive, recover
from pymigrate.migrate.journal import Journal, read
from pymigrate.migrate.phases import Phase
from pymigrate.runtime.errors import (
    MigrationError,
    MigrationInDoubt,
    RolledBack,
    TransportError,
    Unreachable,
)

STEPPED = [phase for phase in Phase if phase is not Phase.PLANNED]
FAULTS = ("error", "crash", "lost answer")
MOMENTS = ("before", "after")


class Crash(BaseException):
    """The process is gone: nothing it would do afterwards happens."""


@dataclass
class World:
    """Two hosts and one container; asserts at every change that not both copies run."""

    source: str = "running"
    target: str = "absent"
    dead: bool = False
    faults: dict[tuple[Phase, str], str] = field(default_factory=dict)
    undo_fault: Phase | None = None

    def change(self, *, source: str | None = None, target: str | None = None) -> None:
        self.source = source or self.source
        self.target = target or self.target

        assert not (self.source == "running" and self.target == "running")

    def strike(self, phase: Phase, moment: str) -> None:
        self.breathe()
        fault = self.faults.pop((phase, moment), None)
        if fault == "crash":
            self.dead = True
            raise Crash
        if fault == "error":
            raise TransportError(f"no luck {moment} {phase.label}")
        if fault == "lost answer":
            raise Unreachable(f"nothing heard {moment} {phase.label}")

    def breathe(self) -> None:
        if self.dead:
            raise Crash


@dataclass
class ModelStep:
    """What the real step of a phase does to the world, without the world."""

    phase: Phase
    world: World

    def facts(self) -> Mapping[str, object]:
        self.world.breathe()
        return {"for": self.phase.label}

    def do(self) -> Mapping[str, object]:
        self.world.strike(self.phase, "before")
        if self.phase is Phase.FROZEN:
            self.world.change(source="frozen")
        elif self.phase is Phase.RESTORED:
            self.world.change(target="held")
        elif self.phase is Phase.HANDED_OVER:
            self.world.change(target="running")
        elif self.phase is Phase.DONE:
            self.world.change(source="gone")
        self.world.strike(self.phase, "after")
        return {}

    def undo(self) -> None:
        self.world.breathe()
        if self.world.undo_fault is self.phase:
            self.world.undo_fault = None
            raise OSError(5, "cannot undo")
        if self.phase is Phase.FROZEN:
            self.world.change(source="running")
        elif self.phase is Phase.RESERVED:
            self.world.change(target="absent")


class Silent:
    """Watches and says nothing."""

    def began(self, phase: Phase) -> None: ...

    def reached(self, phase: Phase, seconds: float) -> None: ...


def at_once(_: float) -> None:
    """Wait for nothing."""


def run(world: World, path: Path, *, fresh: bool) -> str:
    """One life of the command: how it ended."""
    journal = Journal.create(path) if fresh else Journal.open_existing(path)
    steps = [ModelStep(phase, world) for phase in STEPPED]
    with journal:
        try:
            if fresh:
                drive("web", "m1", journal, steps, Silent(), pause=at_once, patience=0.0)
            else:
                recover("web", "m1", journal, steps, Silent(), pause=at_once, patience=0.0)
        except Crash:
            world.dead = False
            return "crashed"
        except RolledBack:
            return "rolled back"
        except MigrationInDoubt:
            return "in doubt"
        except MigrationError:
            return "half undone"
    return "settled"


def running(world: World) -> int:
    return [world.source, world.target].count("running")


@pytest.mark.parametrize(
    ("phase", "moment", "fault"), list(itertools.product(STEPPED, MOMENTS, FAULTS))
)
def test_one_fault_anywhere_leaves_exactly_one_running(
    tmp_path: Path, phase: Phase, moment: str, fault: str
) -> None:
    world = World(faults={(phase, moment): fault})
    path = tmp_path / "m1" / "journal"

    ending = run(world, path, fresh=True)
    if ending in ("crashed", "in doubt"):
        assert run(world, path, fresh=False) == "settled"

    assert running(world) == 1
    assert world.target != "held"
    assert read(path).settled
    # The commit is the line itself, and a fault at COMMITTED strikes before it is written.
    survivor = world.source if phase <= Phase.COMMITTED else world.target
    assert survivor == "running"


@given(
    strikes=st.lists(
        st.tuples(st.sampled_from(STEPPED), st.sampled_from(MOMENTS), st.sampled_from(FAULTS)),
        max_size=7,
    ),
    undo_fault=st.none() | st.sampled_from([p for p in STEPPED if p.may_roll_back]),
    torn=st.lists(st.binary(max_size=30), max_size=7),
)
def test_many_faults_in_a_row_never_run_two_and_recover_ends_with_one(
    strikes: list[tuple[Phase, str, str]], undo_fault: Phase | None, torn: list[bytes]
) -> None:
    world = World(undo_fault=undo_fault)
    pending = list(strikes)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "m1" / "journal"
        fresh = True
        for _ in range(len(strikes) + 3):
            if pending:
                phase, moment, fault = pending.pop(0)
                world.faults = {(phase, moment): fault}
            ending = run(world, path, fresh=fresh)
            fresh = False
            if ending == "crashed" and torn:
                with path.open("ab") as journal:
                    journal.write(torn.pop().replace(b"\n", b" "))
            if read(path).settled:
                break
        world.faults = {}
        run(world, path, fresh=False)

        assert read(path).settled
        assert running(world) == 1
        assert world.target != "held"


def test_a_commit_that_cannot_be_written_rolls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk full at the very line that decides: the line is not there, so the source runs."""
    world = World()
    path = tmp_path / "m1" / "journal"
    real_reach = Journal.reach

    def reach(self: Journal, phase: Phase, **facts: object) -> None:
        if phase is Phase.COMMITTED:
            raise MigrationError("cannot write the journal")
        real_reach(self, phase, **facts)

    monkeypatch.setattr(Journal, "reach", reach)

    assert run(world, path, fresh=True) == "rolled back"
    assert (world.source, world.target) == ("running", "absent")


def test_our_own_mistakes_do_not_leave_the_container_frozen(tmp_path: Path) -> None:
    world = World()
    steps = [ModelStep(phase, world) for phase in STEPPED]

    class Buggy(ModelStep):
        def do(self) -> Mapping[str, object]:
            raise KeyError("a mistake of ours")

    steps[STEPPED.index(Phase.SHIPPED)] = Buggy(Phase.SHIPPED, world)
    with Journal.create(tmp_path / "m1" / "journal") as journal, pytest.raises(KeyError):
        drive("web", "m1", journal, steps, Silent())

    assert world.source == "running"
    assert read(tmp_path / "m1" / "journal").rolled_back


class Interrupting(Silent):
    """Sends its own process a signal at a given moment, as Ctrl-C does."""

    def __init__(self, phase: Phase, event: str, number: signal.Signals) -> None:
        self.moment = (phase, event)
        self.number = number

    def began(self, phase: Phase) -> None:
        self.strike(phase, "began")

    def reached(self, phase: Phase, seconds: float) -> None:
        self.strike(phase, "reached")

    def strike(self, phase: Phase, event: str) -> None:
        if (phase, event) == self.moment:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have SIGINT raise, also where the tests are run in the background of a shell script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("event", ["began", "reached"])
@pytest.mark.parametrize("phase", STEPPED)
def test_interrupts_roll_back_before_the_commit_and_wait_after_it(
    tmp_path: Path, phase: Phase, event: str
) -> None:
    world = World()
    steps = [ModelStep(each, world) for each in STEPPED]
    observer = Interrupting(phase, event, signal.SIGINT)
    path = tmp_path / "m1" / "journal"
    with Journal.create(path) as journal:
        if phase < Phase.COMMITTED:
            with pytest.raises(KeyboardInterrupt):
                drive("web", "m1", journal, steps, observer)
        else:
            drive("web", "m1", journal, steps, observer)

    assert read(path).settled
    if phase < Phase.COMMITTED:
        assert (world.source, world.target) == ("running", "absent")
    else:
        assert (world.source, world.target) == ("gone", "running")


@pytest.mark.parametrize("phase", STEPPED)
def test_an_observer_that_fails_cannot_undo_the_commit(tmp_path: Path, phase: Phase) -> None:
    class Failing(Silent):
        def reached(self, reached: Phase, seconds: float) -> None:
            if reached is phase:
                raise BrokenPipeError(32, "nobody reads the progress")

    world = World()
    steps = [ModelStep(each, world) for each in STEPPED]
    path = tmp_path / "m1" / "journal"
    with Journal.create(path) as journal, pytest.raises((BrokenPipeError, RolledBack)):
        drive("web", "m1", journal, steps, Failing())
    if phase >= Phase.COMMITTED:
        run(world, path, fresh=False)

    assert running(world) == 1


def test_failed_undo_is_told_and_can_be_tried_again(tmp_path: Path) -> None:
    world = World(faults={(Phase.SHIPPED, "after"): "error"}, undo_fault=Phase.FROZEN)
    path = tmp_path / "m1" / "journal"

    assert run(world, path, fresh=True) == "half undone"
    assert not read(path).settled
    assert run(world, path, fresh=False) == "settled"
    assert running(world) == 1


def test_journal_lines_are_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "m1" / "journal"
    run(World(), path, fresh=True)

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["phase"] for line in lines if line["event"] == "reach"] == [
        phase.label for phase in STEPPED
    ]
