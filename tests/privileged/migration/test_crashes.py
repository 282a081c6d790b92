"""A real migration killed at every phase: never two copies run, and recover ends with one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pymigrate.migrate.phases import Phase
from tests.features import requires
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


# An agent whose container loses its supervisor once, when the line of the hand-over is written.
BEREAVING = """#!{python}
import os, signal, sys
from pathlib import Path
from pymigrate.migrate import cli
from pymigrate.runtime import lock
from pymigrate.runtime.container import Container
plug = Container.plug
def plug_alone(self):
    if not Path("/tmp/bereaved").exists():
        Path("/tmp/bereaved").touch()
        supervisor = self.state().supervisor
        os.kill(supervisor.pid, signal.SIGKILL)
        assert lock.await_end(supervisor, 10)
    plug(self)
Container.plug = plug_alone
sys.exit(cli.main())
"""


@pytest.mark.parametrize("mode", ["stop", pytest.param("hybrid", marks=requires("userfaultfd"))])
def test_a_copy_that_loses_its_supervisor_amid_the_hand_over_is_restored_once_more(
    lab: Lab, counter: Counter, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    bereaving = beta.outside("/tmp/bereaving")
    bereaving.write_text(BEREAVING.format(python=sys.executable))
    bereaving.chmod(0o755)
    before = counter.count(alpha)

    words = ("migrate", "counter", "root@beta", "--mode", mode)
    moved = alpha.pymigrate(*words, "--remote-command", "/tmp/bereaving", check=False)

    assert beta.outside("/tmp/bereaved").exists(), moved.stderr
    assert counter.running() in ([], [beta])
    alpha.pymigrate("recover")
    assert [beta] == counter.running()
    assert "absent" == counter.status(alpha)
    assert counter.count(beta) >= before
    beta.sh("rm /tmp/bereaving /tmp/bereaved")
