"""PostgreSQL under pgbench, which runs outside of both hosts: no transaction fails."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from tests.lab import Client, Lab, Process
from tests.lab.images import CachedImage
from tests.privileged.programs.conftest import by_mode, move_and_back
from tests.privileged.programs.test_postgres import SERVER

pytestmark = [pytest.mark.privileged, pytest.mark.criu, pytest.mark.requires("userfaultfd")]

ADDRESS = "10.88.0.26"
CLIENTS = 4
SUMS = (
    "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from"
    " pgbench_branches), (select sum(tbalance) from pgbench_tellers), sum(delta), count(*)"
    " from pgbench_history"
)


class Pgbench:
    """The image's pgbench, with the image as its root, in the client's place."""

    def __init__(self, lab: Lab, programs: CachedImage) -> None:
        (layer,) = programs.layers
        root = programs.root / "images" / "layers" / layer
        program = "exec /usr/lib/postgresql/*/bin/pgbench -h $0 -U postgres $@ postgres"
        self._argv = ["chroot", str(root), "sh", "-c", program, ADDRESS]
        self._lab = lab

    def fill(self) -> None:
        """Make the tables: 15 MiB for each branch."""
        self._lab.client.run([*self._argv, "-i", "-q", "-s", "2"])

    def start(self) -> Process:
        """Run transactions until SIGALRM, which is how pgbench itself ends after a time."""
        load = ("-c", str(CLIENTS), "-j", "2", "-T", "3600", "-P", "1", "-R", "400")
        return self._lab.client.popen([*self._argv, *load])


def progress(bench: Process) -> float:
    """Return the transactions a second of the next second that has some."""
    assert bench.stderr is not None
    while line := bench.stderr.readline():
        found = re.match(r"progress: .*?([\d.]+) tps", line)
        if found and float(found[1]):
            return float(found[1])
    raise AssertionError(f"pgbench ended: {bench.communicate()}")


@pytest.fixture
def bench(lab: Lab, programs: CachedImage, containers: None) -> Iterator[Process]:
    """Run PostgreSQL on alpha, and pgbench against it."""
    run = ("run", "-d", "--name", "postgres", "--ip", ADDRESS, "-u", "postgres")
    lab["alpha"].pymigrate(*run, "programs", "sh", "-c", SERVER)
    with Client(lab.client, "sql", ADDRESS, 5432):
        pass  # it answers
    pgbench = Pgbench(lab, programs)
    pgbench.fill()
    with pgbench.start() as bench:
        yield bench
        bench.kill()


@by_mode("hybrid")
def test_no_transaction_of_pgbench_fails(lab: Lab, bench: Process, mode: str) -> None:
    progress(bench)

    move_and_back(lab, "postgres", mode, lambda: progress(bench))

    bench.send_signal(signal.SIGALRM)
    said, complained = bench.communicate(timeout=60)
    assert 0 == bench.returncode, complained
    assert "number of failed transactions: 0 (0.000%)" in said
    (done,) = re.findall(r"number of transactions actually processed: (\d+)", said)
    with Client(lab.client, "sql", ADDRESS, 5432) as client:
        (row,) = client.ask(SUMS)["rows"]
    accounts, branches, tellers, deltas, count = map(int, row)
    assert accounts == branches == tellers == deltas
    # Those that were under way when pgbench was ended may have been committed unheard.
    assert int(done) <= count <= int(done) + CLIENTS
