"""A migration's report as one page for a browser: no network, no scripts, pictures drawn in it.

Pure: the document that ``--report FILE.json`` writes goes in, and nothing else is known. Names in
it may come from anywhere, so all text is escaped, and the page forbids itself to load anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pymigrate.migrate.output import duration, size
from pymigrate.migrate.phases import Phase

PAGE = 4096
WIDTH = 720.0  # of a picture, in its own units
ROW = 22.0
LABEL = 110.0  # what the names at the left of a picture take

_STYLE = """
:root { color-scheme: light dark; --rule: #8886; --run: #4a7fb5; --wait: #c8553d; --soft: #9bb8d3 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .2em 1em .2em 0; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid var(--rule) }
svg { width: 100%; height: auto } svg text { font-size: 12px; fill: currentColor }
.run { fill: var(--run) } .wait { fill: var(--wait) } .soft { fill: var(--soft) }
pre { overflow: auto; font-size: 12px }
"""


@dataclass(frozen=True)
class Bar:
    """One bar of a picture: its name, where it begins, how long it is, what is said of it."""

    name: str
    start: float
    length: float
    kind: str
    said: str


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a report's document, or of those of a group, one behind the other."""
    title = "; ".join(_title(each) for each in documents)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        *(part for each in documents for part in _container(each)),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _title(document: Mapping[str, Any]) -> str:
    return f"{document['name']}: {document['source']} to {document['target']}"


def _container(document: Mapping[str, Any]) -> Sequence[str]:
    return (
        f"<h1>{escape(_title(document))}</h1>",
        f"<p>{escape(_summary(document))}</p>",
        *_blackout(document),
        *_phases(document["phases"]),
        *_memory(document),
        *_files(document["file_rounds"]),
        _table("Bytes", ("what", "size"), [(k, size(v)) for k, v in document["bytes"].items()]),
        "<details><summary>All of it, as JSON</summary>",
        f"<pre>{escape(json.dumps(document, indent=2, ensure_ascii=False))}</pre></details>",
    )


def _summary(document: Mapping[str, Any]) -> str:
    cause = f" ({document['cause']})" if document.get("cause") else ""
    return (
        f"{document['result']}{cause} in mode {document['mode']}: "
        f"{size(document['bytes_sent'])} sent in {duration(document['seconds'])} "
        f"by {document['data'] or 'no connection'}; migration {document['id']}"
    )


def _blackout(document: Mapping[str, Any]) -> Sequence[str]:
    """Show how long clients waited beside how long that was expected to be."""
    predicted, achieved = document["predicted"], document["blackout_seconds"]
    allowed = document["budget"].get("max_downtime_seconds")
    bars = []
    if allowed is not None:
        bars.append(Bar("allowed", 0, allowed, "soft", duration(allowed)))
    if predicted is not None:
        expected = predicted["blackout_seconds"]
        bars.append(Bar("predicted", 0, expected, "run", duration(expected)))
    if achieved is not None:
        bars.append(Bar("achieved", 0, achieved, "wait", duration(achieved)))
    if not bars:
        return ()
    why = str(document["budget"].get("decision", ""))
    return (
        "<h2>Blackout: from the freeze until the target answered that it runs</h2>",
        _picture(bars, "blackout"),
        f"<p>{escape(why)}</p>" if why else "",
    )


def _phases(phases: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    if not phases:
        return ()
    bars, at = [], 0.0
    for phase in phases:
        waits = Phase.from_label(phase["name"]).is_blackout
        kind = "wait" if waits else "run"
        bars.append(Bar(phase["name"], at, phase["seconds"], kind, duration(phase["seconds"])))
        at += phase["seconds"]
    return (
        f"<h2>Phases, {duration(at)} together; in red, clients wait</h2>",
        _picture(bars, "phases"),
    )


def _memory(document: Mapping[str, Any]) -> Sequence[str]:
    """Show each round: what was sent, and what was written meanwhile, which the next one finds."""
    rounds = document["memory_rounds"]
    if not rounds:
        return ()
    dirtied = [each["pages"] for each in rounds[1:]] + [document["bytes"].get("memory", 0) // PAGE]
    bars = []
    rows = []
    for number, (each, dirty) in enumerate(zip(rounds, dirtied, strict=True), 1):
        bars += [
            Bar(f"round {number}", 0, each["pages"], "run", f"{each['pages']} sent"),
            Bar("", 0, dirty, "wait", f"{dirty} dirtied"),
        ]
        rate = each["wire"] / each["seconds"] if each["seconds"] else 0.0
        rows.append(
            (
                str(number),
                str(each["pages"]),
                str(dirty),
                size(each["wire"]),
                duration(each["seconds"]),
                f"{size(rate)}/s",
                f"{each['throttle']} %",
            )
        )
    head = ("round", "pages sent", "dirtied meanwhile", "on the wire", "time", "rate", "throttled")
    return (
        "<h2>Memory, in pages of 4096 bytes</h2>",
        _picture(bars, "memory"),
        "<p>What was dirtied in a round is what the next one had to send; in the last, what was "
        "left for the freeze or after.</p>",
        _table("", head, rows),
    )


def _files(rounds: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    rows = [
        (
            f"{number}{' (frozen)' if each['frozen'] else ''}",
            str(each["names"]),
            size(each["bytes"]),
            duration(each["seconds"]),
        )
        for number, each in enumerate(rounds, 1)
    ]
    return (_table("Files", ("round", "names", "sent", "time"), rows),) if rows else ()


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    above = "".join(f"<th>{escape(each)}</th>" for each in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    caption = f"<h2>{escape(title)}</h2>" if title else ""
    return f"{caption}<table><tr>{above}</tr>{lines}</table>"


def _picture(bars: Sequence[Bar], name: str) -> str:
    """Draw bars one below the other, on one scale from nothing to the last end."""
    most = max(each.start + each.length for each in bars) or 1.0
    room = WIDTH - 2 * LABEL  # at the right, what is said of a bar that ends there
    shapes = []
    for row, each in enumerate(bars):
        y = row * ROW
        x = LABEL + each.start / most * room
        wide = max(each.length / most * room, 1.0)
        shapes.append(
            f'<text x="0" y="{y + 15:g}">{escape(each.name)}</text>'
            f'<rect class="{each.kind}" x="{x:.1f}" y="{y + 3:g}" width="{wide:.1f}" '
            f'height="{ROW - 6:g}"/>'
            f'<text x="{x + wide + 6:.1f}" y="{y + 15:g}">{escape(each.said)}</text>'
        )
    high = len(bars) * ROW
    return (
        f'<svg class="{name}" role="img" aria-label="{name}" viewBox="0 0 {WIDTH:g} {high:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg>'
    )
