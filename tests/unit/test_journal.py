"""The journal: what is on disk decides, whatever was cut, torn or full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate import journal as journal_module
from pymigrate.migrate.journal import Journal, JournalBroken, read
from pymigrate.migrate.phases import Phase
from pymigrate.runtime.errors import MigrationError, WrongState


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m1" / "journal"


def test_what_was_written_is_read_back_in_order(path: Path) -> None:
    with Journal.create(path) as journal:
        journal.begin(Phase.RESERVED, token="x")
        journal.reach(Phase.RESERVED, layers=["a"])
        journal.begin(Phase.FROZEN)

    history = read(path)
    assert (history.begun, history.reached) == (Phase.FROZEN, Phase.RESERVED)
    assert history.facts() == {"token": "x", "layers": ["a"]}
    assert not history.settled


def test_journal_and_its_directory_are_private(path: Path) -> None:
    Journal.create(path).close()

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_second_driver_is_refused(path: Path) -> None:
    with (
        Journal.create(path),
        pytest.raises(WrongState, match="driven by another process"),
    ):
        Journal.open_existing(path)


@given(cut=st.integers(min_value=0, max_value=400))
def test_cut_anywhere_keeps_exactly_the_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "m1" / "journal"
    with Journal.create(path) as journal:
        for phase in (Phase.RESERVED, Phase.PRECOPIED, Phase.FROZEN):
            journal.begin(phase)
            journal.reach(phase)
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    os.truncate(path, cut)

    with Journal.open_existing(path) as journal:
        assert len(journal.history.lines) == whole[:cut].count(b"\n")
        journal.note(after="the crash")

    assert read(path).facts()["after"] == "the crash"
    assert path.read_bytes().startswith(whole[: whole.rfind(b"\n", 0, cut) + 1])


def test_damage_in_the_middle_is_an_error_and_not_a_torn_line(path: Path) -> None:
    with Journal.create(path) as journal:
        journal.begin(Phase.RESERVED)
        journal.reach(Phase.RESERVED)
    content = bytearray(path.read_bytes())
    content[5] = 0
    path.write_bytes(content)

    with pytest.raises(MigrationError, match="damaged at byte 0"):
        read(path)


def test_a_line_that_cannot_be_written_is_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.create(path) as journal:
        journal.begin(Phase.COMMITTED)
        before = path.read_bytes()
        real_write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[: len(data) // 2]))
        with pytest.raises(MigrationError, match="cannot write the journal"):
            journal.reach(Phase.COMMITTED)
        monkeypatch.undo()

        assert path.read_bytes() == before
        assert journal.history.reached is Phase.PLANNED


def test_a_commit_whose_fsync_fails_is_not_on_disk_afterwards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = iter([True, False])

    def fsync(descriptor: int) -> None:
        if next(failing, False):
            raise OSError(5, "Input/output error")

    with Journal.create(path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(MigrationError):
            journal.reach(Phase.COMMITTED)

    assert path.read_bytes() == b""


def test_a_line_that_can_neither_be_written_nor_taken_back_stops_everything(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with Journal.create(path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(JournalBroken):
            journal.reach(Phase.COMMITTED)


def test_what_is_far_too_long_is_not_read(path: Path) -> None:
    Journal.create(path).close()
    os.truncate(path, journal_module.MAX_JOURNAL + 1)

    with pytest.raises(MigrationError, match="not one of ours"):
        read(path)
