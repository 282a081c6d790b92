"""Which pages need not go again, and which were sent."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint.known_pages import BLOCK, PAGE, KnownPages, PageSet, zero_pages

NUMBERS = st.sets(st.integers(0, 4 * BLOCK), min_size=1, max_size=40).map(sorted)


def at(numbers: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([number * PAGE for number in numbers], np.uint64)


def contents(values: list[int]) -> memoryview:
    return memoryview(b"".join(bytes([value]) * PAGE for value in values))


@given(NUMBERS, st.data())
def test_a_page_is_unchanged_if_and_only_if_its_content_is(
    numbers: list[int], data: st.DataObject
) -> None:
    bytes_ = st.lists(st.integers(1, 3), min_size=len(numbers), max_size=len(numbers))
    before, after = data.draw(bytes_), data.draw(bytes_)
    known = KnownPages()
    known.learn(7, at(numbers), known.hashes(contents(before)))

    same = known.unchanged(7, at(numbers), known.hashes(contents(after)))

    assert [old == new for old, new in zip(before, after, strict=True)] == same.tolist()


def test_nothing_is_known_of_other_processes_and_other_pages() -> None:
    known = KnownPages()
    hashes = known.hashes(contents([1, 2]))
    assert not known
    known.learn(7, at([3, 4]), hashes)

    assert known
    assert [False, False] == known.unchanged(8, at([3, 4]), hashes).tolist()
    assert [False, True] == known.unchanged(7, at([2, 4]), hashes).tolist()


def test_one_changed_bit_is_another_page() -> None:
    known = KnownPages()
    page = bytearray(os.urandom(PAGE))
    known.learn(1, at([0]), known.hashes(memoryview(page)))
    page[-1] ^= 1

    assert [False] == known.unchanged(1, at([0]), known.hashes(memoryview(page))).tolist()


def test_only_pages_of_zeros_are_pages_of_zeros() -> None:
    pages = bytearray(3 * PAGE)
    pages[2 * PAGE - 1] = 1

    assert [True, False, True] == zero_pages(memoryview(pages)).tolist()


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_set_of_pages_is_a_set(first: list[int], second: list[int], asked: list[int]) -> None:
    pages = PageSet()
    pages.add(1, at(first))
    pages.add(1, at(second))
    pages.discard(1, at(second))
    left = set(first) - set(second)

    assert [number not in left for number in asked] == pages.missing(1, at(asked)).tolist()
    assert pages.missing(2, at(asked)).all()
