"""The report as a page: it says what the document says, loads nothing, and runs nothing."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from pymigrate.migrate.budget import Budget, Round, decide
from pymigrate.migrate.memory_rounds import MemoryRounds, Throttle
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.report import Report
from pymigrate.migrate.report_page import page

VOID = {"meta"}
LOADS = {"script", "link", "img", "iframe", "object", "embed", "image", "use", "a", "base", "form"}


class Reader(HTMLParser):
    """Takes the page apart; fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert [] == reader.open
    return reader


def document(name: str = "web", *, rounds: bool = True) -> dict[str, Any]:
    times = iter([10.0, 10.4])
    report = Report("m1", name, "alpha", "beta", "hybrid", clock=lambda: next(times))
    for phase in Phase:
        if phase is not Phase.PLANNED:
            report.began(phase)
            report.reached(phase, 0.1)
    report.counts = {"images": 4096, "memory": 8192, "memory early": 1 << 20}
    if rounds:
        seen = [Round(1000, 2 << 20, 1.0, 0.9), Round(100, 1 << 18, 0.2, 0.1, 20)]
        budget = Budget()
        report.budget = budget
        report.memory_rounds = MemoryRounds(
            budget, 0.2, Mode.HYBRID, Throttle(), seen, decide(budget, Mode.HYBRID, seen, fixed=0.2)
        )
    return report.to_document()


def test_the_page_shows_every_phase_round_and_both_blackouts() -> None:
    told = document()
    seen = read(page([told]))
    text = " ".join(seen.texts)

    for phase in told["phases"]:
        assert phase["name"] in seen.texts
    assert ["1000 sent", "100 dirtied", "100 sent", "2 dirtied"] == [
        each for each in seen.texts if each.endswith((" sent", " dirtied")) and each[0].isdigit()
    ]
    assert "2.0 MiB/s" in seen.texts  # 2 MiB in one second
    assert "20 %" in seen.texts
    for label, seconds in (("allowed", "300 ms"), ("predicted", "200 ms"), ("achieved", "400 ms")):
        assert seconds == seen.texts[seen.texts.index(label) + 1]
    assert "alpha" in text


def test_the_bars_of_the_phases_follow_one_another_and_those_of_the_blackout_are_marked() -> None:
    seen = read(page([document()]))
    at = next(n for n, (_, attrs) in enumerate(seen.tags) if attrs.get("class") == "phases")
    bars = [attrs for tag, attrs in seen.tags[at : at + 1 + 3 * (len(Phase) - 1)] if tag == "rect"]

    assert len(Phase) - 1 == len(bars)
    edges = [(float(bar["x"] or 0), float(bar["width"] or 0)) for bar in bars]
    for (x, wide), (following, _) in pairwise(edges):
        assert x + wide == pytest.approx(following, abs=0.2)
    assert [phase.is_blackout for phase in Phase if phase is not Phase.PLANNED] == [
        bar["class"] == "wait" for bar in bars
    ]


def test_the_page_has_all_that_the_json_has() -> None:
    told = document()
    seen = read(page([told]))

    assert told == json.loads(next(text for text in seen.texts if text.startswith("{")))


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    seen = read(page([document()]))

    assert not LOADS & {tag for tag, _ in seen.tags}
    for _, attributes in seen.tags:
        assert not {"src", "href", "srcset", "style"} & set(attributes)
        assert not [each for each in attributes if each.startswith("on")]
    assert any("default-src 'none'" in str(attrs.get("content")) for _, attrs in seen.tags)
    assert "url(" not in page([document()])
    assert "@import" not in page([document()])


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a&b"])
def test_names_are_text_whatever_they_are(name: str) -> None:
    seen = read(page([document(name)]))

    assert not LOADS & {tag for tag, _ in seen.tags}
    assert f"{name}: alpha to beta" in seen.texts


def test_a_move_that_ended_early_has_a_page_too() -> None:
    report = Report("m1", "web", "alpha", "beta", "stop")

    seen = read(page([report.to_document()]))

    assert any("unfinished in mode stop" in text for text in seen.texts)


def test_a_move_that_was_rolled_back_says_why() -> None:
    report = Report("m1", "web", "alpha", "beta", "stop", result="rolled back", cause="it is full")

    seen = read(page([report.to_document()]))

    assert any("rolled back (it is full) in mode stop" in text for text in seen.texts)


def test_a_move_without_rounds_predicts_nothing() -> None:
    seen = read(page([document(rounds=False)]))

    assert "predicted" not in seen.texts
    assert "achieved" in seen.texts


def test_a_group_has_one_page() -> None:
    seen = read(page([document("web"), document("db")]))

    headings = [text for text in seen.texts if text.endswith(": alpha to beta")]
    assert ["web: alpha to beta", "db: alpha to beta"] == headings[-2:]
