"""The lab: what a host in it is like, and that nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.features import requires
from tests.lab import Lab, LabError, registry
from tests.lab.host import REPOSITORY, Host

pytestmark = pytest.mark.privileged

DETACHED = "setsid {command} < /dev/null > /dev/null 2>&1 & echo $!"
OWNER = """
import sys
from tests.lab import Lab
with Lab(("alpha",)) as lab:
    lab["alpha"].sh("setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")
    print(lab.entry.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_host_has_its_own_name_network_and_temporary_files(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    alpha.sh("touch /tmp/here /run/here /dev/shm/here")

    assert "alpha\n" == alpha.sh("cat /proc/sys/kernel/hostname /etc/hostname | uniq")
    assert ["lo", "pymigrate0", "uplink"] == alpha.sh("ls /sys/class/net").split()
    assert "" == beta.sh("find /tmp /dev/shm /run -name here")
    assert not Path("/tmp/here").exists()


def test_hosts_log_into_each_other_with_strict_host_keys(lab: Lab) -> None:
    command = ["ssh", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "root@beta"]

    said = lab["alpha"].run([*command, "hostname; command -v pymigrate; echo $PYMIGRATE_ROOT"])

    assert f"beta\n{lab['beta'].directory}/bin/pymigrate\n/srv/pymigrate\n" == said.stdout


def test_command_in_a_host_gets_the_signal_and_gives_its_status(lab: Lab) -> None:
    with lab["alpha"].popen(["sleep", "1000"]) as sleeping:
        sleeping.terminate()

    assert sleeping.returncode == -signal.SIGTERM
    assert lab["alpha"].run(["sh", "-c", "exit 7"], check=False).returncode == 7


def test_failure_of_a_command_shows_what_it_said(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"on alpha: sh .* ended with 3\n.*out\n.*err"):
        lab["alpha"].run(["sh", "-c", "echo out; echo err >&2; exit 3"])


def test_address_moves_between_hosts(lab: Lab) -> None:
    for name in ("alpha", "beta"):
        lab[name].sh("ip address add 10.88.0.77/16 dev pymigrate0")
        with lab[name].popen([sys.executable, "-c", ANSWER], stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert "listening\n" == server.stdout.readline()
            assert f"{name}\n" == lab.client.run([sys.executable, "-c", ASK]).stdout
        lab[name].sh("ip address del 10.88.0.77/16 dev pymigrate0")
        lab.client.sh("ip neighbour flush all")


ANSWER = """
import socket
server = socket.create_server(("10.88.0.77", 7))
print("listening", flush=True)
connection, _ = server.accept()
connection.sendall(socket.gethostname().encode())
"""
ASK = """
import socket
print(socket.create_connection(("10.88.0.77", 7), timeout=5).recv(100).decode())
"""


def test_cut_host_is_silent_until_it_is_healed(lab: Lab) -> None:
    connect = "import sys, socket; socket.create_connection(('10.88.255.2', 22), int(sys.argv[1]))"

    lab.cut("beta")
    cut = lab.client.run(["python3", "-c", connect, "1"], check=False)
    lab.heal("beta")

    assert "timed out" in cut.stderr
    assert lab.client.run(["python3", "-c", connect, "10"]).returncode == 0


def test_rate_of_uplinks_is_limited(lab: Lab) -> None:
    lab.shape(rate="80mbit")
    shaped = lab["alpha"].sh("tc qdisc show dev uplink")
    lab.shape()

    assert "80Mbit" in shaped
    assert "80Mbit" not in lab["alpha"].sh("tc qdisc show dev uplink")


@requires("netem")
def test_delay_of_uplinks_is_added(lab: Lab) -> None:
    lab.shape(delay="5ms", rate="1gbit")
    shaped = lab["alpha"].sh("tc qdisc show dev uplink")
    lab.shape()

    assert "delay 5ms" in shaped


def test_disk_can_be_full(lab: Lab) -> None:
    lab["beta"].resize_disk("1m")
    said = lab["beta"].run(["dd", "if=/dev/zero", "of=/srv/big", "bs=1M", "count=2"], check=False)
    lab["beta"].sh("rm /srv/big")
    lab["beta"].resize_disk("50%")

    assert "No space left on device" in said.stderr


def programs(host: Host) -> list[str]:
    """List by name what runs on a host; numbers may be given again after a power cut."""
    return host.sh("cat /proc/[0-9]*/comm 2> /dev/null || true").splitlines()


def test_power_cut_ends_all_and_leaves_the_disk() -> None:
    with Lab(("alpha", "beta")) as lab:
        alpha = lab["alpha"]
        alpha.sh(DETACHED.format(command="sleep 1000"))
        alpha.sh("echo kept > /srv/file; touch /run/lost")
        assert "sleep" in programs(alpha)

        alpha.power_off()

        with pytest.raises(LabError, match="alpha is off"):
            alpha.run(["true"])
        lab.power_on("alpha")
        assert "kept\n" == alpha.sh("cat /srv/file")
        assert alpha.run(["test", "-e", "/run/lost"], check=False).returncode == 1
        assert "sleep" not in programs(alpha)
        assert "beta\n" == alpha.run(["ssh", "root@beta", "hostname"]).stdout


def test_lab_goes_down_although_a_host_has_frozen_processes() -> None:
    with Lab(("alpha",)) as lab:
        alpha = lab["alpha"]
        pid = alpha.sh(DETACHED.format(command="sleep 1000")).strip()
        directory = next(
            path
            for path in alpha.cgroups
            if (path / "freezer.state").exists() or (path / "cgroup.freeze").exists()
        )
        frozen = directory / "frozen"
        alpha.run(["mkdir", frozen])
        alpha.sh(f"echo {pid} > {frozen}/cgroup.procs")
        if (frozen / "freezer.state").exists():
            alpha.sh(f"echo FROZEN > {frozen}/freezer.state")
        else:
            alpha.sh(f"echo 1 > {frozen}/cgroup.freeze")

    assert not frozen.exists()


def test_next_lab_sweeps_one_whose_owner_was_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().strip()
        assert (registry.REGISTRY / name).exists()
        owner.kill()

    registry.sweep()  # another test run on this machine may do it first
    assert not (registry.REGISTRY / name).exists()


def test_sweep_leaves_living_labs_alone(lab: Lab) -> None:
    registry.sweep()

    assert "alpha\n" == lab["alpha"].sh("hostname")


INNER = """
from tests.privileged import conftest

conftest.PATIENCE = 0.1

def test_leaves():
    {leave}
"""
LEAVINGS = {
    "processes": "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "interfaces": "import subprocess; subprocess.run("
    "['ip', 'link', 'add', 'name', 'left-here', 'type', 'bridge'], check=True)",
    "temporary files": "open('/tmp/pymigrate-left', 'w').close()",
    "descriptors": "import os; os.open('/dev/null', os.O_RDONLY)",
}


@pytest.mark.parametrize("kind", LEAVINGS)
def test_what_a_test_leaves_is_noticed(kind: str, tmp_path: Path) -> None:
    """Run a test that leaves something, in a pytest of its own."""
    inner = tmp_path / "test_leaves.py"
    inner.write_text(INNER.format(leave=LEAVINGS[kind]))
    plugins = ["-p", "tests.conftest", "-p", "tests.privileged.conftest"]
    try:
        said = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *plugins, f"--rootdir={REPOSITORY}", inner],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        Path("/tmp/pymigrate-left").unlink(missing_ok=True)
        subprocess.run(["ip", "link", "del", "left-here"], stderr=subprocess.DEVNULL, check=False)

    assert "the test left behind" in said.stdout, said.stdout + said.stderr
    assert f"{kind}: " in said.stdout
