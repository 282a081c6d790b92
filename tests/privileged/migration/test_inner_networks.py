"""CRIU works inside the container's network, but for containers that made networks of their own."""

from __future__ import annotations

import pytest

from pymigrate.migrate.journal import read
from tests.lab import Host, Lab
from tests.privileged.migration.conftest import Counter

pytestmark = [pytest.mark.privileged, pytest.mark.criu, pytest.mark.requires("userfaultfd")]


def was_inside(source: Host) -> object:
    """Return whether the only move from this host was written down inside the network."""
    (journal,) = source.outside("/srv/pymigrate/migrations").glob("*/journal")
    return read(journal).facts()["inside_network"]


def test_a_container_with_one_network_is_written_down_from_inside_it(
    lab: Lab, counter: Counter
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    alpha.pymigrate("migrate", "counter", "root@beta")

    assert was_inside(alpha) is True
    assert [beta] == counter.running()
    seen = beta.pymigrate("exec", "counter", "ip", "address").stdout
    assert "10.88.0.31/16" in seen


def test_a_network_that_a_container_made_itself_is_one_of_its_own_after_a_move(
    lab: Lab, counter: Counter
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    inner = "unshare -n sh -c 'echo $$ >/inner; while true; do sleep 1; done' & wait"
    alpha.pymigrate("run", "-d", "--privileged", "--name", "nest", "small", "sh", "-c", inner)
    alpha.sh("until pymigrate exec nest test -s /inner; do sleep 0.1; done", timeout=60)

    alpha.pymigrate("migrate", "nest", "root@beta")

    assert was_inside(alpha) is False
    look = "for pid in 1 $(cat /inner); do readlink /proc/$pid/ns/net; done"
    outer, own = beta.pymigrate("exec", "nest", "sh", "-c", look).stdout.split()
    assert outer != own
