"""redis-server under write load."""

from __future__ import annotations

import pytest

from tests.lab import Client, Lab
from tests.privileged.programs.conftest import Relocate

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

MIB = "32"  # more than what is worth a restore whose memory comes later
ADDRESS = "10.88.0.21"
SERVER = ("redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--appendonly", "yes")


def test_redis_keeps_every_write_and_the_connection(lab: Lab, relocate: Relocate) -> None:
    run = ("run", "-d", "--name", "redis", "--ip", ADDRESS, "-w", "/var/lib/redis")
    lab["alpha"].pymigrate(*run, "programs", *SERVER)
    with (
        Client(lab.client, "redis-fill", ADDRESS, 6379, "--mib", MIB),
        Client(lab.client, "redis-writer", ADDRESS, 6379) as writer,
    ):
        before = writer.ask("before")

        host = relocate("redis")

        writer.ask("meanwhile")
        size = host.pymigrate("exec", "redis", "redis-cli", "-h", ADDRESS, "dbsize").stdout
        after = writer.ask("after")
        said = writer.finish()
    with Client(lab.client, "redis-check", ADDRESS, 6379, "--mib", MIB) as checker:
        damaged = checker.ready["damaged"]

    assert before["answers"] > 0
    assert after["answers"] > 0
    assert 0 == said["lost"]
    assert said["same_connection"]
    assert 0 == damaged
    assert int(size) >= 16 * int(MIB)


@pytest.mark.usefixtures("containers")
def test_redis_comes_back_from_a_repository_of_another_host(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    at = ("--repo", f"ssh://{beta.ssh_destination}/srv/kept")
    run = ("run", "-d", "--name", "redis", "--ip", ADDRESS, "-w", "/var/lib/redis")
    alpha.pymigrate(*run, "programs", *SERVER)
    try:
        with Client(lab.client, "redis-fill", ADDRESS, 6379, "--mib", MIB):
            pass
        alpha.pymigrate("snapshot", "create", "redis", *at)
        alpha.pymigrate("rm", "-f", "redis")

        told = alpha.pymigrate_json("snapshot", "restore", "latest", *at)

        with Client(lab.client, "redis-check", ADDRESS, 6379, "--mib", MIB) as checker:
            assert 0 == checker.ready["damaged"]
        assert told["lazy"]
        assert "running" == alpha.pymigrate_json("ps", "-a")[0]["status"]
    finally:
        beta.sh("rm -rf /srv/kept")
