"""Nothing remains of a lab of guests: not after `down`, and not when its owner was killed."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from guest_lab import Lab, sweep
from guests import GUESTS

pytestmark = pytest.mark.cluster

OLD = GUESTS["old"]
OWNER = """
import sys
sys.path.insert(0, sys.argv[1])
from guest_lab import Lab
from guests import GUESTS
Lab(sys.argv[2]).up([GUESTS["old"]], leash=True)
print("up", flush=True)
sys.stdin.read()
"""


def found(name: str) -> list[str]:
    """List processes that have a lab's directory among their words, its mounts and itself."""
    mark = f"/run/pymigrate-kernels/{name}"
    words = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words.append(process.read_bytes().decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    here = [mark] if Path(mark).exists() else []
    return [each for each in (*words, *mounts) if mark in each] + here


def test_down_leaves_nothing() -> None:
    lab = Lab(f"short-{os.getpid()}")
    interfaces = sorted(os.listdir("/sys/class/net"))  # noqa: PTH208  # names, not paths
    lab.up([OLD])
    try:
        assert lab.is_running(OLD)
        assert interfaces == sorted(os.listdir("/sys/class/net"))  # noqa: PTH208
    finally:
        lab.down()
    assert [] == found(lab.name)


def test_a_killed_owner_takes_the_guests_along_and_the_next_run_the_rest() -> None:
    name = f"killed-{os.getpid()}"
    vagrant = Path(__file__).resolve().parent.parent.parent / "vagrant"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, vagrant, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        holder = Lab(name).holder
        assert holder is not None
        pidfd = os.pidfd_open(holder)
        try:
            owner.kill()
            readable, _, _ = select.select([pidfd], [], [], 30)
        finally:
            os.close(pidfd)
    assert readable, "the lab has outlived its owner"
    assert Lab(name).holder is None

    assert name in sweep()

    assert [] == found(name)
