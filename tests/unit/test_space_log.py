"""What a pager that ends leaves for the next: who has which memory, and what became of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pymigrate.checkpoint import space_log
from pymigrate.checkpoint.space import Space
from pymigrate.checkpoint.space_log import FILE, SpaceLog

INNER = 7


def written(directory: Path) -> tuple[Space, Space]:
    """Write what becomes of a process and its child; return both as they are in the end."""
    log = SpaceLog(directory, fresh=True)
    parent = Space("0", 100, INNER)
    log.restored(parent)
    log.unmap(parent, 0x1000, 0x3000)
    child = Space("1", 101, INNER, parent.layout.forked())
    log.forked(parent, child)
    log.move(parent, 0x8000, 0x1000, 0x2000)
    log.unmap(parent, 0x8000, 0xA000)
    log.remove(child, 0x10000, 0x20000)
    log.close()
    return parent, child


def test_the_next_pager_knows_all_that_became_of_memory(tmp_path: Path) -> None:
    parent, child = written(tmp_path)

    found = space_log.read(tmp_path, {"1": 8, "0": 9})

    assert [("1", 8, INNER), ("0", 9, INNER)] == [
        (each.name, each.fd, each.inner) for each in found
    ]
    assert [child.layout.pieces, parent.layout.pieces] == [each.layout.pieces for each in found]
    assert parent.layout.pieces != child.layout.pieces


def test_what_was_not_written_to_its_end_was_not_written(tmp_path: Path) -> None:
    """Its writer was killed; nobody else can have written behind it."""
    _, child = written(tmp_path)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-3])

    (found,) = space_log.read(tmp_path, {"1": 8})

    assert child.layout.pieces != found.layout.pieces
    assert 0x10000 == found.layout.origin(0x10000)
    log = SpaceLog(tmp_path, fresh=False)
    log.unmap(found, 0, 0x1000)
    log.close()
    (after,) = space_log.read(tmp_path, {"1": 8})
    assert found.layout.pieces == after.layout.pieces


def test_what_changes_nothing_is_not_written(tmp_path: Path) -> None:
    written(tmp_path)
    (child,) = space_log.read(tmp_path, {"1": 8})

    log = SpaceLog(tmp_path, fresh=False)
    before = (tmp_path / FILE).read_bytes()
    log.remove(child, 0x11000, 0x12000)
    log.close()
    assert before == (tmp_path / FILE).read_bytes()


def test_nothing_is_known_of_what_was_never_written_about(tmp_path: Path) -> None:
    written(tmp_path)

    assert [0] == [each.inner for each in space_log.read(tmp_path, {"2": 8})]


def test_a_file_of_another_restore_is_of_no_use(tmp_path: Path) -> None:
    written(tmp_path)
    log = SpaceLog(tmp_path, fresh=True)
    assert {} == space_log.follow(map(json.loads, (tmp_path / FILE).read_text().splitlines()))

    log.end()
    log.close()
    with pytest.raises(FileNotFoundError):
        space_log.read(tmp_path, {"0": 9})


WRITER = """
import pathlib, sys
from pymigrate.checkpoint.space_log import SpaceLog
log = SpaceLog(pathlib.Path(sys.argv[1]), fresh=True)
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


def test_where_there_was_none_nobody_is_ended(tmp_path: Path) -> None:
    space_log.end_others(tmp_path)
    written(tmp_path)
    space_log.end_others(tmp_path)  # ourselves
