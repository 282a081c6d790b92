"""Which pages need not go again, and which were sent."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint.known_pages import (
    BLOCK,
    GROUP,
    PAGE,
    KnownPages,
    PageSet,
    State,
    zero_pages,
)

NUMBERS = st.sets(st.integers(0, 4 * BLOCK), min_size=1, max_size=40).map(sorted)


def at(numbers: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([number * PAGE for number in numbers], np.uint64)


def contents(values: list[int]) -> memoryview:
    return memoryview(b"".join(bytes([value]) * PAGE for value in values))


# Each is there or not, and what is there is one of a few: also whole groups.
MEMORY = st.lists(st.integers(0, 3), min_size=3 * GROUP, max_size=3 * GROUP).flatmap(
    lambda some: st.sampled_from([some, [each or 1 for each in some], [2] * len(some)])
)


def pages_of(memory: list[int]) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], memoryview]:
    """Return the pages of a memory: 0 is none, 3 is one of zeros."""
    there = [number for number, value in enumerate(memory) if value]
    return at(there), contents([memory[number] % 3 for number in there])


@given(st.lists(MEMORY, min_size=2, max_size=4), st.integers(0, 2 * BLOCK))
def test_a_page_is_unchanged_if_and_only_if_it_is_what_was_sent_last(
    looks: list[list[int]], offset: int
) -> None:
    known = KnownPages()
    sent: dict[int, int] = {}
    for memory in looks:
        addresses, content = pages_of([0] * offset + memory)
        seen = known.compare(7, addresses, content)

        values = [memory[int(address) // PAGE - offset] for address in addresses]
        expected = [
            value != 3 and sent.get(int(address)) == value
            for address, value in zip(addresses, values, strict=True)
        ]
        assert expected == seen.unchanged.tolist()
        assert [value == 3 for value in values] == seen.zeros.tolist()
        known.learn(7, addresses, seen)
        sent |= dict(zip(map(int, addresses), values, strict=True))


def test_nothing_is_known_of_other_processes_and_other_pages() -> None:
    known = KnownPages()
    seen = known.compare(7, at([3, 4]), contents([1, 2]))
    assert not known
    known.learn(7, at([3, 4]), seen)

    assert known
    assert [False, False] == known.compare(8, at([3, 4]), contents([1, 2])).unchanged.tolist()
    assert [False, True] == known.compare(7, at([2, 4]), contents([1, 2])).unchanged.tolist()


@pytest.mark.parametrize("forgotten", [0, GROUP // 2, GROUP - 1])
def test_what_may_not_have_arrived_is_not_vouched_for_by_its_neighbours(forgotten: int) -> None:
    known = KnownPages()
    numbers = list(range(GROUP))
    known.learn(7, at(numbers), known.compare(7, at(numbers), contents([1] * GROUP)))
    known.forget(7, at([forgotten]))

    seen = known.compare(7, at(numbers), contents([1] * GROUP))

    assert [number != forgotten for number in numbers] == seen.unchanged.tolist()


@pytest.mark.parametrize("pages", [1, GROUP])
def test_one_changed_bit_is_another_page(pages: int) -> None:
    known = KnownPages()
    numbers = at(list(range(pages)))
    memory = bytearray(os.urandom(pages * PAGE))
    known.learn(1, numbers, known.compare(1, numbers, memoryview(memory)))
    memory[-1] ^= 1

    seen = known.compare(1, numbers, memoryview(memory))

    assert [*[True] * (pages - 1), False] == seen.unchanged.tolist()


def test_only_pages_of_zeros_are_pages_of_zeros() -> None:
    pages = bytearray(3 * PAGE)
    pages[2 * PAGE - 1] = 1

    assert [True, False, True] == zero_pages(memoryview(pages)).tolist()


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_set_of_pages_is_a_set(first: list[int], second: list[int], asked: list[int]) -> None:
    pages = PageSet()
    pages.add(1, at(first))
    pages.add(1, at(second))
    there = {*first, *second}

    assert [number not in there for number in asked] == pages.missing(1, at(asked)).tolist()
    assert pages.missing(2, at(asked)).all()


@given(NUMBERS, NUMBERS)
def test_whole_blocks_of_a_set_are_told_and_added(first: list[int], second: list[int]) -> None:
    blocks = [0, 2, 4]
    there = at(
        sorted({*first, *second} - set(range(BLOCK, 2 * BLOCK)) - set(range(3 * BLOCK, 4 * BLOCK)))
    )
    pages, others = PageSet(), PageSet()
    pages.add(1, at(first))
    others.add(1, at(second))

    pages.add_flags(1, blocks, others.flags(1, blocks))

    flags = pages.flags(1, blocks)
    assert len(blocks) * BLOCK == len(flags)
    places = np.flatnonzero(flags)
    assert (
        there.tolist()
        == ((np.array(blocks)[places // BLOCK] * BLOCK + places % BLOCK) * PAGE).tolist()
    )
    assert not pages.flags(2, blocks).any()


@given(MEMORY, MEMORY, NUMBERS)
def test_what_is_known_is_told_by_blocks(
    first: list[int], second: list[int], forgotten: list[int]
) -> None:
    known = KnownPages()
    expected = [State.UNKNOWN] * BLOCK
    for memory in (first, second):
        addresses, content = pages_of(memory)
        known.learn(7, addresses, known.compare(7, addresses, content))
        for number, value in enumerate(memory):
            if value:
                expected[number] = State.ZEROS if value == 3 else State.CONTENT
    known.forget(7, at(forgotten))
    for number in forgotten:
        if number < BLOCK:
            expected[number] = State.UNKNOWN

    assert [*expected, *[State.UNKNOWN] * BLOCK] == known.states(7, [0, 9]).tolist()
    assert not known.states(8, [0]).any()
