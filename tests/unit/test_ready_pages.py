"""Which of the pages that hold are put in place next."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest

from pymigrate.checkpoint.known_pages import BLOCK
from pymigrate.checkpoint.ready import PAGE, Content, Ready
from pymigrate.checkpoint.ready_pages import ReadyPages
from pymigrate.runtime.errors import NoSpace

INNER = 7


def test_more_than_was_announced_is_not_even_spoken_of() -> None:
    ready = ReadyPages(0)
    with pytest.raises(NoSpace):
        ready.add(Ready(INNER, 0, (1 << 32) * PAGE, Content.ZERO))


@pytest.mark.parametrize("most", [1, 3, 7, BLOCK])
def test_pieces_make_up_what_was_said(most: int) -> None:
    ready = ReadyPages(1 << 20)
    runs = [
        Ready(INNER, 5 * PAGE, 3 * PAGE, Content.ASIDE),
        Ready(INNER + 1, (BLOCK - 2) * PAGE, 9 * PAGE, Content.ZERO),
    ]
    for run in runs:
        ready.add(run)

    assert pages_of(runs) == pages_of(iter(partial(ready.take, most * PAGE), None))


@pytest.mark.parametrize("pages", [1, 1000])  # told one by one, and by runs
def test_what_is_needed_soon_goes_before_what_was_said_earlier(pages: int) -> None:
    ready = ReadyPages(1 << 20)
    for first, soon in ((0, False), (2000, True), (4000, False), (6000, True)):
        numbers = [np.array([each], np.uint64) for each in (first * PAGE, pages, Content.ASIDE)]
        ready.add_all(INNER, *numbers, soon=soon)

    taken = iter(partial(ready.take, 600 * PAGE), None)
    assert [
        number for first in (2000, 6000, 0, 4000) for number in range(first, first + pages)
    ] == [address // PAGE for _, address, _ in pages_of(taken)]


def pages_of(runs: Iterable[Ready]) -> list[tuple[int, int, Content]]:
    return [
        (run.inner, run.address + at, run.content)
        for run in runs
        for at in range(0, run.length, PAGE)
    ]


def test_what_is_found_is_what_is_waited_for_and_then_what_is_around_it() -> None:
    ready = ReadyPages(1 << 20)
    ready.add(Ready(INNER, 0, 3 * PAGE, Content.ASIDE))
    ready.add(Ready(INNER, 2 * PAGE, 2 * PAGE, Content.ZERO))
    ready.add(Ready(INNER, 14 * PAGE, 5 * PAGE, Content.ASIDE))
    first = Ready(INNER, 0, 2 * PAGE, Content.ASIDE)
    zeros = Ready(INNER, 2 * PAGE, 2 * PAGE, Content.ZERO)
    last = Ready(INNER, 14 * PAGE, 2 * PAGE, Content.ASIDE)  # where the bytes around it end

    def find(at: int) -> list[Ready]:
        return ready.find(INNER, at * PAGE, 16 * PAGE)

    assert [first, zeros, last] == find(1)
    assert [zeros, first, last] == find(2)
    assert [] == find(4)
    assert [Ready(INNER, 15 * PAGE, PAGE, Content.ASIDE)] == ready.find(INNER, 15 * PAGE)
    assert [] == ready.find(INNER + 1, 0)
