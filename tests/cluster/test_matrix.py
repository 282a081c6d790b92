"""Containers that move between kernels, seen from a client on a third machine."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.cluster import Machine, Outside
from tests.cluster.matrix import CGROUPS, MODES, PAIRS, moves
from tests.cluster.results import Move, Results
from tests.lab.client import Client

pytestmark = pytest.mark.cluster

ADDRESS = "10.88.0.21"
COUNT = (
    "nc -ll -p 7000 -e cat & i=0; while true; do i=$((i+1)); echo $i >> /data/count; usleep 50000; "
    "done"
)
LEAVINGS = "nft list ruleset; lsns --noheadings --output NS,TYPE | sort; ip -o link | wc -l"
Give = Callable[[Machine, str], str]


@moves([("old", "new")], MODES)
def test_redis_keeps_every_write_and_the_connection(
    guests: dict[str, Machine],
    outside: Outside,
    image: Give,
    results: Results,
    clean: None,
    source: str,
    target: str,
    mode: str,
) -> None:
    here, there = guests[source], guests[target]
    left = here.sh(LEAVINGS).stdout
    server = ("redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", "")
    here.pymigrate("run", "-d", "--name", "redis", "--ip", ADDRESS, image(here, "redis"), *server)
    with Client(outside, "redis-writer", ADDRESS, 6379, "--rate", "50") as writer:
        before = writer.ask("before")
        move = Move(here, there, mode, "Redis with a client", there.criu_for(here))
        row = results.begin(move)

        here.migrate("redis", there, mode)

        answer = writer.ask("moved")
        after = writer.ask("after")
        said = writer.finish()
    assert before["answers"] > 0
    assert answer["answers"] > 0
    assert after["seconds"] >= 0
    assert 0 == said["lost"]
    assert said["same_connection"]
    # CRIU's rules that lock the network were in the container's namespace, which went with it.
    assert left == here.sh(LEAVINGS).stdout
    row.result, row.blackout = "ok", float(answer["longest_gap"])


@moves([*PAIRS, *CGROUPS])
def test_counter_goes_on_counting(
    guests: dict[str, Machine],
    outside: Outside,
    image: Give,
    results: Results,
    clean: None,
    source: str,
    target: str,
    mode: str,
) -> None:
    here, there = guests[source], guests[target]
    run = ("run", "-d", "--name", "counter", "--ip", ADDRESS)
    here.pymigrate(*run, image(here, "small"), "sh", "-c", COUNT)
    with Client(outside, "echo", ADDRESS, 7000, "--rate", "50") as echo:
        echo.ask("before")
        move = Move(here, there, mode, "a static process that counts", there.criu_for(here))
        row = results.begin(move)
        counted = int(here.pymigrate("exec", "counter", "tail", "-n", "1", "/data/count").stdout)

        here.migrate("counter", there, mode)

        goes_on = int(there.pymigrate("exec", "counter", "tail", "-n", "1", "/data/count").stdout)
        moved = echo.ask("moved")
        said = echo.finish()
    assert goes_on > counted
    assert echo.ready["local_port"] == said["local_port"]
    row.result, row.blackout = "ok", float(moved["longest_gap"])


@moves([("new", "old")])
def test_process_tree_keeps_its_pipes_and_terminal(
    guests: dict[str, Machine],
    image: Give,
    results: Results,
    clean: None,
    source: str,
    target: str,
    mode: str,
) -> None:
    here, there = guests[source], guests[target]
    here.pymigrate("run", "-d", "-i", "-t", "--name", "tree", image(here, "small"), "sh")
    with attached(here, "tree") as terminal:
        terminal.type(
            "kept=forty-two; mkfifo /tmp/in; cat /tmp/in | tr a-z A-Z | cat > /tmp/out &\n"
        )
        terminal.type("exec 5>/tmp/in; echo bef''ore >&5; echo sta''rted $(tty)\n")
        terminal.read_until("started /dev/")
    program = "a process tree with pipes and a terminal"
    row = results.begin(Move(here, there, mode, program, there.criu_for(here)))

    here.migrate("tree", there, mode)

    with attached(there, "tree") as terminal:
        terminal.type("echo is''now $kept $(tty)\n")
        terminal.read_until("isnow forty-two /dev/")
        terminal.type("echo after >&5; exec 5>&-; wait; cat /tmp/out; echo en''ded\n")
        assert ["BEFORE", "AFTER"] == terminal.read_until("ended").split()[-2:]
        terminal.type("exit\n")
        # Still attached: what is typed takes its time through SSH.
        assert "0\n" == there.pymigrate("wait", "tree").stdout
    row.result = "ok"


class Terminal:
    """A person at a terminal on which `pymigrate attach` runs, by way of SSH."""

    def __init__(self, master: int) -> None:
        self.master = master
        self.shown = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def read_until(self, text: str, patience: float = 60) -> str:
        """Wait until this is shown; return all that was shown before it."""
        deadline = time.monotonic() + patience
        while text.encode() not in self.shown:
            left = max(0, deadline - time.monotonic())
            readable, _, _ = select.select([self.master], [], [], left)
            assert readable, f"{text!r} was not shown in {patience} s, but {self.shown.decode()!r}"
            self.shown += os.read(self.master, 4096)
        before, _, self.shown = self.shown.partition(text.encode())
        return before.decode()


@contextlib.contextmanager
def attached(machine: Machine, name: str) -> Iterator[Terminal]:
    """Attach a terminal to a container."""
    master, slave = os.openpty()
    try:
        command = machine.lab.ssh(machine.guest, [f"pymigrate attach {name}"], terminal=True)
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as process:
            try:
                yield Terminal(master)
            finally:
                process.kill()
    finally:
        os.close(slave)
        os.close(master)
