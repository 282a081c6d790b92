"""Where the pages of a source belong, whatever a process does to its memory before they come."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint.space import EVERYWHERE, Layout

PAGES = 24
"""The model's address space; a page is one byte long."""

ZEROS = -1
"""What a page has that has nothing of the source."""


@dataclass
class Model:
    """What each mapped page has, done as the kernel does it, and told to a layout."""

    pages: dict[int, int] = field(default_factory=lambda: {at: at for at in range(PAGES)})
    layout: Layout = field(default_factory=lambda: Layout([(0, 0, PAGES)]))

    def drop(self, start: int, end: int) -> None:
        for at in range(start, end):
            self.pages.pop(at, None)

    def unmap(self, start: int, end: int) -> None:
        self.drop(start, end)
        self.layout.unmap(start, end)

    def give_back(self, start: int, end: int) -> None:
        self.pages.update({at: ZEROS for at in range(start, end) if at in self.pages})
        self.layout.remove(start, end)

    def grow(self, start: int, end: int) -> None:
        """Have a mapping grow in place: nobody is told."""
        if start - 1 not in self.pages:
            return
        for at in range(start, end):
            if at in self.pages:
                return
            self.pages[at] = ZEROS

    def move(self, start: int, end: int, to: int, more: int, *, unmaps: bool = True) -> None:
        """Move a mapping onto others; it may have grown or shrunk by then."""
        behind = to + (end - start) + more
        here = all(at in self.pages for at in range(start, end))
        if not here or behind <= to or behind > PAGES or (start < behind and to < end):
            return
        self.unmap(to, behind)
        if more < 0:
            self.unmap(end + more, end)
            end += more
        moved = [self.pages[at] for at in range(start, end)]
        self.layout.move(start, to, end - start)
        self.pages.update(enumerate([*moved, *[ZEROS] * max(more, 0)], to))
        if unmaps:
            self.drop(start, end)
            self.layout.unmap(start, end)
        else:
            self.pages.update(dict.fromkeys(range(start, end), ZEROS))

    def check(self) -> None:
        """Compare page by page, both ways round."""
        where: dict[int, int] = {}
        for at in range(PAGES):
            origin, content = self.layout.origin(at), self.pages.get(at, ZEROS)
            assert content == (ZEROS if origin is None else origin)
            begin, end = self.layout.hole(at, 0, PAGES)
            if origin is None:
                assert all(self.layout.origin(each) is None for each in range(begin, end))
                assert begin <= at < end
                edges = {each for each in (begin - 1, end) if 0 <= each < PAGES}
                assert all(self.layout.origin(each) is not None for each in edges)
            else:
                assert begin == end
                where[origin] = at
        for origin in range(PAGES):
            expected = [(0, where[origin], 1)] if origin in where else []
            assert expected == self.layout.places(origin, 1)
        found = {
            offset + each: address + each
            for offset, address, size in self.layout.places(0, PAGES)
            for each in range(size)
        }
        assert where == found


ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, 8)).map(
    lambda both: (both[0], min(both[0] + both[1], PAGES))
)


@given(st.data())
def test_each_page_has_what_it_has_whatever_was_done(data: st.DataObject) -> None:
    everyone = [Model()]
    for kind in data.draw(
        st.lists(st.sampled_from(["unmap", "give back", "grow", "move", "fork"]))
    ):
        model = everyone[-1]
        start, end = data.draw(ranges)
        if kind == "unmap":
            model.unmap(start, end)
        elif kind == "give back":
            model.give_back(start, end)
        elif kind == "grow":
            model.grow(start, end)
        elif kind == "move":
            to, more = data.draw(st.integers(0, PAGES - 1)), data.draw(st.integers(-3, 3))
            model.move(start, end, to, more, unmaps=data.draw(st.booleans()))
        else:
            everyone.append(Model(dict(model.pages), model.layout.forked()))
    for model in everyone:
        model.check()


def test_at_first_each_page_is_in_its_place() -> None:
    layout = Layout()
    last = EVERYWHERE - 1
    assert [0, last] == [layout.origin(0), layout.origin(last)]
    assert [(0, 1 << 47, 10)] == layout.places(1 << 47, 10)


A, B, C = (0, 10), (100, 110), (200, 210)
"""Where three mappings are, and nothing else."""


@pytest.fixture
def layout() -> Layout:
    return Layout([(start, start, end - start) for start, end in (A, B, C)])


def origins(layout: Layout, *ranges: tuple[int, int]) -> list[int | None]:
    """Say what is at the beginning of each; none of them has more than one origin."""
    found = []
    for start, end in ranges:
        inside = [layout.origin(at) for at in range(start, end)]
        first = inside[0]
        whole = [None if first is None else first + each for each in range(end - start)]
        assert whole == inside
        found.append(first)
    return found


def test_what_moves_to_where_another_was_stays_there(layout: Layout) -> None:
    """A goes to D; another thread moves B to where A was, before the first has told the rest."""
    layout.move(A[0], 300, 10)
    layout.move(B[0], A[0], 10)
    layout.unmap(*A)
    layout.unmap(*B)

    assert [B[0], None, 0] == origins(layout, A, B, (300, 310))


def test_what_a_move_has_left_mapped_can_be_unmapped_later(layout: Layout) -> None:
    """Then nothing told that it is gone, which is not to be taken for something else's end."""
    layout.move(A[0], 300, 10)
    layout.unmap(5, 110)
    layout.move(C[0], A[0], 10)
    layout.unmap(*C)
    assert [C[0]] == origins(layout, A)

    layout.unmap(*A)

    assert [None, None, 0] == origins(layout, A, C, (300, 310))


def test_a_change_says_whether_it_was_one(layout: Layout) -> None:
    assert [True, False] == [layout.remove(*A), layout.remove(*A)]
    assert [True, False] == [layout.unmap(*B), layout.unmap(*B)]
