"""Results as a table for people and as a JSON file that is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.harness import Row, ratio
from bench.machine import Machine

VERSION = 1  # of the JSON document


@dataclass(frozen=True)
class Column:
    """A measured value, its heading, whether it is compared with pymigrate's, and how it is shown.

    `unit` is "" for a spread in seconds, or a median by the value's name; "ms" for a median alone,
    "count" for the median of a number, and "most" for the greatest.
    """

    value: str
    title: str
    compared: bool = True
    unit: str = ""


@dataclass(frozen=True)
class Measure:
    """A table: its name in the results, its title, its columns."""

    name: str
    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Outcome:
    """All that one run of a benchmark gave."""

    bench: str
    when: datetime
    machine: Machine
    commit: str
    versions: Mapping[str, str]
    settings: Mapping[str, int]
    busy_before: float
    rows: Sequence[Row]
    unavailable: Mapping[str, str]

    def to_document(self) -> dict[str, object]:
        """Return what is kept; series are in the order of the runs."""
        return {
            "version": VERSION,
            "bench": self.bench,
            "when": self.when.astimezone(UTC).isoformat(timespec="seconds"),
            "machine": asdict(self.machine),
            "commit": self.commit,
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "cpu_use_before": round(self.busy_before, 3),
            "rows": [asdict(row) for row in self.rows],
            "unavailable": dict(self.unavailable),
        }

    def keep(self, directory: Path) -> Path:
        """Write the JSON file, named by date, CPU and kernel."""
        directory.mkdir(parents=True, exist_ok=True)
        when = self.when.astimezone(UTC).strftime("%Y-%m-%dT%H%M%SZ")
        path = directory / f"{when}-{self.machine.slug}.json"
        path.write_text(json.dumps(self.to_document(), indent=1) + "\n")
        return path


def show(outcome: Outcome, measures: Sequence[Measure], console: Console) -> None:
    """Print a table for each measure, and who could not take part."""
    settings = ", ".join(f"{name} {value}" for name, value in outcome.settings.items())
    versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
    console.print(Text(f"{outcome.machine}"))
    console.print(Text(f"{versions} ({outcome.commit}); {settings}"))
    console.print(Text(f"before the run others used {outcome.busy_before:.0%} of the CPUs"))
    for measure in measures:
        rows = [row for row in outcome.rows if row.measure == measure.name]
        console.print()
        console.print(table(measure, rows))
    for name, reason in outcome.unavailable.items():
        console.print(Text(f"{name} cannot run here: {reason}", style="red"))
    for row in outcome.rows:
        for reason in dict.fromkeys(row.failures):
            times = f" ({row.failures.count(reason)} times)" if len(row.failures) > 1 else ""
            said = reason.rpartition("\n")[2]  # all of it is in the JSON file
            what = f"{row.subject} {row.variant}: {row.measure} failed{times}: {said}"
            console.print(Text(what, style="red"))
    console.print(Text("median (minimum–maximum); × is the median divided by pymigrate's"))


def table(measure: Measure, rows: Sequence[Row]) -> Table:
    """Lay out one measure."""
    result = Table(title=measure.title, title_justify="left", header_style="bold", pad_edge=False)
    result.add_column("")
    result.add_column("how")
    for column in measure.columns:
        result.add_column(column.title, justify="right")
        if column.compared:
            result.add_column("×", justify="right")
    for row in rows:
        cells = []
        for column in measure.columns:
            cells.append(cell(row, column.value, column.unit))
            if column.compared:
                times = ratio(row, rows, column.value)
                cells.append("" if times is None else f"{times:.2f}")
        style = "bold" if row.subject == "pymigrate" else ""
        result.add_row(row.subject, row.variant, *cells, style=style)
    return result


def cell(row: Row, name: str, unit: str = "") -> str:
    """Write a spread; "failed" in place of what there is not."""
    spread = row.spread(name)
    if spread is None:
        return "failed" if row.failures else "–"
    if unit == "ms":
        return f"{spread.median * 1000:.1f} ms"
    if unit in {"count", "most"}:
        return f"{spread.median if unit == 'count' else spread.maximum:.0f}"
    if name == "ratio":
        return f"{spread.median:.2f}"
    if name == "bytes" or name.endswith("_bytes"):
        return f"{spread.median / 2**20:.1f} MiB"
    return f"{spread.median:.3f} s ({spread.minimum:.3f}–{spread.maximum:.3f})"
