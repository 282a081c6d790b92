"""Nothing remains of a lab of guests: not after `down`, and not when its owner was killed."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guest_lab import Lab, sweep
from guests import GUESTS
from pymigrate.migrate.plan import MAX_SKEW
from tests.cluster.cluster import PATIENCE, Machine
from tests.lab import registry

pytestmark = pytest.mark.cluster

OLD = GUESTS["old"]
REPOSITORY = Path(__file__).resolve().parent.parent.parent
OWNER = """
import subprocess
import sys
sys.path[:0] = sys.argv[1:3]
from guest_lab import Lab
from guests import GUESTS
from tests.cluster import programs
from tests.cluster.this_machine import this_machine
lab = Lab(sys.argv[3])
lab.start([GUESTS["old"]], leash=True)
with this_machine(lab) as here:
    here.pymigrate("image", "import", programs.archives()["small"], "small")
    here.pymigrate("run", "-d", "--name", "left", "small", "sleep", "1000000")
    ssh = subprocess.Popen(lab.ssh(GUESTS["old"], ["sleep 1000000"]), stderr=subprocess.DEVNULL)
    print(here.entry.name, flush=True)
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


def cgroups_of(entry: str) -> list[Path]:
    """List this machine's cgroups that a registered owner has made."""
    tops = [base / f"pymigrate-lab.{entry}" for base in registry.base_cgroups()]
    return [path for top in tops for path in registry.subtree(top)]


def interfaces() -> set[str]:
    """List this machine's, but for those of containers, which other tests beside us may run."""
    names = os.listdir("/sys/class/net")  # noqa: PTH208  # names, not paths
    return {name for name in names if not name.startswith("pm")}


def test_down_leaves_nothing() -> None:
    lab = Lab(f"short-{os.getpid()}")
    before = interfaces()
    lab.start([OLD])
    try:
        assert lab.is_running(OLD)
        assert interfaces() <= before
    finally:
        lab.down()
    assert [] == found(lab.name)


@pytest.mark.parametrize("source", ["old"])
def test_a_clock_that_goes_wrong_is_put_right(guests: dict[str, Machine], source: str) -> None:
    guest = guests[source]
    wrong = int(guest.sh('date -s "@$(($(date +%s) + 1000))" > /dev/null; date +%s').stdout)
    assert wrong - time.time() > 900  # nearly all of it is there

    guest.sh(f"until [ $(($(date +%s) + 900)) -lt {wrong} ]; do sleep 1; done")

    assert abs(int(guest.sh("date +%s").stdout) - time.time()) < MAX_SKEW


def test_a_killed_owner_takes_guests_and_containers_along_and_the_next_run_the_rest() -> None:
    name = f"killed-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, REPOSITORY, REPOSITORY / "vagrant", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        entry = owner.stdout.readline().strip()
        assert entry
        assert any("pymigrate/" in str(path) for path in cgroups_of(entry))
        holder = Lab(name).holder
        assert holder is not None
        pidfd = os.pidfd_open(holder)
        try:
            owner.kill()
            readable, _, _ = select.select([pidfd], [], [], PATIENCE)
        finally:
            os.close(pidfd)
    assert readable, "the lab has outlived its owner"
    assert Lab(name).holder is None

    assert name in sweep()
    registry.sweep()  # another test run on this machine may do it first
    assert not (registry.REGISTRY / entry).exists()
    assert registry.wait_for(lambda: not found(name), PATIENCE), found(name)
    assert [] == cgroups_of(entry)
