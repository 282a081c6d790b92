"""PostgreSQL, nginx, a JVM and a Node.js move between kernels while clients use them.

What is asserted is in tests/lab/services.py, as for hosts that share a kernel. A server stays where
the last move brought it: to start it takes an emulated machine longer than to move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.cluster import PATIENCE, Machine, Outside
from tests.cluster.matrix import MODES
from tests.cluster.results import Move, Results
from tests.cluster.travellers import CLEAN
from tests.lab.images import CachedImage
from tests.lab.services import DIGEST, NGINX, POSTGRES, RUNTIMES, Download, Heap, Load, Pgbench

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

NAME, ADDRESS = "service", "10.88.0.24"
MIB = 64
PAUSE = "50"  # with 2 ms, as elsewhere, rounds of memory take an emulated processor minutes
LEGS = [(*pair, mode) for mode in MODES for pair in (("old", "new"), ("new", "old"))]
ANSWERS = "until pymigrate logs {name} 2>&1 | grep -q '{word}'; do sleep 1; done"


@dataclass(frozen=True)
class Service:
    """A server: its name in the table, its image, how it is run, and what it says when it is up."""

    program: str
    image: str
    command: tuple[str, ...]
    word: str = "ready"
    options: tuple[str, ...] = ()


SERVICES = {
    "postgres": Service(
        "PostgreSQL under pgbench",
        "programs",
        ("sh", "-c", POSTGRES),
        "ready to accept connections",
        ("-u", "postgres"),
    ),
    "nginx": Service("nginx with a download", "programs", ("sh", "-c", NGINX, str(MIB))),
    "java": Service("a JVM under load", "runtimes", (*RUNTIMES["java"], PAUSE)),
    "node": Service("Node.js under load", "runtimes", (*RUNTIMES["node"], PAUSE)),
}


class Standing:
    """The service that runs, and where: nowhere after a move that failed."""

    def __init__(self, outside: Outside, lent: Callable[[Machine, str], CachedImage]) -> None:
        self._outside, self._lent = outside, lent
        self._met: dict[str, Machine] = {}
        self.at: tuple[str, Machine] | None = None

    def be_at(self, name: str, machine: Machine) -> None:
        """See to it that it runs there; if it did not come there, it begins anew."""
        self._met[machine.name] = machine
        if self.at == (name, machine):
            return
        self.end()
        service = SERVICES[name]
        self._lent(machine, service.image)
        run = ("run", "-d", "--name", NAME, "--ip", ADDRESS, *service.options, service.image)
        machine.pymigrate(*run, *service.command)
        machine.sh(ANSWERS.format(name=NAME, word=service.word))
        if name == "postgres":
            self._pgbench(machine).fill(1)
        self.at = (name, machine)

    def _pgbench(self, machine: Machine) -> Pgbench:
        image = self._lent(machine, "programs")
        return Pgbench(self._outside, image, ADDRESS, rate=8, patience=PATIENCE)

    def load(self) -> Load:
        """Return clients for it."""
        assert self.at is not None
        name, machine = self.at
        if name == "postgres":
            return self._pgbench(machine)
        if name == "nginx":
            digest = machine.pymigrate("exec", NAME, *DIGEST).stdout.split()[0]
            # At 0.4 MiB a second: the move has two and a half minutes.
            return Download(self._outside, ADDRESS, MIB, digest, rate=25, patience=PATIENCE)
        return Heap(self._outside, ADDRESS, rate=10, patience=PATIENCE)

    def move(self, target: Machine, mode: str) -> float:
        """Move it under load. Return the longest wait of a client, in seconds.

        Raises:
            LabError: it did not move, or a client saw an error.
            AssertionError: it moved, but something is not as it was.

        """
        assert self.at is not None
        name, source = self.at
        self._met[target.name] = target
        # So the move need not send its layers, which are hundreds of MiB.
        self._lent(target, SERVICES[name].image)
        with self.load() as load:
            self.at = None
            load.look()

            assert mode == source.migrate(NAME, target, mode)

            longest = load.look()
            load.end()
        self.at = (name, target)
        return longest

    def end(self) -> None:
        """Remove it wherever it may be."""
        self.at = None
        for machine in self._met.values():
            machine.sh(CLEAN)


@pytest.fixture(scope="module")
def standing(outside: Outside, lent: Callable[[Machine, str], CachedImage]) -> Iterator[Standing]:
    """Return it; a move that fails ends the service, and the next begins with a new one."""
    made = Standing(outside, lent)
    yield made
    made.end()


@pytest.mark.parametrize(
    ("name", "source", "target", "mode"), [(name, *leg) for name in SERVICES for leg in LEGS]
)
def test_a_service_moves_to_another_kernel_under_load(
    guests: dict[str, Machine],
    standing: Standing,
    results: Results,
    name: str,
    source: str,
    target: str,
    mode: str,
) -> None:
    here, there = guests[source], guests[target]
    standing.be_at(name, here)
    row = results.begin(Move(here, there, mode, SERVICES[name].program, there.criu_for(here)))

    row.blackout = standing.move(there, mode)

    row.result = "ok"
