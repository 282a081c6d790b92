"""PostgreSQL under pgbench, which runs outside of both hosts: no transaction fails."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from tests.lab.images import CachedImage
from tests.lab.services import POSTGRES, Pgbench
from tests.privileged.programs.conftest import by_mode, move_and_back

pytestmark = [pytest.mark.privileged, pytest.mark.criu, pytest.mark.requires("userfaultfd")]

ADDRESS = "10.88.0.26"


@by_mode("hybrid")
def test_no_transaction_of_pgbench_fails(
    lab: Lab, programs: CachedImage, containers: None, mode: str
) -> None:
    run = ("run", "-d", "--name", "postgres", "--ip", ADDRESS, "-u", "postgres")
    lab["alpha"].pymigrate(*run, "programs", "sh", "-c", POSTGRES)
    pgbench = Pgbench(lab.client, programs, ADDRESS, rate=400)
    pgbench.fill(2)
    with pgbench as bench:
        move_and_back(lab, "postgres", mode, bench.look)

        bench.end()
