"""What a pager that ends leaves for the next: who has which memory, and what became of it."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pymigrate.checkpoint import space_log
from pymigrate.checkpoint.space import Space
from pymigrate.checkpoint.space_log import FILE, SpaceLog
from pymigrate.runtime.errors import RestoreFailed
from pymigrate.runtime.userfault import Event, Message
from tests.unit.test_filling import Keeper

INNER = 7
Told = tuple[int, int, int, int]
UNMAPPED: Told = (Event.UNMAP, 0x1000, 0x3000, 0)
MOVED: Told = (Event.REMAP, 0x8000, 0x1000, 0x2000)
GIVEN_BACK: Told = (Event.REMOVE, 0x10000, 0x20000, 0)
FORKED: Told = (Event.FORK, 99, 0, 0)


@dataclass
class Scene:
    """A log, a keeper, and a pipe for a userfaultfd, by which the kernel is played."""

    directory: Path
    keeper: Keeper = field(default_factory=Keeper)

    def log(self, *names: str) -> SpaceLog:
        """Go on with the memory of these names."""
        kept = {name: fd for name, fd in self.keeper.kept().items() if name == "inbox"}
        return SpaceLog(self.directory, self.keeper, {**kept, **dict.fromkeys(names, 8)})

    def tell(self, log: SpaceLog, space: Space, *told: Told) -> list[Message]:
        """Have messages heard."""
        hears, tells = os.pipe()
        for event, a, b, c in told:
            os.write(tells, struct.pack("=BxHI3Q", event, 0, 0, a, b, c))
        os.close(tells)
        try:
            return log.hear(Space(space.name, hears, INNER))
        finally:
            os.close(hears)

    def follow(self, log: SpaceLog, space: Space, *told: Told) -> None:
        for message in self.tell(log, space, *told):
            log.follow(space, message)

    def written(self) -> tuple[Space, Space]:
        """Write what becomes of a process and its child; return both as they are in the end."""
        log = self.log()
        parent = Space("0", 8, INNER)
        log.restored(parent)
        self.follow(log, parent, UNMAPPED)
        child = Space("1", 8, INNER, parent.layout.forked())
        log.forked(parent, child)
        self.follow(log, parent, MOVED)
        log.heard()
        self.follow(log, child, GIVEN_BACK)
        log.heard()
        log.close()
        return parent, child

    def read(self, *names: str) -> list[Space]:
        """Return what the next one finds."""
        log = self.log(*names)
        log.close()
        return log.spaces(dict.fromkeys(names, 8))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.keeper.drop_kept()


def test_the_next_pager_knows_all_that_became_of_memory(scene: Scene) -> None:
    parent, child = scene.written()

    found = scene.read("1", "0")

    assert [("1", 8, INNER), ("0", 8, INNER)] == [
        (each.name, each.fd, each.inner) for each in found
    ]
    assert [child.layout.pieces, parent.layout.pieces] == [each.layout.pieces for each in found]
    assert parent.layout.pieces != child.layout.pieces


def test_what_was_not_written_to_its_end_was_not_written(scene: Scene) -> None:
    """Its writer was killed; nobody else can have written behind it."""
    _, child = scene.written()
    path = scene.directory / FILE
    path.write_bytes(path.read_bytes()[:-3])

    _, found = scene.read("0", "1")
    assert child.layout.pieces != found.layout.pieces
    assert 0x10000 == found.layout.origin(0x10000)

    _, again = scene.read("0", "1")  # by another that begins behind the last whole line
    assert found.layout.pieces == again.layout.pieces


@pytest.mark.parametrize("followed", [False, True])
def test_what_was_read_and_not_written_is_followed_by_the_next(
    scene: Scene, *, followed: bool
) -> None:
    parent, _ = scene.written()
    log = scene.log("0", "1")
    (space, _) = log.spaces({"0": 8, "1": 8})
    more: tuple[Told, ...] = (
        (Event.PAGEFAULT, 0, 0x5000, 0),
        (Event.UNMAP, 0x30000, 0x31000, 0),
        (Event.REMAP, 0x40000, 0x30000, 0x1000),
    )
    if followed:
        scene.follow(log, space, *more)
    else:
        scene.tell(log, space, *more)
    log.close()

    for _ in range(2):  # once by what was read, and once by what was written of it
        found, _ = scene.read("0", "1")
        assert [0x40000, None] == [found.layout.origin(at) for at in (0x30000, 0x40000)]
        assert parent.layout.origin(0x1000) == found.layout.origin(0x1000)


def test_what_was_written_is_not_followed_twice(scene: Scene) -> None:
    """Its writer was killed before it emptied the inbox; the second time it would undo itself."""
    scene.written()
    log = scene.log("0", "1")
    space, _ = log.spaces({"0": 8, "1": 8})
    onto = ((Event.UNMAP, 0x30000, 0x31000, 0), (Event.REMAP, 0x40000, 0x30000, 0x1000))
    scene.follow(log, space, *onto)
    inbox = bytes(log._body)
    log.heard()
    log._body[:] = inbox
    log.close()

    found, _ = scene.read("0", "1")
    assert [0x40000, None] == [found.layout.origin(at) for at in (0x30000, 0x40000)]


def test_a_child_whose_descriptor_was_lost_is_an_error_for_ever(scene: Scene) -> None:
    parent, _ = scene.written()
    log = scene.log("0", "1")
    scene.tell(log, parent, FORKED)
    log.close()

    for _ in range(2):
        with pytest.raises(RestoreFailed, match="was forked when"):
            scene.read("0", "1")


def test_a_child_whose_descriptor_was_kept_is_known(scene: Scene) -> None:
    parent, _ = scene.written()
    log = scene.log("0", "1")
    scene.tell(log, parent, FORKED, GIVEN_BACK)
    log.close()

    before, _, found = scene.read("0", "1", "2")
    assert parent.layout.pieces == found.layout.pieces
    assert INNER == found.inner
    assert None is before.layout.origin(0x10000)


def test_what_changes_nothing_is_not_written(scene: Scene) -> None:
    scene.written()
    log = scene.log("0", "1")
    _, child = log.spaces({"0": 8, "1": 8})
    before = (scene.directory / FILE).read_bytes()
    scene.follow(log, child, (Event.REMOVE, 0x11000, 0x12000, 0))
    log.heard()
    log.close()
    assert before == (scene.directory / FILE).read_bytes()


def test_nothing_is_known_of_what_was_never_written_about(scene: Scene) -> None:
    scene.written()

    assert [0] == [each.inner for each in scene.read("2")]


def test_the_log_of_another_restore_is_of_no_use(scene: Scene) -> None:
    scene.written()
    log = scene.log()
    lines = (scene.directory / FILE).read_text().splitlines()
    assert {} == space_log.follow(map(json.loads, lines))

    log.end()
    log.close()
    assert not (scene.directory / FILE).exists()


WRITER = """
import pathlib, sys
from pymigrate.checkpoint.space_log import SpaceLog
from tests.unit.test_filling import Keeper
log = SpaceLog(pathlib.Path(sys.argv[1]), Keeper(), {})
print("here", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_pager_that_does_not_know_that_it_was_replaced_is_ended(
    tmp_path: Path, *, stopped: bool
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as before:
        assert before.stdout is not None
        assert b"here" in before.stdout.readline()
        if stopped:
            before.send_signal(signal.SIGSTOP)

        space_log.end_others(tmp_path)

        assert -signal.SIGKILL == before.wait()
    space_log.end_others(tmp_path)  # there is nobody any more


def test_where_there_was_none_nobody_is_ended(scene: Scene) -> None:
    space_log.end_others(scene.directory)
    scene.written()
    space_log.end_others(scene.directory)  # ourselves
