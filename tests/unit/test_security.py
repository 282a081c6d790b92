"""Each claim of docs/SECURITY.md has a test, and that test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/SECURITY.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?!claim|-)(?P<claim>.+) \| (?P<tests>.+) \|$", re.MULTILINE)


def every_test() -> set[str]:
    return {
        node.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_claim_names_tests_that_exist() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) > 20
    existing = every_test()
    for claim, tests in rows:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, claim
        assert set(named) <= existing, (claim, set(named) - existing)
