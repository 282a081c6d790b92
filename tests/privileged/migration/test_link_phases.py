"""A link that is cut for ten seconds in any phase, with a Redis that is written to all the while.

The move waits at the chosen moment until the link is cut, so there is no race for it. It ends by
itself, here or there, and only where it was given up may `recover` find something at the target.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from pymigrate.migrate.phases import Phase
from tests.lab import Client, Host, Lab, Process, images
from tests.lab.registry import wait_for
from tests.privileged.migration.conftest import await_end_of_cut_lines, clear

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
]

ADDRESS = "10.88.0.25"
PORT = 6379
SERVER = ("redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", "")
MIB = "32"
DYING = Path(__file__).with_name("dying.py")
CUT = 10.0  # seconds, as the promise says
PATIENCE = 120.0
PHASES = [phase for phase in Phase if phase is not Phase.PLANNED]
QUICK = (Phase.FILLED, "hybrid")  # post-copy; test_link.py has cuts before the commit


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    image = images.bootstrap("demo-redis", ["redis-server"])
    with Lab(("alpha", "beta")) as lab:
        for host in lab.hosts.values():
            images.lend(image, host)
        yield lab


@pytest.fixture
def writer(lab: Lab) -> Iterator[Client]:
    """Run a Redis with data on alpha, and a client that writes to it."""
    lab["alpha"].pymigrate(
        *("run", "-d", "--name", "redis", "--ip", ADDRESS, "demo-redis", *SERVER)
    )
    with (
        Client(lab.client, "redis-fill", ADDRESS, PORT, "--mib", MIB),
        Client(lab.client, "redis-writer", ADDRESS, PORT, "--rate", "500") as writer,
    ):
        yield writer
    lab.heal("beta")
    lab.shape()
    clear(lab)
    await_end_of_cut_lines(lab["beta"])


def homes(lab: Lab) -> list[str]:
    """Return the names of the hosts on which it runs."""
    return [
        host.name
        for host in lab.hosts.values()
        if [row["status"] for row in host.pymigrate_json("ps", "-a")] == ["running"]
    ]


def waiting(host: Host, phase: Phase, mode: str) -> Process:
    """Begin a move that waits at the beginning of a phase."""
    where = ("redis", "root@beta", phase.label, "began", mode)
    return host.popen([sys.executable, str(DYING), "--wait", *where], stdin=subprocess.PIPE)


def cut_for_ten_seconds(lab: Lab, move: Process) -> None:
    """Cut the link, tell the move to go on, and heal the link in the end."""
    assert move.stdin is not None
    lab.cut("beta")
    move.stdin.write("\n")
    move.stdin.flush()
    time.sleep(CUT)  # what is tested: not a wait for anything
    lab.heal("beta")


def assert_nothing_was_lost(lab: Lab, writer: Client, home: Host) -> None:
    """Check that the writer is still connected, that its writes and all other data are there."""
    assert [home.name] == homes(lab)
    while not writer.ask("after")["answers"]:
        pass  # the client itself gives up, with an error, when nothing comes
    said = writer.finish()
    with Client(lab.client, "redis-check", ADDRESS, PORT, "--mib", MIB) as checker:
        assert 0 == checker.ready["damaged"]
    assert 0 == said["lost"]
    assert said["acknowledged"] > 0
    assert said["same_connection"]


def cases() -> Iterator[ParameterSet]:
    for mode in ("stop", "pre", "post", "hybrid"):
        for phase in PHASES:
            marks = () if (phase, mode) == QUICK else (pytest.mark.long,)
            yield pytest.param(phase, mode, id=f"{phase.label}-{mode}", marks=marks)


@pytest.mark.parametrize(("phase", "mode"), [*cases()])
def test_a_cut_at_the_beginning_of_a_phase_costs_nothing_but_time(
    lab: Lab, writer: Client, phase: Phase, mode: str
) -> None:
    alpha = lab["alpha"]
    with waiting(alpha, phase, mode) as move:
        assert move.stdout is not None
        said = move.stdout.readline()
        assert "now\n" == said, move.communicate()

        cut_for_ten_seconds(lab, move)

        _, text = move.communicate(timeout=PATIENCE)
    if phase.may_roll_back:
        assert move.returncode in (0, 52), text
    else:
        assert 0 == move.returncode, text
    if move.returncode:
        alpha.pymigrate("recover")
        assert [] == lab["beta"].pymigrate_json("ps", "-a")
    assert_nothing_was_lost(lab, writer, lab["beta" if move.returncode == 0 else "alpha"])


@pytest.mark.long
def test_a_cut_amid_the_filling_costs_nothing_but_time(lab: Lab, writer: Client) -> None:
    """It runs at the target, a part of its memory is there, and the link is gone."""
    alpha, beta = lab["alpha"], lab["beta"]
    with waiting(alpha, Phase.HANDED_OVER, "post") as move:
        assert move.stdout is not None
        assert move.stdin is not None
        assert "now\n" == move.stdout.readline(), move.communicate()
        lab.shape(rate="16mbit")
        before = received(beta)
        move.stdin.write("\n")
        move.stdin.flush()
        # Some of the memory, and less than half of what it takes to be there.
        assert wait_for(lambda: received(beta) > before + (2 << 20), PATIENCE)
        lab.cut("beta")
        unfinished = move.poll() is None
        time.sleep(CUT)  # what is tested: not a wait for anything
        lab.heal("beta")
        lab.shape()
        _, text = move.communicate(timeout=PATIENCE)

    assert unfinished, "the link was too fast for this test"
    assert 0 == move.returncode, text
    assert_nothing_was_lost(lab, writer, beta)


def received(host: Host) -> int:
    """Return the bytes that have come to the host."""
    return int(host.sh("cat /sys/class/net/uplink/statistics/rx_bytes"))
