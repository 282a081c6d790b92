"""A link that is cut in the middle of a move: it is given up in seconds, and nothing is lost."""

from __future__ import annotations

import signal

import pytest

from pymigrate.migrate.agent import MEMORY_NAME
from pymigrate.migrate.cli_agent import AGENT_NAME
from tests.lab import Client, Lab
from tests.privileged.migration.conftest import ADDRESS, PORT, Counter, await_end_of_cut_lines

pytestmark = [pytest.mark.privileged, pytest.mark.criu]


def test_link_cut_while_memory_crosses_rolls_back(lab: Lab, counter: Counter) -> None:
    """The link is slow, so that the memory takes long; it is cut while it is on its way.

    By SSH; that a cut ends a move by TLS as well is tested in test_data.py.
    """
    alpha = lab["alpha"]
    counter.fill_memory()
    lab.shape(rate="8mbit")
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        by_ssh = ["pymigrate", "migrate", "counter", "root@beta", "--data", "ssh"]
        with alpha.popen(by_ssh) as migrate:
            assert migrate.stderr is not None
            while "frozen" not in migrate.stderr.readline():
                assert migrate.poll() is None
            lab.cut("beta")
            _, text = migrate.communicate(timeout=60)
        lab.heal("beta")
        lab.shape()

        assert 52 == migrate.returncode, text
        assert "runs on here as before" in text
        assert "running" == counter.status(alpha)
        while not echo.ask("after")["answers"]:
            pass  # the client itself gives up, with an error, when nothing comes
        echo.finish()
    alpha.pymigrate("recover")
    assert [alpha] == counter.running()
    assert "absent" == counter.status(lab["beta"])
    await_end_of_cut_lines(lab["beta"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_memory_crosses_puts_everything_back(
    lab: Lab, counter: Counter, number: signal.Signals
) -> None:
    alpha = lab["alpha"]
    counter.fill_memory()
    lab.shape(rate="8mbit")
    with alpha.popen(["pymigrate", "migrate", "counter", "root@beta"]) as migrate:
        assert migrate.stderr is not None
        while "frozen" not in migrate.stderr.readline():
            assert migrate.poll() is None
        migrate.send_signal(number)
        _, text = migrate.communicate(timeout=60)
    lab.shape()

    assert 128 + number == migrate.returncode, text
    assert "interrupted" in text
    assert [alpha] == counter.running()
    assert "absent" == counter.status(lab["beta"])


@pytest.mark.parametrize("line", ["reserved", "precopied", "frozen", "shipped", "restored"])
def test_killed_agent_never_costs_the_container(lab: Lab, counter: Counter, line: str) -> None:
    """The agent dies after this line of progress, somewhere in the next phase."""
    alpha, beta = lab["alpha"], lab["beta"]
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        with alpha.popen(["pymigrate", "migrate", "counter", "root@beta"]) as migrate:
            assert migrate.stderr is not None
            while line not in migrate.stderr.readline():
                assert migrate.poll() is None
            beta.run(["pkill", "-KILL", "-x", f"{AGENT_NAME}|{MEMORY_NAME}"])
            _, text = migrate.communicate(timeout=120)
        assert migrate.returncode in (0, 51, 52), text
        assert len(counter.running()) <= 1
        alpha.pymigrate("recover")

        (home,) = counter.running()
        assert home is (alpha if migrate.returncode == 52 else beta)
        assert "absent" == counter.status(beta if home is alpha else alpha)
        while not echo.ask("after")["answers"]:
            pass  # the client itself gives up, with an error, when nothing comes
        echo.finish()
