"""What was waited for is brought first the next time; a hint that is none costs nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint import working_set
from pymigrate.checkpoint.memory_map import BLOCK, Extent, PageFile

ONE = PageFile("pages-1.img", 3 * BLOCK, 7, (Extent(0, 0, 3 * BLOCK),), ())
TWO = PageFile("pages-2.img", 2 * BLOCK, 8, (Extent(BLOCK, 0, BLOCK),), (Extent(0, BLOCK, BLOCK),))
SHARED = PageFile("pages-3.img", BLOCK, None, (), (Extent(0, 0, BLOCK),))
FILES = (ONE, TWO, SHARED)
ALL = [("pages-1.img", 0), ("pages-1.img", 1), ("pages-1.img", 2), ("pages-2.img", 1)]


def named(blocks: Iterable[tuple[PageFile, int]]) -> list[working_set.Block]:
    return [(file.name, number) for file, number in blocks]


def test_what_was_waited_for_comes_in_its_order() -> None:
    known = [("pages-2.img", 1), ("pages-1.img", 2)]
    assert known == named(working_set.first(FILES, known))


def test_the_others_are_all_that_may_come_later() -> None:
    assert ALL == named(working_set.others(FILES))


@pytest.mark.parametrize(
    "block", [("pages-9.img", 0), ("pages-1.img", 3), ("pages-1.img", -1), ("pages-3.img", 0)]
)
def test_blocks_that_are_not_there_are_passed_over(block: working_set.Block) -> None:
    assert [] == named(working_set.first(FILES, [block]))


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(-9, 1 << 40)), max_size=40))
def test_it_is_read_as_it_was_written_each_block_once(blocks: list[working_set.Block]) -> None:
    document = working_set.pack(blocks)
    assert list(dict.fromkeys(blocks)) == working_set.unpack(document)


@given(st.binary(max_size=200))
def test_whatever_lies_there_is_a_hint_or_none(data: bytes) -> None:
    assert isinstance(working_set.unpack(data), list)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"blocks": 1}',
        b'{"blocks": [1, [2, 3], [[], 4], {"a": 1}]}',
        b'{"blocks": [["a"], ["a", "b"], [true]]}',
        b'[["a", 1]]',
        b"\xff",
        b"[" * 60_000,
    ],
)
def test_what_is_damaged_is_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hint"
    path.write_bytes(data)
    assert working_set.read(path) == []


def test_where_nothing_was_noted_is_nothing(tmp_path: Path) -> None:
    assert working_set.read(tmp_path / "none/hint") == []


def test_only_the_last_restored_are_kept_and_of_each_only_so_many(tmp_path: Path) -> None:
    folder = tmp_path / working_set.FOLDER
    for number in range(working_set.KEPT + 2):
        path = folder / f"{number:03}.json"
        working_set.write(path, [("pages-1.img", each) for each in range(working_set.MOST + 1)])
        os.utime(path, ns=(number, number))
    working_set.write(folder / "last.json", [])

    names = sorted(each.name for each in folder.iterdir())
    expected = [f"{number:03}.json" for number in range(3, working_set.KEPT + 2)]
    assert names == [*expected, "last.json"]
    assert working_set.MOST == len(working_set.read(folder / names[0]))


def test_one_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / working_set.FOLDER / "hint.json"
    working_set.write(path, [("pages-1.img", 1)])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            working_set.write(path, [("pages-1.img", 2)])

    assert [path] == list(path.parent.iterdir())
    assert [("pages-1.img", 1)] == working_set.read(path)
