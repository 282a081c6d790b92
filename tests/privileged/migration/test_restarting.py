"""A policy to run a container again moves with it, and never makes a second one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from pymigrate.migrate.phases import Phase
from tests.lab import Host, Lab
from tests.privileged.migration.conftest import Counter, clear, counting
from tests.privileged.migration.test_modes import DYING, REMEMBER
from tests.privileged.migration.test_published import PUBLISHED, taken
from tests.privileged.tool import until

pytestmark = [pytest.mark.privileged, pytest.mark.criu]


@pytest.fixture
def restarted(lab: Lab) -> Iterator[Counter]:
    yield counting(lab, "--restart", "always", "-p", f"{PUBLISHED}:7000")
    clear(lab)


def end_init(host: Host, name: str = "counter") -> None:
    """Kill the container's first process, as if it had failed."""
    pid = host.pymigrate_json("inspect", name)["state"]["pid"]
    host.run(["kill", "-9", str(pid)])


def is_run_again(host: Host, name: str = "counter") -> bool:
    state = host.pymigrate_json("inspect", name)["state"]
    return (state["status"], state["restarts"]) == ("running", 1)


def test_a_moved_container_is_run_again_at_the_target_only(lab: Lab, restarted: Counter) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    before = alpha.pymigrate_json("inspect", "counter")["state"]["supervisor_pid"]
    alpha.pymigrate("migrate", "counter", "root@beta")
    assert "absent" == restarted.status(alpha)
    assert not alpha.outside(f"/proc/{before}").exists()  # who could run it here

    end_init(beta)
    until(lambda: is_run_again(beta))
    assert [beta] == restarted.running()
    assert "absent" == restarted.status(alpha)


def test_a_move_that_was_rolled_back_leaves_the_policy_here(lab: Lab, restarted: Counter) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with taken(beta):
        alpha.pymigrate("migrate", "counter", "root@beta", check=False)
    assert [alpha] == restarted.running()

    end_init(alpha)
    until(lambda: is_run_again(alpha))
    assert "absent" == restarted.status(beta)


@pytest.fixture
def memory(lab: Lab) -> Iterator[None]:
    """Run a container with some tens of MiB of memory, again and again."""
    alpha = lab["alpha"]
    options = ("-d", "--name", "memory", "--restart", "always")
    alpha.pymigrate("run", *options, "small", "sh", "-c", REMEMBER)
    alpha.sh("until pymigrate logs memory | grep -q ready; do sleep 0.1; done", timeout=60)
    yield
    for host in lab.hosts.values():
        host.pymigrate("rm", "-f", "memory", check=False)
        host.sh("rm -rf /srv/pymigrate/migrations/*")


@pytest.mark.requires("userfaultfd")
def test_what_is_run_again_before_its_memory_is_there_needs_none_of_it(
    lab: Lab, memory: None
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    lab.shape(rate="8mbit")
    with alpha.popen(["pymigrate", "migrate", "memory", "root@beta", "--mode", "post"]) as move:
        assert move.stderr is not None
        while "handed-over" not in move.stderr.readline():
            assert move.poll() is None
        end_init(beta, "memory")
        until(lambda: is_run_again(beta, "memory"))
        lab.shape()
        _, text = move.communicate(timeout=60)
    assert 0 == move.returncode, text
    assert "memory" not in alpha.pymigrate("ps", "-a").stdout
    assert is_run_again(beta, "memory")


@pytest.mark.requires("userfaultfd")
def test_what_was_run_again_while_the_source_was_away_is_settled(lab: Lab, memory: None) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    moment = (Phase.HANDED_OVER.label, "reached", "post")
    alpha.run([sys.executable, DYING, "memory", "root@beta", *moment], check=False)
    end_init(beta, "memory")
    until(lambda: is_run_again(beta, "memory"))

    alpha.pymigrate("recover")

    assert "memory" not in alpha.pymigrate("ps", "-a").stdout
    assert is_run_again(beta, "memory")


def test_a_health_check_that_runs_is_ended_and_the_next_is_run_at_the_target(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    endless = "echo > /dev/shm/began; sleep 1000"
    counter = counting(
        lab, "--health-cmd", endless, "--health-interval", "1s", "--health-timeout", "1h"
    )
    began = ["pymigrate", "exec", "counter", "test", "-e", "/dev/shm/began"]
    until(lambda: alpha.run(began, check=False).returncode == 0)
    alpha.pymigrate("exec", "counter", "rm", "/dev/shm/began")
    alpha.pymigrate("migrate", "counter", "root@beta")

    assert [beta] == counter.running()
    until(lambda: beta.run(began, check=False).returncode == 0)
    beta.pymigrate("rm", "-f", "counter")
    for host in lab.hosts.values():
        host.sh("rm -rf /srv/pymigrate/migrations/*")
