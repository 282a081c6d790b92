"""One lab for all runs, and the table of what they found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import residue
from tests.lab import Lab
from tests.privileged.faults.field import Field
from tests.privileged.faults.results import TABLE, Results
from tests.residue import Snapshot

FOUND = pytest.StashKey[Results]()
PATIENCE = 3.0


@pytest.fixture(scope="module", autouse=True)
def no_residue(session_cgroups: list[Path]) -> Iterator[None]:
    """Look for leavings behind all runs: the container of one is that of the next."""

    def look() -> Snapshot:
        # Between modules pytest captures into other files than within a test.
        return replace(Snapshot.take(session_cgroups), descriptors=frozenset())

    before = look()
    yield
    left = residue.settle(look, before, PATIENCE)
    assert not left, "the runs left behind:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def ground(no_residue: None) -> Iterator[Field]:
    """Make two hosts; the container is started when it is wanted."""
    with Lab(("alpha", "beta")) as lab:
        made = Field.of(lab)
        yield made
        made.end()


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Collect what was found; when a fault was tried wholly, its row goes into the page."""
    found = request.config.stash.setdefault(FOUND, Results())
    before = found.rows()
    yield found
    if found.rows() != before:
        found.write()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the rows of this run."""
    rows = config.stash.get(FOUND, Results()).rows()
    if rows:
        terminalreporter.section("faults; also in docs/faults.md")
        terminalreporter.write_line("\n".join([TABLE.head, *rows]))
