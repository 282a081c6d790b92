"""What the runs found, and its table in docs/faults.md."""

from __future__ import annotations

import fcntl
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.privileged.faults.field import Seen
from tests.privileged.faults.matrix import FAULTS, Case, Fault, cases
from tests.tables import Table, line, replaced, today

PAGE = Path(__file__).resolve().parents[3] / "docs" / "faults.md"
COLUMNS = (
    "fault", "points", "runs", "went on at the source", "went on at the target",
    "ended with its host", "ran twice", "ran nowhere after `recover`", "acknowledged writes lost",
    "otherwise wrong", "tried",
)  # fmt: skip


def as_listed(cells: tuple[str, ...]) -> tuple[str, ...]:
    """Sort the faults as they are listed."""
    names = [fault.title for fault in FAULTS]
    return (f"{names.index(cells[0]):03}" if cells[0] in names else "999", *cells)


TABLE = Table("faults", COLUMNS, 1, "sudo ./test --long tests/privileged/faults", order=as_listed)


@dataclass
class Results:
    """Everything that was seen, by fault."""

    seen: dict[str, list[tuple[Case, Seen]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, case: Case, seen: Seen) -> None:
        """Take one run."""
        self.seen[case.fault.title].append((case, seen))

    def rows(self) -> list[str]:
        """Return a row for each fault all of whose runs were made."""
        wanted: dict[str, int] = defaultdict(int)
        for case in cases():
            wanted[case.fault.title] += 1
        return [
            row(fault, self.seen[fault.title])
            for fault in FAULTS
            if len(self.seen[fault.title]) == wanted[fault.title]
        ]

    def write(self) -> None:
        """Put the rows where the last ones were; other parts of the run may do so beside us."""
        rows = self.rows()
        if not rows:
            return
        with PAGE.open("r+", encoding="utf-8") as page:
            fcntl.flock(page, fcntl.LOCK_EX)
            text = replaced(page.read(), TABLE, rows)
            page.seek(0)
            page.truncate()
            page.write(text)


def row(fault: Fault, runs: list[tuple[Case, Seen]]) -> str:
    """Write what was seen of one fault."""
    ended = sum(case.ends_with_its_host and seen.at == "nowhere" for case, seen in runs)
    nowhere = sum(seen.at == "nowhere" for _, seen in runs) - ended
    counts = (
        len({case.point for case, _ in runs}),
        len(runs),
        sum(seen.at == "source" for _, seen in runs),
        sum(seen.at == "target" for _, seen in runs),
        ended,
        sum(seen.twice > 0 for _, seen in runs),
        nowhere,
        sum(seen.lost for _, seen in runs),
        sum(bool(seen.wrong) for _, seen in runs),
    )
    return line((fault.title, *map(str, counts), today()))
