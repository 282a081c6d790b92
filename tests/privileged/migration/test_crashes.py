"""A real migration killed at every phase: never two copies run, and recover ends with one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
MODES = pytest.mark.parametrize(
    "mode", ["stop", pytest.param("hybrid", marks=requires("userfaultfd"))]
)


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


# An agent that is struck once in its hand-over, before or after a method of the container's.
STRUCK = """#!{python}
import os, signal, subprocess, sys
from pathlib import Path
from pymigrate.migrate import cli
from pymigrate.runtime import lock
from pymigrate.runtime.container import Container
{strike}
sys.exit(cli.main())
"""
# Its container loses its supervisor when the line of the hand-over is written.
BEREAVING = """
plug = Container.plug
def plug_alone(self):
    if not Path("/tmp/struck").exists():
        Path("/tmp/struck").touch()
        supervisor = self.state().supervisor
        os.kill(supervisor.pid, signal.SIGKILL)
        assert lock.await_end(supervisor, 10)
    plug(self)
Container.plug = plug_alone
"""
# It dies when the fence is gone and the line that says so is not written; somebody is quick.
LETTING_GO = """
unfence = Container.unfence
def unfence_and_die(self, migration_id):
    unfence(self, migration_id)
    if not Path("/tmp/struck").exists():
        Path("/tmp/struck").touch()
        subprocess.run({meanwhile}, check=True)
        os.kill(os.getpid(), signal.SIGKILL)
Container.unfence = unfence_and_die
"""


@contextmanager
def struck_agent(lab: Lab, strike: str) -> Iterator[tuple[str, ...]]:
    """Yield the words that have a move use such an agent; it must have been struck in the end."""
    beta = lab["beta"]
    agent = beta.outside("/tmp/agent")
    agent.write_text(STRUCK.format(python=sys.executable, strike=strike))
    agent.chmod(0o755)
    yield "--remote-command", "/tmp/agent"
    assert beta.outside("/tmp/struck").exists()
    beta.sh("rm /tmp/agent /tmp/struck")


@MODES
def test_a_copy_that_loses_its_supervisor_amid_the_hand_over_is_restored_once_more(
    lab: Lab, counter: Counter, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    before = counter.count(alpha)

    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        with struck_agent(lab, BEREAVING) as options:
            words = ("migrate", "counter", "root@beta", "--mode", mode)
            alpha.pymigrate(*words, *options, check=False)
            assert counter.running() in ([], [beta])
            alpha.pymigrate("recover")
        while not echo.ask("recovered")["answers"]:
            pass  # the copy that was ended has told its clients nothing, such as a reset
        echo.finish()

    assert [beta] == counter.running()
    assert "absent" == counter.status(alpha)
    assert counter.count(beta) >= before


@pytest.mark.parametrize("meanwhile", [["true"], ["pymigrate", "rm", "-f", "counter"]])
@MODES
def test_an_agent_killed_with_the_fence_gone_leaves_a_copy_that_was_handed_over(
    lab: Lab, counter: Counter, mode: str, meanwhile: list[str]
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    with struck_agent(lab, LETTING_GO.format(meanwhile=meanwhile)) as options:
        alpha.pymigrate("migrate", "counter", "root@beta", "--mode", mode, *options)

    assert "absent" == counter.status(alpha)
    assert ("running" if meanwhile == ["true"] else "absent") == counter.status(beta)
    assert ["done", "done"] == [
        row["state"] for host in (alpha, beta) for row in host.pymigrate_json("migrations", "ls")
    ]
