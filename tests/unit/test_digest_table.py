"""Digests are found as in a dictionary, and take less memory."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint import digest_table
from pymigrate.checkpoint.digest_table import SIZE, DigestTable, joined
from pymigrate.checkpoint.images import PAGE, Entry
from pymigrate.checkpoint.known_pages import BLOCK, Compared, KnownPages, State
from pymigrate.checkpoint.memory_looks import Seen
from pymigrate.checkpoint.page_layout import Layout
from pymigrate.runtime.scratch import Scratch
from tests.unit.test_scratch import is_in_a_file

GIB = 1 << 30
NUMBER = np.dtype(np.int64)

# Digests of which halves, and places in the table, are often the same.
DIGESTS = st.builds(
    lambda one, two: one.to_bytes(8, "little") + two.to_bytes(8, "little"),
    st.sampled_from([0, 1, 2, 1 << 20, (1 << 64) - 1]),
    st.integers(0, 3),
)


@given(st.lists(st.lists(DIGESTS, max_size=12), max_size=6), st.lists(DIGESTS))
def test_what_was_added_is_found_with_its_value(
    added: list[list[bytes]], wanted: list[bytes]
) -> None:
    table = DigestTable(NUMBER)
    expected: dict[bytes, int] = {}
    for some in added:
        numbers = np.arange(len(expected), len(expected) + len(some))
        table.add_new(joined(some), numbers)
        for digest, number in zip(some, numbers.tolist(), strict=True):
            expected.setdefault(digest, number)

    rows = table.find(joined(wanted))

    assert len(expected) == len(table)
    assert [digest in expected for digest in wanted] == (rows >= 0).tolist()
    found = table.values(rows[rows >= 0]).tolist()
    assert [expected[digest] for digest in wanted if digest in expected] == found


def test_many_are_found_after_it_grew() -> None:
    digests = np.frombuffer(os.urandom(20000 * SIZE), np.uint64).reshape(-1, 2)
    table = DigestTable(NUMBER)

    for first in range(0, 20000, 777):
        some = digests[first : first + 777]
        table.add(some, np.arange(first, first + len(some)))

    assert [*range(20000)] == table.values(table.find(digests)).tolist()
    assert (table.find(digests ^ np.uint64(1)) < 0).all()


def test_a_large_table_is_in_a_file(tmp_path: Path) -> None:
    with closing(Scratch(tmp_path)) as scratch:
        table = DigestTable(NUMBER, scratch.zeros)
        table.add(np.frombuffer(os.urandom(40000 * SIZE), np.uint64).reshape(-1, 2))

    assert all(map(is_in_a_file, (table._digests, table._values, table._slots)))


def test_what_a_checkpoint_knows_of_a_gibibyte_are_two_mebibytes() -> None:
    layout = Layout.of_entries([Entry(1 << 40, GIB // PAGE, present=False, lazy=True)])
    seen = Seen.nothing(layout)
    table = DigestTable(NUMBER)
    table.add(joined([number.to_bytes(SIZE, "little") for number in range(layout.segments)]))

    of_layout = (layout.addresses, layout.counts, layout.places, layout.edges)
    of_seen = (seen.names, seen.digests, seen.known)

    assert GIB // PAGE // 16 == layout.segments
    assert sum(each.nbytes for each in of_layout) < 26 * layout.segments
    assert sum(each.nbytes for each in of_seen) < 26 * layout.segments
    assert table.bytes == (SIZE + NUMBER.itemsize + 2 * 4) * layout.segments
    assert 26 * layout.segments * 2 + table.bytes < 2 << 20


def test_memory_that_is_scattered_takes_no_more_than_its_pieces() -> None:
    scattered = [Entry((2 * each) * PAGE, 1, present=False, lazy=True) for each in range(8000)]
    layout = Layout.of_entries(scattered)

    assert 8000 * 17 == sum(
        each.nbytes for each in (layout.addresses, layout.counts, layout.places)
    )


def test_the_hashes_of_pages_that_were_sent_are_in_a_file(tmp_path: Path) -> None:
    known = KnownPages(tmp_path)
    addresses = np.arange(0, 200 * BLOCK, 8, dtype=np.uint64) * np.uint64(PAGE)
    flags = np.zeros(len(addresses), np.bool_)
    hashes = np.ones((len(addresses), 2), np.uint64)
    none = np.zeros(0, np.int64)
    known.learn(7, addresses, Compared(flags, flags, hashes, none, hashes[:0]))
    known.close()

    states = known.states(7, range(200))
    assert (states[::8] == State.CONTENT).all()
    assert np.count_nonzero(states) == len(addresses)
    assert all(is_in_a_file(block.pages) for block in known._blocks.values())
    assert [] == [*tmp_path.iterdir()]


def test_a_table_grows_by_doubling() -> None:
    table = DigestTable()
    count = digest_table._FIRST + 1
    table.add(joined([number.to_bytes(SIZE, "little") for number in range(count)]))

    assert count == len(table)
    assert 2 * digest_table._FIRST * (SIZE + 2 * 4) == table.bytes
