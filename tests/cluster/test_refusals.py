"""Moves that cannot work are refused while the container runs on, with what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.cluster.cluster import Machine
from tests.cluster.results import Refused, Results

pytestmark = pytest.mark.cluster

# new-bare has a CPU of x86-64-v2, and its root lacks CAP_SYS_RESOURCE.
CASES = [
    ("new", "new-bare", "newest", (), "cpu", "--cpu-baseline x86-64-v2"),
    ("new", "old", "own", (), "criu", "use CRIU 4.2.1 or newer at old"),
    ("middle", "new", "own", (), "kernel", "use CRIU 4.2 or newer at new"),
    (
        *("new", "new-bare", "newest"),
        ("--cap-add", "SYS_RESOURCE", "--cpu-baseline", "x86-64-v2"),
        *("capabilities", "--cap-drop SYS_RESOURCE"),
    ),
]


@pytest.mark.parametrize(("source", "target", "criu", "options", "check", "remedy"), CASES)
def test_refusal_comes_before_the_freeze(
    guests: dict[str, Machine],
    image: Callable[[Machine, str], str],
    results: Results,
    clean: None,
    source: str,
    target: str,
    criu: str,
    options: Sequence[str],
    check: str,
    remedy: str,
) -> None:
    here, there = guests[source], guests[target]
    here.choose_criu(here.criu)
    run = ("run", "-d", "--name", "sleeper", *options)
    here.pymigrate(*run, image(here, "small"), "sleep", "1000")
    there.sh(f"choose-criu {criu}")
    try:
        said = here.pymigrate("migrate", "sleeper", there.name, check=False)
    finally:
        there.choose_criu(there.criu)

    assert 21 == said.returncode
    assert f"[{check}]" in said.stderr
    assert 1 == said.stderr.count("]"), f"only {check}: {said.stderr}"
    assert "nothing was touched" in said.stderr
    assert remedy in said.stderr
    (row,) = here.pymigrate_json("ps")
    assert "running" == row["status"]
    assert [] == there.pymigrate_json("ps", "-a")
    words, _, _ = said.stderr.partition(f" [{check}]")
    results.refusals.append(Refused(here, there, check, words.partition(": ")[2]))
