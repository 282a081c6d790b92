"""What a run of the matrix found, and its tables in docs/kernels.md."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.tables import Cells, Table, line, replaced, today

COMMAND = "sudo ./test --kernels"
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


def by_kernel(cells: Cells) -> Cells:
    """Sort by the numbers of the two kernels; one that got a patch is the same kernel."""
    numbers = [re.findall(r"\d+", cell)[:2] for cell in cells[:2]]
    return (*(".".join(f"{int(each):04}" for each in found) for found in numbers), *cells[2:])


MOVES = Table(
    "moves",
    ("from", "to", "cgroup", "mode", "program", "CRIU", "result", "blackout", "tried"),
    identity=5,
    command=COMMAND,
    order=by_kernel,
)
REFUSALS = Table(
    "refusals",
    ("from", "to", "check", "what is said", "tried"),
    identity=3,
    command=COMMAND,
    order=by_kernel,
)


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


def short(release: str) -> str:
    """Return a kernel's release without what says only which Debian package it was."""
    return re.split(r"[+-](?!\d)", release)[0]
