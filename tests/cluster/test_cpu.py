"""A container that was held to a baseline moves to lesser CPUs; another one is kept from it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.migrate import cpu, facts
from tests.cluster import programs
from tests.cluster.cluster import PATIENCE, Machine, Outside
from tests.cluster.matrix import FULL
from tests.cluster.results import Move, Results
from tests.cluster.this_machine import ThisMachine
from tests.cluster.this_machine import this_machine as host_of
from tests.cluster.travellers import Give
from tests.lab.client import Client

pytestmark = pytest.mark.cluster

ADDRESS = "10.88.0.22"
RATE = ("--rate", "50", "--timeout", str(PATIENCE))
REDIS = ("redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", "")
lesser = pytest.mark.skipif(not FULL, reason="takes an emulated minute; ./test --kernels=full")
HERE = facts.cpu_features(Path("/proc/cpuinfo").read_text())


@lesser
@pytest.mark.parametrize(("source", "target"), [("new", "new-bare")])
def test_redis_of_a_baseline_lives_on_a_lesser_cpu(
    guests: dict[str, Machine],
    outside: Outside,
    image: Give,
    results: Results,
    clean: None,
    source: str,
    target: str,
) -> None:
    here, there = guests[source], guests[target]
    run = ("run", "-d", "--name", "redis", "--ip", ADDRESS, "--cpu-baseline", "x86-64-v2")
    here.pymigrate(*run, image(here, "redis"), *REDIS)
    with Client(outside, "redis-writer", ADDRESS, 6379, *RATE) as writer:
        program = "Redis of x86-64-v2, to a CPU of that"
        row = results.begin(Move(here, there, "auto", program, there.criu_for(here)))

        row.mode = here.migrate("redis", there, row.mode)

        answer = writer.ask("moved", patience=PATIENCE)
        said = writer.finish(patience=PATIENCE)
    # A program that begins there finds the same environment.
    there.pymigrate("exec", "redis", "redis-cli", "-h", ADDRESS, "ping")
    assert 0 == said["lost"]
    assert said["same_connection"]
    row.result, row.blackout = "ok", float(answer["longest_gap"])


@lesser
@pytest.mark.parametrize(("source", "target"), [("new", "new-bare")])
def test_without_a_baseline_the_same_move_kills_what_uses_more(
    guests: dict[str, Machine], image: Give, clean: None, source: str, target: str
) -> None:
    here, there = guests[source], guests[target]
    here.pymigrate("run", "-d", "--name", "redis", "--ip", ADDRESS, image(here, "redis"), *REDIS)
    (tie,) = here.pymigrate_json("check", "redis")["cpu"]
    assert "adx" in tie["seen"]
    assert "--cpu-baseline x86-64-v3" in tie["remedy"]

    here.pymigrate("migrate", "--skip", "cpu", "redis", there.name)

    assert f"{128 + signal.SIGILL}\n" == there.pymigrate("wait", "redis").stdout


@pytest.fixture
def this_machine(guests: dict[str, Machine]) -> Iterator[ThisMachine]:
    """Return a pymigrate root on this machine, in the guests' network, with the image."""
    with host_of(next(iter(guests.values())).lab) as here:
        here.pymigrate("image", "import", programs.archives()["redis"], "redis")
        yield here


@pytest.mark.skipif(cpu.highest(HERE) is None, reason="this CPU is of no baseline")
@pytest.mark.parametrize(("source", "target"), [("new", "new")])
def test_redis_goes_from_this_machine_to_a_guest_and_back(
    guests: dict[str, Machine],
    this_machine: ThisMachine,
    outside: Outside,
    results: Results,
    clean: None,
    source: str,
    target: str,
) -> None:
    guest = guests[target]
    baseline = cpu.highest(HERE)
    assert baseline is not None
    run = ("run", "-d", "--name", "redis", "--ip", ADDRESS, "--cpu-baseline", baseline.name)
    this_machine.pymigrate(*run, "redis", *REDIS)
    with Client(outside, "redis-writer", ADDRESS, 6379, *RATE) as writer:
        writer.ask("before", patience=PATIENCE)
        program = f"Redis of {baseline.name}, from this machine"
        there = results.begin(Move(this_machine, guest, "auto", program, guest.newest_criu))

        there.mode = this_machine.send("redis", guest)

        there.blackout = float(writer.ask("there", patience=PATIENCE)["longest_gap"])
        program = f"Redis of {baseline.name}, back to this machine"
        back = results.begin(Move(guest, this_machine, "auto", program, this_machine.criu))

        back.mode = this_machine.take("redis", guest)

        back.blackout = float(writer.ask("back", patience=PATIENCE)["longest_gap"])
        said = writer.finish(patience=PATIENCE)
    assert 0 == said["lost"]
    assert said["same_connection"]
    there.result = back.result = "ok"
