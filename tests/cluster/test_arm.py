"""On aarch64, emulated: the runtime's own tests, a checkpoint, and a move between two machines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_lab import Lab
from guests import GUESTS, SOURCE, VENV
from tests.cluster.cluster import PATIENCE, Machine, Outside, mode_of
from tests.cluster.results import Move, Results
from tests.lab.client import Client

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ADDRESS = "10.88.0.23"
RATE = ("--rate", "20", "--timeout", str(PATIENCE))
RUNTIME = (
    *("tests/unit/test_syscalls.py", "tests/unit/test_namespaces.py", "tests/unit/test_mounts.py"),
    *("tests/unit/test_seccomp.py", "tests/unit/test_cgroups.py", "tests/contract/test_cgroups.py"),
    *("tests/privileged/isolation", "tests/privileged/test_supervisor.py"),
)
"""What says most about an architecture: what goes to the kernel by number and by structure."""
IMAGE = """
mkdir -p /srv/root/bin /srv/root/data && cp /bin/busybox /srv/root/bin &&
chroot /srv/root /bin/busybox --install -s /bin && pymigrate image import /srv/root small
"""
COUNT = (
    "nc -ll -p 7000 -e cat & i=0; while true; do i=$((i+1)); echo $i >> /data/count; usleep 50000; "
    "done"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Start two Arm machines; they are too slow to run beside the others."""
    made = Lab(f"arm-{os.getpid()}")
    try:
        made.up([GUESTS["arm"], GUESTS["arm-other"]], leash=True)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def arm(lab: Lab) -> Machine:
    """Return the first of them, with an image."""
    machine = machines(lab)[0]
    machine.sh(IMAGE)
    return machine


def machines(lab: Lab) -> list[Machine]:
    """Return both, as hosts."""
    images = lab.up([GUESTS["arm"], GUESTS["arm-other"]])
    return [Machine(lab, guest, images[guest.release]) for guest in lab.guests]


def test_runtimes_own_tests_pass(lab: Lab, arm: Machine) -> None:
    tar = ["tar", "-c", "--exclude=__pycache__", "--exclude=cluster", "--exclude=typing"]
    with subprocess.Popen([*tar, "tests"], cwd=REPOSITORY, stdout=subprocess.PIPE) as packed:
        subprocess.run(lab.ssh(arm.guest, [f"tar -x -C {SOURCE}"]), stdin=packed.stdout, check=True)
    words = f"cd {SOURCE} && PYMIGRATE_REQUIRED=root,criu {VENV}/bin/python -m pytest -q"

    said = lab.run(arm.guest, [f"{words} --timeout 900 {' '.join(RUNTIME)}"], timeout=3000)

    assert 0 == said.returncode, said.stdout + said.stderr
    assert "passed" in said.stdout.splitlines()[-1]


def test_counter_is_written_down_and_goes_on(arm: Machine) -> None:
    arm.pymigrate("run", "-d", "--name", "counter", "--ip", ADDRESS, "small", "sh", "-c", COUNT)
    counted = int(arm.pymigrate("exec", "counter", "tail", "-n", "1", "/data/count").stdout)
    arm.pymigrate("checkpoint", "counter", "-o", "/root/counter.zst")
    arm.pymigrate("rm", "-f", "counter")

    arm.pymigrate("restore", "/root/counter.zst")

    assert counted < int(arm.pymigrate("exec", "counter", "tail", "-n", "1", "/data/count").stdout)
    arm.pymigrate("rm", "-f", "counter")


def test_counter_moves_between_two_machines(lab: Lab, arm: Machine, results: Results) -> None:
    here, there = machines(lab)
    here.pymigrate("run", "-d", "--name", "counter", "--ip", ADDRESS, "small", "sh", "-c", COUNT)
    with Client(Outside(lab), "echo", ADDRESS, 7000, *RATE) as echo:
        echo.ask("before", patience=PATIENCE)
        counted = int(here.pymigrate("exec", "counter", "tail", "-n", "1", "/data/count").stdout)
        program = "a static process that counts, on aarch64"
        row = results.begin(Move(here, there, "auto", program, there.criu))

        said = here.pymigrate("--json", "migrate", "counter", there.name)

        row.mode = mode_of(said.stdout)
        moved = echo.ask("moved", patience=PATIENCE)
        last = echo.finish(patience=PATIENCE)
    assert counted < int(
        there.pymigrate("exec", "counter", "tail", "-n", "1", "/data/count").stdout
    )
    assert echo.ready["local_port"] == last["local_port"]
    row.result, row.blackout = "ok", float(moved["longest_gap"])
