"""The README's two commands work on a machine on which nothing was set up by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.long.clean_root import CleanRoot, clean_root

pytestmark = [
    pytest.mark.long,
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.timeout(1800),  # it downloads a whole machine, and builds a CRIU
]

REPOSITORY = Path(__file__).parents[2]
CHECKOUT = "/root/checkout"


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def machine(request: pytest.FixtureRequest) -> Iterator[CleanRoot]:
    """Build a fresh machine with a clone of what is committed here."""
    with clean_root(request.param, [REPOSITORY]) as root:
        trusted = f"safe.directory={REPOSITORY}/.git"
        result = root.run("git", "-c", trusted, "clone", "-q", str(REPOSITORY), CHECKOUT)
        assert result.returncode == 0, result.stdout
        yield root


def leavings(machine: CleanRoot) -> dict[str, set[str]]:
    """List what a careless command could leave on the machine around the root."""
    return {
        "cgroups": machine.cgroups(),
        "interfaces": {path.name for path in Path("/sys/class/net").iterdir()},
        "prefixes": {path.name for path in Path("/opt").iterdir()},
    }


def test_demo_moves_redis_and_loses_nothing(machine: CleanRoot) -> None:
    before = leavings(machine)

    result = machine.run("./demo", directory=CHECKOUT)

    assert result.returncode == 0, result.stdout
    table = result.stdout.splitlines()[-40:]
    assert any("acknowledged writes lost: 0" in line for line in table), result.stdout
    assert any("connection: the same" in line for line in table), result.stdout
    assert leavings(machine) == before


def test_demo_can_be_run_again_at_once(machine: CleanRoot) -> None:
    """The second set-up only looks: nothing is downloaded, nothing announced."""
    result = machine.run("./demo", directory=CHECKOUT)

    assert result.returncode == 0, result.stdout
    assert "setting up" not in result.stdout


def test_unit_tests_pass_and_the_tool_is_ready(machine: CleanRoot) -> None:
    result = machine.run("./test", "tests/unit", "-q", directory=CHECKOUT)
    assert result.returncode == 0, result.stdout

    result = machine.run("./pymigrate", "version", directory=CHECKOUT)
    assert result.returncode == 0, result.stdout


def test_real_programs_are_restored_and_move(machine: CleanRoot) -> None:
    before = leavings(machine)

    result = machine.run("./test", "tests/privileged/programs", "-q", directory=CHECKOUT)

    assert result.returncode == 0, result.stdout
    assert leavings(machine) == before


def test_a_second_set_up_only_looks(machine: CleanRoot) -> None:
    result = machine.run("vagrant/provision", "--for", "test", directory=CHECKOUT)
    assert result.returncode == 0, result.stdout

    started = time.monotonic()
    result = machine.run("vagrant/provision", "--for", "test", directory=CHECKOUT)
    elapsed = time.monotonic() - started

    assert (result.returncode, result.stdout) == (0, "")
    assert elapsed < 3.0
