"""The tables that vouch for blocks of memory: packed, unpacked, and made to do harm."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint import block_table
from pymigrate.checkpoint.images import PAGE
from pymigrate.checkpoint.memory_map import BLOCK
from pymigrate.runtime.errors import BadArchive

LENGTHS = st.lists(st.integers(1, BLOCK // PAGE).map(lambda pages: pages * PAGE), max_size=20)
NAME = "checkpoint/pages-1.img"
PAGES, DIGESTS = "checkpoint/blocks-1.pages", "checkpoint/blocks-1.sha256"


@given(LENGTHS)
def test_lengths_come_back(lengths: list[int]) -> None:
    table = block_table.pack(lengths)

    assert lengths == block_table.unpack(table, sum(lengths))
    assert [sum(lengths[:number]) for number in range(len(lengths))] == block_table.starts(lengths)


@given(LENGTHS, st.integers(-BLOCK, BLOCK).filter(bool))
def test_another_size_is_refused(lengths: list[int], more: int) -> None:
    with pytest.raises(BadArchive, match="bytes"):
        block_table.unpack(block_table.pack(lengths), sum(lengths) + more)


@given(st.binary(max_size=30), st.integers(0, 1 << 40))
def test_a_table_of_anything_is_lengths_of_blocks_or_refused(table: bytes, size: int) -> None:
    try:
        lengths = block_table.unpack(table, size)
    except BadArchive:
        return
    assert size == sum(lengths)
    assert all(0 < length <= BLOCK and not length % PAGE for length in lengths)


@pytest.mark.parametrize("table", [b"\x00", b"\x81", b"\xff", b"\x01\x00"])
def test_no_block_is_empty_or_larger_than_one_is(table: bytes) -> None:
    with pytest.raises(BadArchive, match="not sound"):
        block_table.unpack(table, sum(table) * PAGE)


@pytest.mark.parametrize("length", [0, 1, PAGE + 1, BLOCK + PAGE])
def test_what_no_block_has_is_not_written(length: int) -> None:
    with pytest.raises(ValueError, match="block"):
        block_table.pack([length])


@pytest.mark.parametrize("size", [0, PAGE, BLOCK - PAGE, BLOCK, 3 * BLOCK + PAGE])
def test_a_file_is_cut_evenly(size: int) -> None:
    lengths = block_table.cut_evenly(size)

    assert size == sum(lengths)
    assert all(length == BLOCK for length in lengths[:-1])


@given(LENGTHS, st.data())
def test_digests_are_those_of_the_blocks_however_they_come(
    lengths: list[int], data: st.DataObject
) -> None:
    content = b"".join(bytes([number]) * length for number, length in enumerate(lengths))
    found = block_table.Digesting(lengths)
    at = 0
    while at < len(content):
        size = data.draw(st.integers(1, 2 * BLOCK))
        found.update(content[at : at + size])
        at += size

    blocks = [bytes([number]) * length for number, length in enumerate(lengths)]
    assert b"".join(hashlib.sha256(block).digest() for block in blocks) == found.table
    found.update(b"more")
    assert len(lengths) * block_table.DIGEST == len(found.table)


@pytest.mark.parametrize(
    "sizes",
    [
        {PAGES: 3},
        {DIGESTS: 96},
        {PAGES: 3, DIGESTS: 95},
        {PAGES: 3, DIGESTS: 64},
        {PAGES: (1 << 22) + 1, DIGESTS: 32 * ((1 << 22) + 1)},
        {"checkpoint/blocks-2.pages": 3},
        {"checkpoint/blocks-x.sha256": 3},
    ],
    ids=str,
)
def test_tables_that_do_not_go_together_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(BadArchive):
        block_table.check_announced([NAME], {NAME: 3 * PAGE, **sizes})


def test_tables_that_go_together_or_are_not_there_are_as_announced() -> None:
    block_table.check_announced([NAME], {NAME: 3 * PAGE, PAGES: 3, DIGESTS: 96})
    block_table.check_announced([NAME], {NAME: 3 * PAGE})
    block_table.check_announced([], {})
