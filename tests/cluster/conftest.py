"""The guests, the image of the containers, and the table of results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from guest_lab import Lab, sweep
from guests import GUESTS
from tests.cluster import programs
from tests.cluster.cluster import Machine, Outside
from tests.cluster.matrix import FULL
from tests.cluster.results import Results

collect_ignore = [] if FULL else ["test_arm.py", "test_vagrant.py"]


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[dict[str, Machine]]:
    """Start all guests that the chosen tests need, at once: they boot side by side.

    The lab ends with this process, even if it is killed; the next run removes its directory.
    """
    sweep()
    wanted = sorted({name for item in request.session.items for name in named(item)})
    lab = Lab(f"test-{os.getpid()}")
    try:
        images = lab.up([GUESTS[name] for name in wanted], leash=True)
        yield {name: Machine(lab, GUESTS[name], images[GUESTS[name].release]) for name in wanted}
    finally:
        lab.down()


def named(item: pytest.Item) -> list[str]:
    """List the guests of a test: they are the values of its parameters `source` and `target`."""
    call = getattr(item, "callspec", None)
    values = call.params.values() if call else ()
    return [name for name in values if isinstance(name, str) and name in GUESTS]


@pytest.fixture(scope="session")
def outside(guests: dict[str, Machine]) -> Outside:
    """Return where clients run: neither guest."""
    return Outside(next(iter(guests.values())).lab)


@pytest.fixture(scope="session")
def image(guests: dict[str, Machine]) -> Callable[[Machine, str], str]:
    """Return a function that gives a guest an image of programs.py, once, and returns its name."""
    archives = programs.archives()
    have: set[tuple[str, str]] = set()

    def give(machine: Machine, name: str) -> str:
        if (machine.name, name) not in have:
            machine.give(archives[name], f"/root/{name}.tar")
            machine.pymigrate("image", "import", f"/root/{name}.tar", name)
            have.add((machine.name, name))
        return name

    return give


FOUND = pytest.StashKey[Results]()


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Collect what was found; the tables are written after each test, in case of a killed run."""
    found = request.config.stash.setdefault(FOUND, Results())
    yield found
    found.write()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables of this run."""
    for table, rows in config.stash.get(FOUND, Results()).tables():
        if rows:
            terminalreporter.section(f"{table.name}; also in docs/kernels.md")
            terminalreporter.write_line("\n".join([table.head, *rows]))


CLEAN = """
cd "$PYMIGRATE_ROOT" 2>/dev/null || exit 0
if [ -n "$(ls containers 2>/dev/null)" ]; then
  [ -z "$(ls migrations 2>/dev/null)" ] || pymigrate recover || exit
  for name in $(ls containers); do pymigrate rm -f "$name" || exit; done
fi
rm -rf migrations/*
"""


@pytest.fixture
def clean(guests: dict[str, Machine], source: str, target: str) -> Iterator[None]:
    """Remove what a test leaves on its two guests."""
    yield
    for name in (source, target):
        guests[name].sh(CLEAN)
