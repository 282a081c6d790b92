"""Several containers that move as one: whatever strikes, all are here or all are there, once."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate import driver, group_driver
from pymigrate.migrate.group_driver import Member
from pymigrate.migrate.journal import Journal, read
from pymigrate.migrate.phases import Phase
from pymigrate.runtime.errors import (
    MigrationError,
    MigrationInDoubt,
    RolledBack,
    TransportError,
    Unreachable,
)

NAMES = ("a", "b", "c")
STEPPED = [phase for phase in Phase if phase is not Phase.PLANNED]
MOMENTS = ("before", "after")
FAULTS = ("error", "crash", "lost answer")
Strike = tuple[str, Phase, str]


class Crash(BaseException):
    """The process is gone: nothing it would do afterwards happens."""


@dataclass
class World:
    """Two hosts and the containers of a group; asserts that no container runs twice."""

    source: dict[str, str] = field(default_factory=lambda: dict.fromkeys(NAMES, "running"))
    target: dict[str, str] = field(default_factory=lambda: dict.fromkeys(NAMES, "absent"))
    dead: bool = False
    faults: dict[Strike, str] = field(default_factory=dict)
    undo_fault: tuple[str, Phase] | None = None

    def change(self, name: str, *, source: str = "", target: str = "") -> None:
        self.source[name] = source or self.source[name]
        self.target[name] = target or self.target[name]

        assert not (self.source[name] == "running" and self.target[name] == "running")
        if target == "running":
            assert "running" not in self.source.values()  # nobody here speaks to somebody there

    def strike(self, name: str, phase: Phase, moment: str) -> None:
        self.breathe()
        fault = self.faults.pop((name, phase, moment), None)
        if fault == "crash":
            self.dead = True
            raise Crash
        if fault == "error":
            raise TransportError(f"no luck {moment} {phase.label} of {name}")
        if fault == "lost answer":
            raise Unreachable(f"nothing heard {moment} {phase.label} of {name}")

    def breathe(self) -> None:
        if self.dead:
            raise Crash


@dataclass
class ModelStep:
    """What the real step of a phase does to the world, without the world."""

    phase: Phase
    name: str
    world: World

    def facts(self) -> Mapping[str, object]:
        self.world.breathe()
        return {"for": self.phase.label}

    def hold(self) -> None:
        self.world.strike(self.name, self.phase, "hold")
        self.world.change(self.name, source="frozen")

    def do(self) -> Mapping[str, object]:
        world = self.world
        world.strike(self.name, self.phase, "before")
        if self.phase is Phase.FROZEN:
            assert set(world.source.values()) == {"frozen"}  # all of them, before any is dumped
        elif self.phase is Phase.RESTORED:
            world.change(self.name, target="held")
        elif self.phase is Phase.HANDED_OVER:
            world.change(self.name, target="running")
        elif self.phase is Phase.DONE:
            world.change(self.name, source="gone")
        world.strike(self.name, self.phase, "after")
        return {}

    def undo(self) -> None:
        self.world.breathe()
        if self.world.undo_fault == (self.name, self.phase):
            self.world.undo_fault = None
            raise OSError(5, "cannot undo")
        if self.phase is Phase.FROZEN:
            self.world.change(self.name, source="running")
        elif self.phase is Phase.RESERVED:
            self.world.change(self.name, target="absent")


class Silent:
    """Watches and says nothing."""

    def began(self, phase: Phase) -> None: ...

    def reached(self, phase: Phase, seconds: float) -> None: ...


def at_once(_: float) -> None:
    """Wait for nothing."""


def paths(root: Path) -> dict[str, Path]:
    return {name: root / name / "journal" for name in ("group", *NAMES)}


def steps(world: World, name: str) -> list[ModelStep]:
    return [ModelStep(phase, name, world) for phase in STEPPED]


def begin(world: World, root: Path) -> str:
    """Live through `migrate a,b,c`; return how it ended."""
    where = paths(root)
    with ExitStack() as undo:
        group = undo.enter_context(Journal.create(where["group"]))
        group.begin(Phase.PLANNED, role="group", members=list(NAMES))
        members = []
        for name in NAMES:
            journal = undo.enter_context(Journal.create(where[name]))
            journal.begin(Phase.PLANNED, group="group")
            members.append(Member(name, name, journal, steps(world, name), Silent()))
        try:
            group_driver.drive(group, members, pause=at_once, patience=0.0)
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


def recover(world: World, root: Path, name: str) -> str:
    """Live through `recover` for one member; return how it ended."""
    where = paths(root)
    with Journal.open_existing(where[name]) as journal:
        try:
            group_driver.adopt(read(where["group"]), journal)
            arguments = (name, name, journal, steps(world, name), Silent())
            driver.recover(*arguments, pause=at_once, patience=0.0)
        except Crash:
            world.dead = False
            return "crashed"
        except MigrationInDoubt:
            return "in doubt"
        except MigrationError:
            return "half undone"
    return "settled"


def check_settled(world: World, root: Path) -> None:
    where = paths(root)
    for name in NAMES:
        assert 1 == [world.source[name], world.target[name]].count("running")
        assert world.target[name] != "held"
        assert read(where[name]).settled
    assert 1 == len(set(world.source.values())), "some are here and some are there"


@pytest.mark.parametrize(
    ("name", "phase", "moment", "fault"),
    [
        *itertools.product(NAMES, STEPPED, MOMENTS, FAULTS),
        *itertools.product(NAMES, [Phase.FROZEN], ["hold"], FAULTS),
    ],
)
def test_one_fault_anywhere_leaves_all_of_them_on_one_side(
    tmp_path: Path, name: str, phase: Phase, moment: str, fault: str
) -> None:
    world = World(faults={(name, phase, moment): fault})

    ending = begin(world, tmp_path)
    if ending in ("crashed", "in doubt"):
        for each in NAMES:
            assert "settled" == recover(world, tmp_path, each)

    check_settled(world, tmp_path)
    assert (ending in ("settled", "rolled back")) == read(paths(tmp_path)["group"]).settled
    # The commit is the group's line, written when every member was restored.
    assert (world.target["a"] == "running") == (phase >= Phase.COMMITTED)


@given(
    strikes=st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.sampled_from(STEPPED),
            st.sampled_from([*MOMENTS, "hold"]),
            st.sampled_from(FAULTS),
        ),
        max_size=9,
    ),
    order=st.permutations(NAMES),
    undo_fault=st.none()
    | st.tuples(st.sampled_from(NAMES), st.sampled_from([p for p in STEPPED if p.may_roll_back])),
)
def test_many_faults_and_recoveries_in_any_order_end_with_all_on_one_side(
    strikes: list[tuple[str, Phase, str, str]],
    order: list[str],
    undo_fault: tuple[str, Phase] | None,
) -> None:
    world = World(undo_fault=undo_fault)
    pending = list(strikes)

    def arm() -> None:
        if pending:
            name, phase, moment, fault = pending.pop(0)
            world.faults = {(name, phase, moment): fault}

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        arm()
        begin(world, root)
        while pending:
            for name in order:
                arm()
                recover(world, root, name)
        world.faults = {}
        for name in order:
            recover(world, root, name)
        for name in order:  # what half undid can be done again
            assert "settled" == recover(world, root, name)

        check_settled(world, root)


def test_a_commit_that_cannot_be_written_rolls_all_of_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    real_reach = Journal.reach

    def reach(self: Journal, phase: Phase, **facts: object) -> None:
        if phase is Phase.COMMITTED and self.path.parent.name == "group":
            raise MigrationError("cannot write the journal")
        real_reach(self, phase, **facts)

    monkeypatch.setattr(Journal, "reach", reach)

    assert "rolled back" == begin(world, tmp_path)
    check_settled(world, tmp_path)
    assert "running" == world.source["a"]


def test_a_member_whose_commit_cannot_be_written_is_taken_on_by_recover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group's line counts, so it must not be rolled back, whatever its own journal lacks."""
    world = World()
    real_reach = Journal.reach

    def reach(self: Journal, phase: Phase, **facts: object) -> None:
        if phase is Phase.COMMITTED and self.path.parent.name == "b":
            raise MigrationError("cannot write the journal")
        real_reach(self, phase, **facts)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "reach", reach)
        assert "in doubt" == begin(world, tmp_path)
    assert {"a": "running", "b": "held", "c": "running"} == world.target

    assert "settled" == recover(world, tmp_path, "b")
    check_settled(world, tmp_path)


def test_a_journal_that_does_not_belong_to_its_group_is_touched_by_nobody(tmp_path: Path) -> None:
    world = World()
    begin(world, tmp_path)
    with Journal.create(tmp_path / "x" / "journal") as journal:
        journal.begin(Phase.PLANNED, group="group")
        with pytest.raises(MigrationError, match="do not belong together"):
            group_driver.adopt(read(paths(tmp_path)["group"]), journal)
