"""What a run of the matrix found, and its tables in docs/kernels.md."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "kernels.md"


class Side(Protocol):
    """One end of a move: a guest, or this machine."""

    @property
    def kernel(self) -> str:
        """The release of its kernel, such as 6.1.0-56-cloud-amd64."""
        ...

    @property
    def criu(self) -> str:
        """The version of its CRIU."""
        ...

    @property
    def cgroup(self) -> str:
        """The versions of cgroups that it has: v1, v2 or hybrid."""
        ...


@dataclass(frozen=True)
class Table:
    """A table of the page: its name, its head, and how many first columns say what was tried."""

    name: str
    columns: tuple[str, ...]
    identity: int

    @property
    def begin(self) -> str:
        """The line before it."""
        return f"<!-- {self.name}: written by the tests, sudo ./test --kernels -->"

    @property
    def end(self) -> str:
        """The line behind it."""
        return f"<!-- end of {self.name} -->"

    @property
    def head(self) -> str:
        """Its first two lines."""
        return f"{line(self.columns)}\n|{'---|' * len(self.columns)}"


MOVES = Table(
    "moves",
    ("from", "to", "cgroup", "mode", "program", "CRIU", "result", "blackout", "tried"),
    identity=5,
)
REFUSALS = Table("refusals", ("from", "to", "check", "what is said", "tried"), identity=3)


@dataclass
class Move:
    """One move; it counts as failed until it is said to have worked."""

    source: Side
    target: Side
    mode: str
    program: str
    read_by: str  # the version of the CRIU that restores
    result: str = "**failed**"
    blackout: float | None = None

    def line(self) -> str:
        """Write it as a row of the table."""
        cgroups = f"{self.source.cgroup} → {self.target.cgroup}"
        criu = f"{self.source.criu} → {self.read_by}"
        blackout = "" if self.blackout is None else f"{self.blackout:.1f} s"
        cells = (short(self.source.kernel), short(self.target.kernel), cgroups, self.mode)
        return line((*cells, self.program, criu, self.result, blackout, today()))


@dataclass(frozen=True)
class Refused:
    """One move that was refused, as it should be."""

    source: Side
    target: Side
    check: str
    said: str

    def line(self) -> str:
        """Write it as a row of the table."""
        kernels = short(self.source.kernel), short(self.target.kernel)
        return line((*kernels, f"`{self.check}`", self.said, today()))


@dataclass
class Results:
    """All that a run found, and the seconds of what it did beside its tests."""

    moves: list[Move] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note how many seconds the with block takes."""
        began = time.monotonic()
        yield
        self.phases[name] = time.monotonic() - began

    def begin(self, move: Move) -> Move:
        """Note that a move begins."""
        self.moves.append(move)
        return move

    def tables(self) -> list[tuple[Table, list[str]]]:
        """Return the rows of this run."""
        found = (MOVES, [move.line() for move in self.moves])
        return [found, (REFUSALS, [refused.line() for refused in self.refusals])]

    def write(self) -> None:
        """Put the tables where the last ones were."""
        page = PAGE.read_text(encoding="utf-8")
        for table, rows in self.tables():
            page = replaced(page, table, rows)
        PAGE.write_text(page, encoding="utf-8")


def replaced(page: str, table: Table, rows: Sequence[str]) -> str:
    """Return the page with these rows; rows of it that this run has not tried stay."""
    before, _, rest = page.partition(table.begin)
    old, _, after = rest.partition(table.end)
    kept = [row for row in old.splitlines() if row.startswith("| ") and row not in table.head]
    found = {tried(row, table): row for row in (*kept, *rows)}
    lines = [found[key] for key in sorted(found)]
    return before + "\n".join([table.begin, "", table.head, *lines, "", table.end]) + after


def tried(row: str, table: Table) -> tuple[str, ...]:
    """Return what of a row says what was tried, and not how it went; it sorts by kernel."""
    cells = [cell.strip() for cell in row.strip("|").split(" | ")[: table.identity]]
    for place in (0, 1):  # a kernel that got a patch is the same kernel
        numbers = re.findall(r"\d+", cells[place])[:2]
        cells[place] = ".".join(f"{int(number):04}" for number in numbers)
    return tuple(cells)


def short(release: str) -> str:
    """Return a kernel's release without what says only which Debian package it was."""
    return re.split(r"[+-](?!\d)", release)[0]


def line(cells: Sequence[str]) -> str:
    """Write one row."""
    return "| " + " | ".join(cells) + " |"


def today() -> str:
    """Return the date, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"
