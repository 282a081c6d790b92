"""A connection over IPv6 goes on after a move."""

from __future__ import annotations

import pytest

from tests.lab import Client, Lab
from tests.privileged.migration.conftest import PORT, counting

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

SECOND = "fd00:88::31"


def test_a_connection_over_ipv6_goes_on_after_a_move(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    counter = counting(lab, "--ip6", SECOND)
    lab.client.ip("address add fd00:88::64/64 dev uplink nodad\n")
    with Client(lab.client, "echo", SECOND, PORT) as echo:
        alpha.pymigrate("migrate", "counter", "root@beta")
        assert [beta] == counter.running()
        while not echo.ask("after")["answers"]:
            pass  # the client itself gives up, with an error, when nothing comes
        echo.finish()
    beta.pymigrate("rm", "-f", "counter")
    lab.client.ip("address delete fd00:88::64/64 dev uplink\n")
    for host in lab.hosts.values():
        host.sh("rm -rf /srv/pymigrate/migrations/*")
