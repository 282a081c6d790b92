"""A profile of AppArmor, which Debian's kernels have, confines a container, also when restored."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Machine

pytestmark = pytest.mark.cluster

PROFILE = """
profile pymigrate-test flags=(attach_disconnected, mediate_deleted) {
  file,
  capability,
  network,
  signal,
  ptrace,
  unix,
  deny /data/secret r,
}
"""
CONFINED = ("--security-opt", "apparmor=pymigrate-test")
LOAD = """
mountpoint -q /sys/kernel/security || mount -t securityfs none /sys/kernel/security
cat /root/profile > /sys/kernel/security/apparmor/.load
"""
UNLOAD = """
pymigrate ps -aq | xargs -r pymigrate rm -f
printf pymigrate-test > /sys/kernel/security/apparmor/.remove
umount /sys/kernel/security
"""


@pytest.fixture
def confining(
    guests: dict[str, Machine],
    image: Callable[[Machine, str], str],
    source: str,
    tmp_path: Path,
) -> Iterator[Machine]:
    """Load the profile into a guest that has an image."""
    if shutil.which("apparmor_parser") is None:
        pytest.skip("no apparmor_parser here to compile a profile: apt-get install apparmor")
    (tmp_path / "profile").write_text(PROFILE)
    compiled = ["-o", str(tmp_path / "compiled"), str(tmp_path / "profile")]
    # For the oldest of the guests; what its features do not name is not mediated.
    abi = ["-Q", "-T", "-K", "-M", "/etc/apparmor.d/abi/3.0"]
    subprocess.run(["apparmor_parser", *abi, *compiled], check=True)
    machine = guests[source]
    image(machine, "small")
    machine.give(tmp_path / "compiled", "/root/profile")
    machine.sh(LOAD)
    yield machine
    machine.sh(UNLOAD)


def label(machine: Machine) -> str:
    """Return what init of the container is confined by, as the guest says."""
    pid = machine.pymigrate_json("inspect", "web")["state"]["pid"]
    return machine.sh(f"cat /proc/{pid}/attr/apparmor/current").stdout.strip()


@pytest.mark.parametrize("source", ["old"])
def test_a_profile_confines_a_container_and_what_is_run_in_it(
    confining: Machine, source: str
) -> None:
    script = "echo x > /data/secret; cat /data/secret; exec sleep 1000"
    confining.pymigrate("run", "-d", "--name", "web", *CONFINED, "small", "sh", "-c", script)

    assert "pymigrate-test (enforce)" == label(confining)
    inside = confining.pymigrate("exec", "web", "cat", "/proc/self/attr/current", "/data/secret",
                                 check=False)  # fmt: skip
    assert "pymigrate-test (enforce)" == inside.stdout.strip()
    assert "Permission denied" in inside.stderr
    confining.pymigrate("checkpoint", "web", "-o", "/root/web.zst")
    confining.pymigrate("rm", "web")
    confining.pymigrate("restore", "/root/web.zst")
    assert "pymigrate-test (enforce)" == label(confining)
    confining.sh("rm /root/web.zst")


@pytest.mark.parametrize("source", ["old"])
def test_without_an_option_there_is_none_and_one_that_is_not_loaded_is_named(
    confining: Machine, source: str
) -> None:
    confining.pymigrate("run", "-d", "--name", "web", "small", "sleep", "1000")
    assert "unconfined" == label(confining)

    said = confining.pymigrate(
        "run", "--rm", "--security-opt", "apparmor=nonesuch", "small", "true", check=False
    )

    assert 125 == said.returncode
    assert "cannot take the AppArmor profile nonesuch: this host has none" in said.stderr
