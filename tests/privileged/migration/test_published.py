"""Ports of a host that lead into a container: after a move, those of the new host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Client, Host, Lab
from tests.privileged.migration.conftest import ADDRESS, Counter, clear, counting

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

PUBLISHED = 8700


@pytest.fixture
def published(lab: Lab) -> Iterator[Counter]:
    yield counting(lab, "-p", f"{PUBLISHED}:7000")
    clear(lab)
    for host in lab.hosts.values():
        assert host.sh("nft list tables") == ""


def answers(lab: Lab, host: Host) -> bool:
    """Say whether the echo server answers by the port of a host."""
    words = ["/bin/busybox", "nc", "-w", "5", str(host.address), str(PUBLISHED)]
    return lab.client.run(words, input="hello\n", check=False).stdout == "hello\n"


@contextmanager
def taken(host: Host) -> Iterator[None]:
    """Have another program listen on the port."""
    words = ["/bin/busybox", "nc", "-l", "-p", str(PUBLISHED)]
    with host.popen(words) as taker:
        try:
            host.sh(f"until ss -Hltn sport = {PUBLISHED} | grep -q LISTEN; do sleep 0.05; done")
            yield
        finally:
            taker.kill()
            taker.communicate()


def test_a_port_leads_in_on_the_new_host_and_no_more_on_the_old_one(
    lab: Lab, published: Counter
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with Client(lab.client, "echo", ADDRESS, 7000) as echo:
        assert answers(lab, alpha)
        alpha.pymigrate("migrate", "counter", "root@beta")

        assert [beta] == published.running()
        assert answers(lab, beta)
        assert not answers(lab, alpha)
        assert "" == alpha.sh("nft list tables")
        beta.pymigrate("migrate", "counter", "root@alpha")
        assert answers(lab, alpha)
        assert not answers(lab, beta)
        echo.finish()


def test_a_port_that_is_taken_there_is_told_before_the_freeze(lab: Lab, published: Counter) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with taken(beta):
        refused = alpha.pymigrate("migrate", "counter", "root@beta", check=False)

    assert 52 == refused.returncode, refused.stderr
    assert f"port {PUBLISHED}/tcp" in refused.stderr
    assert "frozen" not in refused.stderr
    assert [alpha] == published.running()
    assert "absent" == published.status(beta)
    assert answers(lab, alpha)
