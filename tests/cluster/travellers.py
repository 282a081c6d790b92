"""Three programs that travel in one container, and what is seen of them on the way.

In one, since each container of a move takes its ten seconds between emulated machines, however
little is in it; groups of containers are the business of tests/privileged/migration.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator

from tests.cluster.cluster import PATIENCE, Machine, Outside
from tests.lab import registry
from tests.lab.client import Client

COUNTER = "a static process that counts"
REDIS = "Redis with a client"
TREE = "a process tree with pipes and a terminal"
PROGRAMS = (COUNTER, REDIS, TREE)
NAME, ADDRESS = "three", "10.88.0.21"
ALL = f"""
nc -ll -p 7000 -e cat &
while i=$((i + 1)); do echo $i >> /data/count; usleep 50000; done &
redis-server --bind {ADDRESS} --protected-mode no --save "" > /dev/null &
exec sh
"""
PIPES = (
    "kept=forty-two; mkfifo /tmp/in /tmp/out; cat /tmp/in | tr a-z A-Z | cat > /tmp/out &\n",
    "exec 5>/tmp/in 6</tmp/out; echo sta''rted $(tty)\n",
)
COUNTED = """
before=$(tail -n 1 /data/count)
until now=$(tail -n 1 /data/count) && [ "$now" -gt "$before" ]; do usleep 10000; done
echo "$now"
"""
LEAVINGS = "nft list ruleset; lsns --noheadings --output NS,TYPE; ip -o link | cut -d : -f 2"
CLEAN = """
cd "$PYMIGRATE_ROOT" 2>/dev/null || exit 0
if [ -n "$(ls containers 2>/dev/null)" ]; then
  [ -z "$(ls migrations 2>/dev/null)" ] || pymigrate recover || exit
  for name in $(ls containers); do pymigrate rm -f "$name" || exit; done
fi
rm -rf migrations/*
"""
SETTLING = 60.0  # seconds for a guest's kernel to take apart what a container has let go
Give = Callable[[Machine, str], str]


class Travellers:
    """The container with the three: it is where the last move brought it.

    `image` gives a guest an image of programs.py.
    """

    def __init__(self, outside: Outside, image: Give) -> None:
        self._outside = outside
        self._image = image
        self.at: Machine | None = None
        self._met: dict[str, Machine] = {}
        self._before: dict[str, Counter[str]] = {}
        self._moves = 0
        self._counted = 0

    def meet(self, machine: Machine) -> None:
        """Remember what a guest is like before the container was there."""
        if machine.name not in self._met:
            self._met[machine.name] = machine
            self._before[machine.name] = present(machine)

    def be_at(self, machine: Machine) -> None:
        """See to it that it runs there; if it did not come there, it begins anew."""
        self.meet(machine)
        if self.at is machine:
            return
        self.end()
        run = ("run", "-d", "-i", "-t", "--name", NAME, "--ip", ADDRESS)
        machine.pymigrate(*run, self._image(machine, "redis"), "sh", "-c", ALL)
        with attached(machine, NAME) as terminal:
            for keys in PIPES:
                terminal.type(keys)
            terminal.read_until("started /dev/")
        self._counted = counted(machine)
        self.at = machine

    def move(self, target: Machine, mode: str) -> dict[str, float | None]:
        """Move the container, and look at the three from outside.

        Return how long each was not to be reached, in seconds; a terminal's is not measured.

        Raises:
            LabError: it did not move, or a client saw an error.
            AssertionError: it moved, but something is not as it was.

        """
        source, self.at = self.at, None
        assert source is not None, "be_at() comes first"
        self.meet(target)
        # So the move need not send its layers, which takes an emulated guest three times as long.
        self._image(target, "redis")
        self._moves += 1
        rate = ("--rate", "50", "--timeout", str(PATIENCE))
        keys = ("--keys", f"move-{self._moves}")
        with (
            Client(self._outside, "echo", ADDRESS, 7000, *rate) as echo,
            Client(self._outside, "redis-writer", ADDRESS, 6379, *rate, *keys) as writer,
        ):
            for client in (echo, writer):
                assert client.ask("before", patience=PATIENCE)["answers"] > 0

            assert mode == source.migrate(NAME, target, mode)

            windows = [client.ask("moved", patience=PATIENCE) for client in (echo, writer)]
            writer.ask("after", patience=PATIENCE)
            echoed, written = (client.finish(patience=PATIENCE) for client in (echo, writer))
        assert all(window["answers"] > 0 for window in windows)
        assert echo.ready["local_port"] == echoed["local_port"]
        assert written["same_connection"]
        assert 0 == written["lost"]
        before, self._counted = self._counted, counted(target)
        assert before < self._counted
        self._look_at_tree(target)
        self._look_at_leavings(source)
        self.at = target
        gaps = [float(window["longest_gap"]) for window in windows]
        return dict(zip(PROGRAMS, (*gaps, None), strict=True))

    def _look_at_tree(self, machine: Machine) -> None:
        """Send a word through its pipes and back, from its terminal."""
        with attached(machine, NAME) as terminal:
            terminal.type(f"echo move-{self._moves} >&5\n")
            terminal.type("read -r word <&6; echo ca''me $word $kept $(tty)\n")
            terminal.read_until(f"came MOVE-{self._moves} forty-two /dev/")

    def _look_at_leavings(self, machine: Machine) -> None:
        """See that a guest has nothing more than it had before the container came.

        It may have less: what another test had there may have been on its way out. CRIU's rules
        that lock the network were in the container's namespace, which went; the kernel takes
        interfaces and namespaces apart in its own time.
        """
        left: Counter[str] = Counter()

        def is_clean() -> bool:
            nonlocal left
            left = present(machine) - self._before[machine.name]
            return not left

        assert registry.wait_for(is_clean, SETTLING), f"left on {machine.name}: {list(left)}"

    def end(self) -> None:
        """Remove it wherever it may be."""
        self.at = None
        for machine in self._met.values():
            machine.sh(CLEAN)


def present(machine: Machine) -> Counter[str]:
    """List the lines of its packet filter's rules, its namespaces and its interfaces."""
    lines = machine.sh(LEAVINGS).stdout.splitlines()
    return Counter(" ".join(line.split()) for line in lines)


def counted(machine: Machine) -> int:
    """Wait until the counter has counted on; return how far it has come."""
    return int(machine.pymigrate("exec", NAME, "sh", "-c", COUNTED).stdout)


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
