"""Three programs that travel together from guest to guest, and what is seen of them on the way."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator

from tests.cluster.cluster import PATIENCE, Machine, Outside
from tests.lab.client import Client

COUNTER = "a static process that counts"
REDIS = "Redis with a client"
TREE = "a process tree with pipes and a terminal"
NAMES = {"counter": COUNTER, "redis": REDIS, "tree": TREE}
COUNTS_AT, SERVES_AT = "10.88.0.21", "10.88.0.24"
COUNT = (
    "nc -ll -p 7000 -e cat & i=0; while true; do i=$((i+1)); echo $i >> /data/count; usleep 50000; "
    "done"
)
SERVE = ("redis-server", "--bind", SERVES_AT, "--protected-mode", "no", "--save", "")
PIPES = (
    "kept=forty-two; mkfifo /tmp/in /tmp/out; cat /tmp/in | tr a-z A-Z | cat > /tmp/out &\n",
    "exec 5>/tmp/in 6</tmp/out; echo sta''rted $(tty)\n",
)
LEAVINGS = "nft list ruleset; lsns --noheadings --output NS,TYPE | sort; ip -o link | wc -l"
CLEAN = """
cd "$PYMIGRATE_ROOT" 2>/dev/null || exit 0
if [ -n "$(ls containers 2>/dev/null)" ]; then
  [ -z "$(ls migrations 2>/dev/null)" ] || pymigrate recover || exit
  for name in $(ls containers); do pymigrate rm -f "$name" || exit; done
fi
rm -rf migrations/*
"""
Give = Callable[[Machine, str], str]


class Travellers:
    """The three, as containers: they are where the last move brought them.

    `image` gives a guest an image of programs.py.
    """

    def __init__(self, outside: Outside, image: Give) -> None:
        self._outside = outside
        self._image = image
        self.at: Machine | None = None
        self._met: dict[str, Machine] = {}
        self._empty: dict[str, str] = {}
        self._moves = 0

    def meet(self, machine: Machine) -> None:
        """Remember what a guest is like before any of them was there."""
        if machine.name not in self._met:
            self._met[machine.name] = machine
            self._empty[machine.name] = machine.sh(LEAVINGS).stdout

    def be_at(self, machine: Machine) -> None:
        """See to it that they run there; if they did not come there, they begin anew."""
        self.meet(machine)
        if self.at is machine:
            return
        self.end()
        for name, words in (
            ("counter", ("--ip", COUNTS_AT, self._image(machine, "small"), "sh", "-c", COUNT)),
            ("redis", ("--ip", SERVES_AT, self._image(machine, "redis"), *SERVE)),
            ("tree", ("-i", "-t", self._image(machine, "small"), "sh")),
        ):
            machine.pymigrate("run", "-d", "--name", name, *words)
        with attached(machine, "tree") as terminal:
            for keys in PIPES:
                terminal.type(keys)
            terminal.read_until("started /dev/")
        self.at = machine

    def move(self, target: Machine, mode: str) -> dict[str, float | None]:
        """Move all three as one, and look at them from outside.

        Return how long each was not to be reached, in seconds; a terminal's is not measured.

        Raises:
            LabError: they did not move, or a client saw an error.
            AssertionError: they moved, but something is not as it was.

        """
        source, self.at = self.at, None
        assert source is not None, "be_at() comes first"
        self.meet(target)
        self._moves += 1
        rate = ("--rate", "50", "--timeout", str(PATIENCE))
        keys = ("--keys", f"move-{self._moves}")
        with (
            Client(self._outside, "echo", COUNTS_AT, 7000, *rate) as echo,
            Client(self._outside, "redis-writer", SERVES_AT, 6379, *rate, *keys) as writer,
        ):
            for client in (echo, writer):
                assert client.ask("before", patience=PATIENCE)["answers"] > 0
            counted = count(source)

            assert mode == source.migrate(",".join(NAMES), target, mode)

            windows = [client.ask("moved", patience=PATIENCE) for client in (echo, writer)]
            writer.ask("after", patience=PATIENCE)
            echoed, written = (client.finish(patience=PATIENCE) for client in (echo, writer))
        assert all(window["answers"] > 0 for window in windows)
        assert echo.ready["local_port"] == echoed["local_port"]
        assert written["same_connection"]
        assert 0 == written["lost"]
        assert counted < count(target)
        self._look_at_tree(target)
        # CRIU's rules that lock the network were in the containers' namespaces, which went.
        assert self._empty[source.name] == source.sh(LEAVINGS).stdout
        self.at = target
        gaps = [float(window["longest_gap"]) for window in windows]
        return dict(zip(NAMES.values(), (*gaps, None), strict=True))

    def _look_at_tree(self, machine: Machine) -> None:
        """Send a word through its pipes and back, from its terminal."""
        with attached(machine, "tree") as terminal:
            terminal.type(f"echo move-{self._moves} >&5\n")
            terminal.type("read -r word <&6; echo ca''me $word $kept $(tty)\n")
            terminal.read_until(f"came MOVE-{self._moves} forty-two /dev/")

    def end(self) -> None:
        """Remove them wherever they may be."""
        self.at = None
        for machine in self._met.values():
            machine.sh(CLEAN)


def count(machine: Machine) -> int:
    """Return how far the counter has come."""
    return int(machine.pymigrate("exec", "counter", "tail", "-n", "1", "/data/count").stdout)


class Terminal:
    """A person at a terminal on which `pymigrate attach` runs, by way of SSH."""

    def __init__(self, master: int) -> None:
        self.master = master
        self.shown = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def read_until(self, text: str) -> str:
        """Wait until this is shown; return all that was shown before it."""
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self.shown:
            left = max(0, deadline - time.monotonic())
            readable, _, _ = select.select([self.master], [], [], left)
            assert readable, f"{text!r} was not shown in {PATIENCE} s, but {self.shown.decode()!r}"
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
