"""The tables in docs/kernels.md: a run replaces what it tried, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.cluster import results
from tests.cluster.results import MOVES, REFUSALS, Move, Refused
from tests.tables import replaced


@dataclass(frozen=True)
class Host:
    """One end of a move."""

    kernel: str
    criu: str = "4.2.1"
    cgroup: str = "v2"


OLD, NEW = Host("6.1.0-50-cloud-amd64", "3.17.1"), Host("7.3.4+deb13-cloud-amd64")
ROWS = [
    "| 6.1.0-50 | 7.3.4 | v2 → v2 | stop | Redis | 3.17.1 → 4.2.1 | ok | 2.0 s | 2026-11-23 |",
    "| 6.12.9 | 7.3.4 | v2 → v2 | stop | Redis | 4.1.1 → 4.2.1 | ok | 1.0 s | 2026-11-23 |",
]
PAGE = f"before\n{MOVES.begin}\n\n{MOVES.head}\n" + "\n".join(ROWS) + f"\n\n{MOVES.end}\nafter\n"


def test_a_run_replaces_its_rows_and_keeps_the_others() -> None:
    patched = Host("6.1.0-56-cloud-amd64", "3.17.1")
    fresh = Move(patched, NEW, "stop", "Redis", "4.2.1").line()

    page = replaced(PAGE, MOVES, [fresh])

    assert page == PAGE.replace(ROWS[0], fresh)
    assert "| 6.1.0-56 | 7.3.4 | v2 → v2 | stop | Redis | 3.17.1 → 4.2.1 | **failed** |" in fresh


def test_writing_the_same_rows_twice_changes_nothing() -> None:
    row = Move(NEW, OLD, "pre", "Redis", "4.2.1", "ok", 1.25).line()
    once = replaced(PAGE, MOVES, [row])

    assert once == replaced(once, MOVES, [row])
    assert once.index(ROWS[0]) < once.index(ROWS[1]) < once.index(row)
    assert (once[:7], once[-6:]) == ("before\n", "after\n")


def test_page_has_a_place_for_each_table() -> None:
    page = results.PAGE.read_text(encoding="utf-8")

    for table, row in (
        (MOVES, Move(OLD, NEW, "stop", "x", "4.2.1").line()),
        (REFUSALS, Refused(OLD, NEW, "cpu", "lacks avx").line()),
    ):
        assert row in replaced(page, table, [row])
        assert 1 == page.count(table.begin) == page.count(table.end)


@pytest.mark.parametrize(
    ("release", "shown"),
    [
        ("6.1.0-50-cloud-amd64", "6.1.0-50"),
        ("7.3.4+deb13-cloud-amd64", "7.3.4"),
        ("6.18.5", "6.18.5"),
    ],
)
def test_a_kernel_is_shown_without_its_flavour(release: str, shown: str) -> None:
    assert shown == results.short(release)
