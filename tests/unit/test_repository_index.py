"""Chunks are found by their whole names; where they are is handed on without loss."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint import repository_index
from pymigrate.checkpoint.memory_map import Extent, PageFile
from pymigrate.checkpoint.packs import Kind, Table, join
from pymigrate.checkpoint.page_places import PageChunks, PagePlaces
from pymigrate.checkpoint.repository_index import Index, Joining, pieces
from pymigrate.migrate.snapshot_pages import Begins

# Names that share their first 32 bits, or all of a half, are the rule here.
NAMES = st.builds(
    lambda *parts: b"".join(parts),
    *[st.sampled_from([bytes(4), b"\1\0\0\0", b"\xff" * 4]) for _ in range(4)],
)


def table(names: Sequence[bytes], blobs: Sequence[int] = (7, 9)) -> Table:
    """Make the table of a pack: each chunk 100 bytes, in turn in its blobs."""
    count = len(names)
    numbers = np.arange(count, dtype=np.uint32)
    return Table(
        Kind.DATA,
        sealed=np.array(blobs, np.uint32),
        plain=np.array([100 * count] * len(blobs), np.uint32),
        ids=np.frombuffer(b"".join(names), np.uint8).reshape(-1, 16),
        blob=numbers % len(blobs),
        offset=numbers // len(blobs) * 100,
        length=np.full(count, 100, np.uint32),
    )


@given(st.lists(st.lists(NAMES, max_size=40), max_size=4), st.lists(NAMES, max_size=40))
def test_a_chunk_is_found_where_it_is_first(packs: list[list[bytes]], asked: list[bytes]) -> None:
    index = Index.build([table(names) for names in packs])
    rows = [name for names in packs for name in names]
    expected = [rows.index(name) if name in rows else -1 for name in asked]
    ids = np.frombuffer(b"".join(asked), np.uint8).reshape(-1, 16)
    assert expected == index.find(ids).tolist()
    assert rows == [index.name(row) for row in range(len(index))]


def test_a_large_index_is_sorted_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [os.urandom(16) for _ in range(300)]
    whole = Index.build([table(names[:150]), table(names[150:])])
    monkeypatch.setattr(repository_index, "_PART", 16)

    parts = Index.build([table(names[:150]), table(names[150:])])

    assert (whole.order.tolist(), whole.keys.tolist()) == (
        parts.order.tolist(),
        parts.keys.tolist(),
    )
    assert [*range(300)] == parts.find(join(names)).tolist()


def test_what_tables_say_of_chunks_is_in_the_index_alone() -> None:
    given_tables = [table([b"a" * 16, b"b" * 16]), table([b"c" * 16])]
    joining = Joining()
    for each in given_tables:
        joining.add(each)

    tables, index = joining.finish()

    for ours, theirs in zip(given_tables, tables, strict=True):
        for name in ("ids", "blob", "offset", "length"):
            assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()
        assert np.shares_memory(theirs.ids, index.ids)
        assert np.shares_memory(theirs.blob, index.blob)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=400),
    st.integers(0, 1 << 20),
    st.integers(1, 500),
)
def test_chunks_around_bytes_are_found(lengths: list[int], begin: int, count: int) -> None:
    edges = [0, *itertools.accumulate(lengths)]
    begin %= edges[-1]
    end = min(begin + count, edges[-1])

    which, start, stop = Begins(np.array(lengths, np.uint32)).around(begin, end)

    assert (edges[which.start], edges[which.stop]) == (start, stop)
    assert start <= begin < edges[which.start + 1]
    assert edges[which.stop - 1] < end <= stop


@given(st.lists(st.integers(0, 19), max_size=60))
def test_what_is_put_together_is_in_order_and_each_blob_is_read_once(chosen: list[int]) -> None:
    names = [number.to_bytes(16, "little") for number in range(10)]
    index = Index.build([table(names), table(names)])
    content = {
        (pack, blob): bytes([pack * 100 + blob * 50 + at // 100 for at in range(500)])
        for pack in (0, 1)
        for blob in (0, 1)
    }
    expected = b"".join(
        content[int(index.pack[row]), int(index.blob[row])][index.offset[row] :][:100]
        for row in chosen
    )
    joined = bytearray(len(expected))
    found = list(pieces(index, np.array(chosen, np.int64)))
    for piece in found:
        plain = content[piece.pack, piece.blob]
        for run in piece.runs:
            joined[run.target : run.target + run.length] = plain[run.source :][: run.length]
    assert expected == joined
    blobs = [(piece.pack, piece.blob) for piece in found]
    assert len(set(blobs)) == len(blobs)


@pytest.mark.parametrize("on_disk", [True, False])
def test_places_that_are_handed_on_are_the_same(tmp_path: Path, on_disk: bool) -> None:
    names = [number.to_bytes(16, "little") for number in range(10)]
    tables = [table(names[:6]), table(names[6:], blobs=(1, 2, 3))]
    index = Index.build(tables)
    members = {"a": PageChunks(0, 3, 300), "b": PageChunks(3, 2, 200)}
    places = PagePlaces(["p", "q"], tables, index.taken(np.array([9, 0, 4, 6, 2])), members)

    description, descriptor = places.hand_on(tmp_path if on_disk else None)
    try:
        found = PagePlaces.taken_up(json.loads(json.dumps(description)), descriptor)
    finally:
        os.close(descriptor)

    assert (places.names, places.members) == (found.names, found.members)
    for ours, theirs in zip(tables, found.tables, strict=True):
        assert ours.kind == theirs.kind
        assert ours.sealed.tolist() == theirs.sealed.tolist()
        assert ours.plain.tolist() == theirs.plain.tolist()
        assert ours.starts.tolist() == theirs.starts.tolist()
    for name in ("pack", "blob", "offset", "length"):
        assert getattr(places.chunks, name).tolist() == getattr(found.chunks, name).tolist()


def test_no_memory_is_handed_on_too() -> None:
    places = PagePlaces([], [], Index.build([]).taken(np.array([], np.int64)), {})
    description, descriptor = places.hand_on(None)
    try:
        found = PagePlaces.taken_up(json.loads(json.dumps(description)), descriptor)
    finally:
        os.close(descriptor)
    assert ([], [], {}, 0) == (found.names, found.tables, found.members, len(found.chunks.pack))


def test_a_file_of_pages_is_the_same_for_another_process() -> None:
    for inner, starts in ((7, ()), (None, (0, 4096, 8192))):
        file = PageFile("pages-1.img", 9 << 12, inner, [Extent(0, 1 << 40, 8192)], [], starts)
        assert file == PageFile.from_document(json.loads(json.dumps(file.to_document())))
