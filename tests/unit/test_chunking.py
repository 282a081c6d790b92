"""Cutting: nothing is lost, sizes are kept, and a change moves only the cuts beside it."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymigrate.checkpoint import chunking
from pymigrate.checkpoint.chunking import (
    LARGEST,
    PAGE,
    SEGMENT,
    SMALLEST,
    Cut,
    by_content,
    by_segment,
    gear,
    pages,
)

TABLE = gear(b"a test")


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def content_cuts(data: bytes) -> list[bytes]:
    return [bytes(chunk) for chunk in by_content(io.BytesIO(data).read, TABLE)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3 << 20), st.integers(0, 255), st.integers(0, 3))
def test_chunks_together_are_the_content_and_have_bounded_sizes(
    size: int, seed: int, zeros: int
) -> None:
    data = noise(size, seed) if zeros else bytes(size)

    chunks = content_cuts(data)

    assert data == b"".join(chunks)
    assert all(SMALLEST <= len(chunk) <= LARGEST for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= LARGEST for chunk in chunks)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 5000))
def test_insertion_changes_few_chunks(place: int, length: int) -> None:
    data = noise(1 << 20)

    before = set(content_cuts(data))
    after = set(content_cuts(data[:place] + noise(length, 1) + data[place:]))

    assert len(after - before) <= 6  # of about 80


@pytest.mark.parametrize("piece", [1000, 4097, 70_000, 1 << 20])
def test_cuts_do_not_depend_on_how_a_stream_is_read(piece: int) -> None:
    data = noise(700_000)
    stream = io.BytesIO(data)

    chunks = [bytes(c) for c in by_content(lambda size: stream.read(min(size, piece)), TABLE)]

    assert content_cuts(data) == chunks


def test_cuts_depend_on_the_key() -> None:
    data = noise(500_000)
    other = [bytes(c) for c in by_content(io.BytesIO(data).read, gear(b"another"))]

    assert content_cuts(data) != other


@given(st.integers(0, 3 * SEGMENT + 5), st.integers(1000, 200_000))
def test_segments_and_pages_lie_at_multiples_of_their_size(size: int, piece: int) -> None:
    data = noise(size)
    stream = io.BytesIO(data)

    read = [s for many in by_segment(lambda count: stream.read(min(count, piece))) for s in many]

    assert [data[at : at + SEGMENT] for at in range(0, size, SEGMENT)] == [bytes(s) for s in read]
    cut = [bytes(page) for segment in read for page in pages(segment)]
    assert [data[at : at + PAGE] for at in range(0, size, PAGE)] == cut


def test_members_with_pages_are_known_by_their_name() -> None:
    assert Cut.PAGES is Cut.of_member("checkpoint/pages-1.img")
    assert Cut.CONTENT is Cut.of_member("checkpoint/pagemap-1.img")
    assert Cut.CONTENT is Cut.of_member("rootfs-diff.tar")


def test_hash_of_all_places_at_once_is_the_rolling_one() -> None:
    data = noise(5000)
    table = [int(value) for value in TABLE]
    rolling = 0
    expected = []
    for place, byte in enumerate(data):
        rolling = ((rolling << 1) + table[byte]) & 0xFFFFFFFF
        if not rolling >> 18 and place >= 31:
            expected.append(place + 1)

    found = [at for at in chunking._candidates(memoryview(data), TABLE) if at > 31]

    assert expected == found
