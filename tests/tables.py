"""Tables in docs/ that are written by the tests, between two comments that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

Cells = tuple[str, ...]


def as_they_are(cells: Cells) -> Cells:
    """Tell rows apart by what is in them, and sort them by that."""
    return cells


@dataclass(frozen=True)
class Table:
    """A table of a page: its name, its head, and how many first columns say what was tried.

    ``order`` makes of these columns what tells a row from others, and sorts it.
    """

    name: str
    columns: Cells
    identity: int
    command: str
    order: Callable[[Cells], Cells] = as_they_are

    @property
    def begin(self) -> str:
        """The line before it."""
        return f"<!-- {self.name}: written by the tests, {self.command} -->"

    @property
    def end(self) -> str:
        """The line behind it."""
        return f"<!-- end of {self.name} -->"

    @property
    def head(self) -> str:
        """Its first two lines."""
        return f"{line(self.columns)}\n|{'---|' * len(self.columns)}"

    def tried(self, row: str) -> Cells:
        """Return what of a row says what was tried, and not how it went."""
        cells = [cell.strip() for cell in row.strip("|").split(" | ")[: self.identity]]
        return self.order(tuple(cells))


def replaced(page: str, table: Table, rows: Sequence[str]) -> str:
    """Return the page with these rows; rows of it that this run has not tried stay."""
    before, _, rest = page.partition(table.begin)
    old, _, after = rest.partition(table.end)
    kept = [row for row in old.splitlines() if row.startswith("| ") and row not in table.head]
    found = {table.tried(row): row for row in (*kept, *rows)}
    lines = [found[key] for key in sorted(found)]
    return before + "\n".join([table.begin, "", table.head, *lines, "", table.end]) + after


def line(cells: Sequence[str]) -> str:
    """Write one row."""
    return "| " + " | ".join(cells) + " |"


def today() -> str:
    """Return the date, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"
