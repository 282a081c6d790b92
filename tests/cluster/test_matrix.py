"""Programs that move between kernels, seen from clients on a third machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Machine, Outside
from tests.cluster.matrix import travels
from tests.cluster.results import Move, Results
from tests.cluster.travellers import NAME, PROGRAMS, Give, Travellers, attached

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def travellers(outside: Outside, image: Give) -> Iterator[Travellers]:
    """Return them; a move that fails ends them, and the next begins with new ones."""
    made = Travellers(outside, image)
    yield made
    made.end()


@travels
def test_programs_move_and_their_clients_see_a_pause(
    guests: dict[str, Machine],
    travellers: Travellers,
    results: Results,
    source: str,
    target: str,
    mode: str,
) -> None:
    here, there = guests[source], guests[target]
    travellers.be_at(here)
    read_by = there.criu_for(here)
    rows = {each: results.begin(Move(here, there, mode, each, read_by)) for each in PROGRAMS}

    seen = travellers.move(there, mode)

    for program, blackout in seen.items():
        rows[program].result, rows[program].blackout = "ok", blackout


@pytest.mark.parametrize("source", ["old"])
def test_shell_that_has_travelled_says_how_it_ended(
    guests: dict[str, Machine], travellers: Travellers, source: str
) -> None:
    host = travellers.at or guests[source]
    travellers.be_at(host)
    with attached(host, NAME) as terminal:
        terminal.type("exec 5>&-; wait; exit 3\n")

        # Still attached: what is typed takes its time through SSH.
        assert "3\n" == host.pymigrate("wait", NAME).stdout
