"""Pages in ranges, regions and runs: whichever way they are cut, each is told once, in order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint.known_pages import expanded
from pymigrate.migrate.batching import addresses_in, addresses_of, batches, pieces, ranges_of, table
from pymigrate.runtime.memory import Range
from pymigrate.transport.pages import PAGE, Kind

Pairs = list[tuple[int, int]]


@st.composite
def ranges(draw: st.DrawFn) -> list[Range]:
    found = []
    at = 0
    for gap, length in draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)))):
        found.append(Range((at + gap) * PAGE, (at + gap + length) * PAGE))
        at += gap + length
    return found


def pages_of(some: list[Range]) -> list[int]:
    return [at for each in some for at in range(each.start, each.end, PAGE)]


@given(ranges(), st.integers(1, 50))
def test_ranges_are_cut_into_batches_and_none_is_lost(some: list[Range], most: int) -> None:
    cut = [*batches(some, lambda: most)]
    assert pages_of(some) == [at for batch in cut for at in pages_of(batch)]
    assert all(0 < len(pages_of(batch)) <= most for batch in cut)


@given(ranges(), st.integers(1, 5), st.integers(1, 50))
def test_regions_are_cut_into_pieces_and_none_is_lost(
    some: list[Range], most: int, pages: int
) -> None:
    regions = np.array([(each.start, each.end) for each in some], np.uint64).reshape(-1, 2)
    cut = [[Range(*edges) for edges in piece.tolist()] for piece in pieces(regions, most, pages)]
    assert pages_of(some) == [at for piece in cut for at in pages_of(piece)]
    assert all(0 < len(piece) <= most for piece in cut)
    assert all(0 < len(pages_of(piece)) <= pages for piece in cut)


@given(ranges())
def test_ranges_become_addresses_and_ranges_again(some: list[Range]) -> None:
    addresses = addresses_of(some)
    assert pages_of(some) == addresses.tolist()
    assert not some or some == ranges_of(addresses)


@given(ranges().filter(bool), st.data())
def test_a_table_says_each_page_and_what_it_is(some: list[Range], data: st.DataObject) -> None:
    addresses = addresses_of(some)
    kinds = data.draw(
        st.lists(st.sampled_from(Kind), min_size=len(addresses), max_size=len(addresses))
    )
    said = table(addresses, np.array(kinds, np.uint8))
    said.check()
    assert addresses.tolist() == addresses_in(said).tolist()
    assert kinds == [run.kind for run in said for _ in range(run.pages)]
    assert all(
        left.kind != right.kind or left.address + left.pages * PAGE < right.address
        for left, right in itertools.pairwise(said)
    )


@pytest.mark.parametrize(
    ("begins", "counts", "wanted"),
    [([], [], []), ([PAGE, 5 * PAGE], [2, 1], [PAGE, 2 * PAGE, 5 * PAGE])],
)
def test_runs_expand_to_their_pages(
    begins: list[int], counts: list[int], wanted: list[int]
) -> None:
    found = expanded(np.array(begins, np.uint64), np.array(counts, np.uint64))
    assert wanted == found.tolist()
