"""A real migration killed at every phase: never two copies run, and recover ends with one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pymigrate.migrate.phases import Phase
from tests.lab import Client, Lab
from tests.privileged.migration.conftest import ADDRESS, PORT, Counter

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

MOMENTS = [
    (phase, event)
    for phase in Phase
    if phase is not Phase.PLANNED
    for event in ("began", "reached")
    if (phase, event) != (Phase.DONE, "reached")
]
DYING = Path(__file__).with_name("dying.py")


@pytest.mark.parametrize(("phase", "event"), MOMENTS)
def test_killed_source_is_settled_by_recover(
    lab: Lab, counter: Counter, phase: Phase, event: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        before = counter.count(alpha)
        killed = alpha.run(
            [sys.executable, DYING, "counter", "root@beta", phase.label, event], check=False
        )
        assert killed.returncode in (-9, 137), killed

        assert len(counter.running()) <= 1

        alpha.pymigrate("recover")

        committed = phase > Phase.COMMITTED or (phase, event) == (Phase.COMMITTED, "reached")
        home = beta if committed else alpha
        assert [home] == counter.running()
        assert "absent" == counter.status(alpha if committed else beta)
        assert counter.count(home) >= before
        while not echo.ask("recovered")["answers"]:
            pass  # the client itself gives up, with an error, when nothing comes
        echo.finish()


def test_held_copies_stay_held_when_their_agent_is_gone(lab: Lab, counter: Counter) -> None:
    """Between restore and commit both copies exist, and neither may run, whoever died."""
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.run([sys.executable, DYING, "counter", "root@beta", "restored", "reached"], check=False)

    assert [] == counter.running()
    counts = [counter.count(host) for host in (alpha, beta)]
    for host in (alpha, beta):
        refused = host.pymigrate("resume", "counter", check=False)
        assert 13 == refused.returncode
        assert "hint: pymigrate recover" in refused.stderr
    assert counts == [counter.count(host) for host in (alpha, beta)]

    alpha.pymigrate("recover")
    assert [alpha] == counter.running()
