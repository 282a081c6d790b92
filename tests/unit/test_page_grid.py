"""The pages of regions as arrays of whole blocks, against a dictionary of them."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint.known_pages import BLOCK, PAGE
from pymigrate.checkpoint.page_grid import Grid

# Gaps and lengths: some end with a block, touch the next one, or leave out whole blocks.
LENGTHS = st.sampled_from([1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
REGIONS = st.lists(st.tuples(st.one_of(st.just(0), LENGTHS), LENGTHS), min_size=1, max_size=6)


def laid_out(some: list[tuple[int, int]]) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    edges, page = [], BLOCK - 1
    for gap, length in some:
        edges.append((page + gap, page + gap + length))
        page += gap + length
    return np.array(edges, np.uint64) * PAGE


def pages_of(regions: np.ndarray[tuple[int, int], np.dtype[np.uint64]]) -> list[int]:
    return [at for begin, end in regions.tolist() for at in range(begin, end, PAGE)]


@given(REGIONS)
def test_what_is_inside_are_the_pages_of_the_regions(some: list[tuple[int, int]]) -> None:
    regions = laid_out(some)
    grid = Grid(regions)

    assert len(grid.blocks) * BLOCK == len(grid.inside)
    assert pages_of(regions) == grid.addresses(np.flatnonzero(grid.inside)).tolist()
    assert sorted({at // PAGE // BLOCK for at in pages_of(regions)}) == grid.blocks


@given(REGIONS, st.data())
def test_runs_say_of_each_page_its_state_and_are_as_few_as_can_be(
    some: list[tuple[int, int]], data: st.DataObject
) -> None:
    grid = Grid(laid_out(some))
    seed = data.draw(st.integers(0, 1 << 32))
    values = np.random.default_rng(seed)
    several = np.repeat(values.integers(0, 3, len(grid.inside)), values.integers(1, 90))
    states = np.asarray(several[: len(grid.inside)], np.uint8)
    states[~grid.inside] = 0

    begins, counts, found = (each.tolist() for each in grid.runs(states))
    runs = [*zip(begins, counts, found, strict=True)]

    said = {at + n * PAGE: state for at, count, state in runs for n in range(count)}
    places = np.flatnonzero(states)
    expected = dict(zip(grid.addresses(places).tolist(), states[places].tolist(), strict=True))
    assert expected == said
    for (at, count, state), (following, _, another) in itertools.pairwise(runs):
        assert at + count * PAGE < following or state != another
