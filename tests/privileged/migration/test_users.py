"""A container with users of its own moves with its connection, its files and its mapping."""

from __future__ import annotations

import pytest

from tests.lab import Client, Lab
from tests.privileged.migration.conftest import ADDRESS, COUNT, PORT, Counter

pytestmark = [pytest.mark.privileged, pytest.mark.criu]


def test_root_of_the_container_is_the_same_nobody_at_the_target(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate(
        "run", "-d", "--name", "counter", "--ip", f"{ADDRESS}/16",
        "--userns", "300000:400000:65536", "small", "sh", "-c", COUNT,
    )  # fmt: skip
    counter = Counter(lab)
    try:
        with Client(lab.client, "echo", ADDRESS, PORT) as echo:
            assert echo.ask("before")["answers"]
            count = counter.count(alpha)
            alpha.pymigrate("migrate", "counter", "root@beta")
            while not echo.ask("after")["answers"]:
                pass  # the client itself gives up, with an error, when nothing comes
            echo.finish()

        assert [beta] == counter.running()
        assert counter.count(beta) >= count
        script = "id -u; cat /proc/self/uid_map; stat -c %u:%g /count; ls /sys/class/net"
        found = beta.pymigrate("exec", "counter", "sh", "-c", script).stdout.split()
        assert ["0", "0", "300000", "65536", "0:0", "eth0", "lo"] == found
        upper = beta.outside("/srv/pymigrate/containers") / "counter/upper/count"
        assert (300000, 400000) == (upper.stat().st_uid, upper.stat().st_gid)
    finally:
        beta.pymigrate("rm", "-f", "counter", check=False)
        alpha.pymigrate("rm", "-f", "counter", check=False)
