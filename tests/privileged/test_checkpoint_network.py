"""Checkpoints of a container with clients: kept connections, other addresses, addresses in use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.lab.host import Host

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

SERVER = ("sh", "-c", "while :; do nc -l -p 7000 -e cat; done")
CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7000), 10)
connection.settimeout(10)
for line in sys.stdin:
    connection.sendall(line.encode())
    print(connection.recv(100).decode(), end="", flush=True)
"""
HERE = "10.88.0.20"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    with Lab(("alpha",)) as lab:
        alpha = lab["alpha"]
        alpha.sh("mkdir -p /srv/root/bin /srv/root/etc /srv/root/proc /srv/root/dev")
        shutil.copy(busybox, alpha.outside("/srv/root/bin/busybox"))
        alpha.sh("cd /srv/root/bin; for each in sh nc cat; do ln -s busybox $each; done")
        yield lab


@pytest.fixture
def alpha(lab: Lab) -> Iterator[Host]:
    yield lab["alpha"]
    names = lab["alpha"].pymigrate("ps", "-a", "-q").stdout.split()
    for name in names:
        lab["alpha"].pymigrate("rm", "-f", name)
    lab["alpha"].sh("rm -f /srv/a.tar.zst")


class Echo:
    """A client that keeps one connection."""

    def __init__(self, lab: Lab, address: str) -> None:
        self.process = lab.client.popen(
            [sys.executable, "-u", "-c", CLIENT, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def say(self, line: str) -> str:
        """Send a line and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return str(self.process.stdout.readline()).strip()

    def close(self) -> None:
        """End the client."""
        self.process.communicate()


def start(alpha: Host) -> None:
    words = ("--name", "a", "--rootfs", "/srv/root", "--ip", HERE)
    alpha.pymigrate("run", "-d", *words, *SERVER)


def test_connection_survives_a_file(lab: Lab, alpha: Host) -> None:
    start(alpha)
    client = Echo(lab, HERE)
    assert "before" == client.say("before")
    alpha.pymigrate("checkpoint", "a", "-o", "/srv/a.tar.zst")
    alpha.pymigrate("rm", "a")
    alpha.pymigrate("restore", "/srv/a.tar.zst", "--name", "renamed")
    assert "after" == client.say("after")
    client.close()


def test_connection_survives_a_checkpoint_that_leaves_it_running(lab: Lab, alpha: Host) -> None:
    start(alpha)
    client = Echo(lab, HERE)
    assert "before" == client.say("before")
    alpha.pymigrate("checkpoint", "a", "-o", "/srv/a.tar.zst", "--leave-running")
    assert "after" == client.say("after")
    client.close()


def test_second_copy_gets_another_address(lab: Lab, alpha: Host) -> None:
    start(alpha)
    client = Echo(lab, HERE)
    assert "before" == client.say("before")
    alpha.pymigrate("checkpoint", "a", "-o", "/srv/a.tar.zst", "--leave-running")
    refused = alpha.pymigrate("restore", "/srv/a.tar.zst", "--name", "b", check=False)
    assert (12, True) == (refused.returncode, "--ip" in refused.stderr)
    alpha.pymigrate("restore", "/srv/a.tar.zst", "--name", "b", "--ip", "10.88.0.21")
    other = Echo(lab, "10.88.0.21")
    assert "to the copy" == other.say("to the copy")
    assert "to the first" == client.say("to the first")
    other.close()
    client.close()


def test_address_that_somebody_has_is_refused(lab: Lab, alpha: Host) -> None:
    start(alpha)
    alpha.pymigrate("checkpoint", "a", "-o", "/srv/a.tar.zst")
    lab.client.sh(f"ip addr add {HERE}/16 dev uplink")
    try:
        refused = alpha.pymigrate("restore", "/srv/a.tar.zst", check=False)
        assert 12 == refused.returncode
        assert "in use on this network" in refused.stderr
    finally:
        lab.client.sh(f"ip addr del {HERE}/16 dev uplink")
    alpha.pymigrate("restore", "/srv/a.tar.zst")
