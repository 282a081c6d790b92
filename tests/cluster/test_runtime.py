"""The runtime's own tests where this machine may not be: on cgroup v2 alone, and other kernels.

pytest runs in the guests, on a copy of these tests; it is pure Python, and this machine's.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest

from guests import SOURCE, VENV
from tests.cluster.cluster import PATIENCE, Machine
from tests.cluster.matrix import FULL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGES = ["iniconfig", "packaging", "pluggy", "pygments", "pyroute2", "pytest", "pytest-timeout"]
PYTHON = "/opt/pymigrate/tests"
"""Where the guest has those."""
ELSEWHERE = ("__pycache__", "cluster", "long", "typing")
GUESTS = ("old", "new", "old-v1", "middle") if FULL else ("old", "new")
SUITES = {
    "namespaces, mounts, privileges, ways out": ("isolation",),
    "cgroups": ("test_cgroups.py", "test_cgroup_view.py"),
    "limits": ("test_limits.py", "test_devices.py"),
    "OCI settings": ("test_oci_settings.py",),
}
DESELECTED = "not weight_of_disks_is_set and not divided_by_weight"
"""The cloud kernel has no loop device whose scheduler could be chosen."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the tests and what runs them, as they lie in a guest."""
    path = tmp_path_factory.mktemp("suite") / "suite.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(REPOSITORY / "tests", f"{SOURCE}/tests", filter=wanted)
        for name in PACKAGES:
            for file in distribution(name).files or ():
                if file.suffix == ".py" or file.parts[0].endswith(".dist-info"):
                    archive.add(file.locate(), f"{PYTHON}/{file}")
    return path


def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what a guest does not run."""
    return None if set(ELSEWHERE) & set(Path(member.name).parts) else member


@pytest.fixture(scope="module")
def equipped(suite: Path, guests: dict[str, Machine]) -> Callable[[str], Machine]:
    """Return a function that gives a guest the tests, once."""
    have: set[str] = set()

    def equip(name: str) -> Machine:
        if name not in have:
            guests[name].give(suite, "/root/suite.tar")
            guests[name].sh("tar -x -C / -f /root/suite.tar && rm /root/suite.tar")
            have.add(name)
        return guests[name]

    return equip


@pytest.mark.parametrize("what", SUITES)
@pytest.mark.parametrize("source", GUESTS)
def test_the_runtimes_own_tests_pass(
    equipped: Callable[[str], Machine], source: str, what: str
) -> None:
    machine = equipped(source)
    files = " ".join(f"tests/privileged/{name}" for name in SUITES[what])
    environment = f"PYMIGRATE_REQUIRED=root PYTHONPATH={PYTHON} PYTHONDONTWRITEBYTECODE=1"
    # Not in /tmp: a tmpfs, whose owners Linux 6.1 cannot shift for --userns.
    words = f"-q -p no:cacheprovider --basetemp=/srv/tests --timeout {PATIENCE:.0f}"

    command = f"{environment} {VENV}/bin/python -m pytest {words} -k '{DESELECTED}' {files}"
    said = machine.lab.run(machine.guest, [f"cd {SOURCE} && {command}"], timeout=3000)

    assert 0 == said.returncode, said.stdout + said.stderr
    assert "passed" in said.stdout.splitlines()[-1]
    print(said.stdout.splitlines()[-1])
