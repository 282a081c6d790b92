"""Every container off a host: one that fails keeps nobody, and another target may be tried."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from pymigrate.migrate import cli_evacuate
from pymigrate.migrate.amounts import bandwidth
from pymigrate.migrate.evacuation import Evacuation, Outcome

# Stands in for `migrate`: ends with the code that its file CODE-NAME-TARGET says, and tells of it.
MOVE = """
import json, pathlib, sys
name, target = sys.argv[2:]
directory = pathlib.Path(sys.argv[1])
with (directory / "tried").open("a") as tried: tried.write(f"{name} {target}\\n")
code = directory / f"{name}-{target}"
if code.exists():
    sys.stderr.write("pymigrate: no luck\\n")
    sys.exit(int(code.read_text()))
print(json.dumps({"seconds": 1.5, "blackout_seconds": 0.25}))
"""


def evacuation(directory: Path, *targets: str) -> tuple[Evacuation, list[Outcome]]:
    told: list[Outcome] = []
    words = [sys.executable, "-I", "-S", "-c", MOVE, str(directory)]
    return Evacuation(words, targets, told.append), told


def tried(directory: Path) -> list[str]:
    return (directory / "tried").read_text().splitlines()


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_one_that_fails_does_not_keep_the_others(tmp_path: Path, parallel: int) -> None:
    (tmp_path / "b-beta").write_text("52")
    work, told = evacuation(tmp_path, "beta")

    outcomes = work.run(["a", "b", "c"], parallel)

    assert [("a", 0), ("b", 52), ("c", 0)] == [(each.name, each.code) for each in outcomes]
    assert [True, False, True] == [each.gone for each in outcomes]
    assert "pymigrate: no luck" == outcomes[1].said
    assert (1.5, 0.25) == (outcomes[0].seconds, outcomes[0].blackout)
    assert {"a", "b", "c"} == {each.name for each in told}


def test_the_targets_take_turns(tmp_path: Path) -> None:
    work, _ = evacuation(tmp_path, "beta", "gamma")

    outcomes = work.run(["a", "b", "c"], 1)

    assert ["beta", "gamma", "beta"] == [each.target for each in outcomes]


@pytest.mark.parametrize(
    ("code", "ends"), [(21, 0), (24, 0), (41, 0), (51, 51), (52, 52), (13, 13)]
)
def test_the_next_target_is_tried_only_where_nothing_was_touched(
    tmp_path: Path, code: int, ends: int
) -> None:
    (tmp_path / "a-beta").write_text(str(code))
    work, _ = evacuation(tmp_path, "beta", "gamma")

    (outcome,) = work.run(["a"], 1)

    assert ends == outcome.code
    assert ["a beta", "a gamma"][: 1 if ends else 2] == tried(tmp_path)


def test_where_no_target_will_do_the_last_word_is_told(tmp_path: Path) -> None:
    for target in ("beta", "gamma"):
        (tmp_path / f"a-{target}").write_text("21")
    work, _ = evacuation(tmp_path, "beta", "gamma")

    (outcome,) = work.run(["a"], 1)

    assert ("gamma", 21) == (outcome.target, outcome.code)


def test_of_a_limit_each_move_at_a_time_has_its_share() -> None:
    parser = argparse.ArgumentParser()
    cli_evacuate.add_verbs(parser.add_subparsers())
    words = ["evacuate", "beta", "--parallel", "4", "--bandwidth", "1gbit"]

    passed = cli_evacuate.passed_on(parser.parse_args(words))

    (limit,) = [word for word in passed if word.startswith("--bandwidth=")]
    assert 250_000_000 == bandwidth(limit.partition("=")[2])


def test_an_interrupt_ends_what_runs_and_begins_no_more(tmp_path: Path) -> None:
    """The move itself says when it has begun, by a pipe of which it alone has the other end."""
    os.mkfifo(tmp_path / "begun")
    sleeper = "import signal, sys; open(sys.argv[1], 'w').close(); signal.pause()"
    words = [sys.executable, "-I", "-S", "-c", sleeper, str(tmp_path / "begun")]
    work = Evacuation(words, ["beta"], lambda _: None)

    def interrupt() -> None:
        (tmp_path / "begun").read_bytes()
        work.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcomes = work.run(["a", "b"], 1)
    thread.join()

    assert [("a", -signal.SIGTERM), ("b", 50)] == [(each.name, each.code) for each in outcomes]
    assert "not begun" == outcomes[1].said
    assert not any(each.gone for each in outcomes)
