"""Two hosts, a small image whose server echoes, and a container that counts and echoes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pymigrate.migrate import journal
from tests.lab import Host, Lab

ADDRESS = "10.88.0.31"
PORT = 7000
CLEAR = (
    "if ls /srv/pymigrate/containers 2> /dev/null | grep -q .; then"
    ' names=$(pymigrate ps -a -q); [ -z "$names" ] || pymigrate rm -f $names; fi;'
    "rm -rf /srv/pymigrate/migrations/* /srv/pymigrate/containers/*"
)
IMPATIENT = str(Path(__file__).with_name("impatient.py"))
COUNT = (
    "nc -ll -p 7000 -e cat & i=0; while true; do i=$((i+1)); echo $i > /count; usleep 5000; done"
)


@contextmanager
def small_lab() -> Iterator[Lab]:
    """Make two hosts, the first of which has the image `small`: a busybox."""
    with Lab(("alpha", "beta")) as lab:
        alpha = lab["alpha"]
        alpha.sh(
            "mkdir -p /srv/rootfs/bin /srv/rootfs/tmp; cp /bin/busybox /srv/rootfs/bin/busybox;"
            "chroot /srv/rootfs /bin/busybox --install -s /bin"
        )
        alpha.pymigrate("image", "import", "/srv/rootfs", "small")
        yield lab


@dataclass(frozen=True)
class Counter:
    """A container that writes ever higher numbers into a file, and where to look for it."""

    lab: Lab
    name: str = "counter"

    def running(self) -> list[Host]:
        """Return the hosts on which it runs, that is, has processes that are not frozen."""
        return [host for host in self.lab.hosts.values() if self.status(host) == "running"]

    def status(self, host: Host) -> str:
        """Return what `host` says of it: a status, or "absent"."""
        rows = host.pymigrate_json("ps", "-a")
        return next((row["status"] for row in rows if row["name"] == self.name), "absent")

    def count(self, host: Host) -> int:
        """Return the last number that it wrote on `host`."""
        root = host.outside("/srv/pymigrate/containers") / self.name / "upper" / "count"
        text = root.read_text().strip()
        return int(text) if text else self.count(host)

    def fill_memory(self) -> None:
        """Give it 8 MiB that do not compress and go under the freeze: by a tmpfs."""
        self.lab["alpha"].pymigrate(
            "exec", self.name, "sh", "-c", "head -c 8m /dev/urandom > /dev/shm/noise"
        )


def await_end_of_cut_lines(host: Host) -> None:
    """End each sshd whose line was cut: by itself it sees that when it next repeats a packet.

    That may take a minute, since the times between repeats double while there is no answer.
    """
    host.sh("ss -K -Htn state established sport = 22")
    host.sh("while ps -eo args | grep -q '^sshd: roo[t]@'; do sleep 0.1; done", timeout=60)


def counting(lab: Lab, *options: str) -> Counter:
    """Start the container."""
    lab["alpha"].pymigrate(
        "run", "-d", "--name", "counter", "--ip", f"{ADDRESS}/16", *options, "small",
        "sh", "-c", COUNT,
    )  # fmt: skip
    return Counter(lab)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with small_lab() as lab:
        yield lab


def clear(lab: Lab) -> None:
    """Settle what is open, and remove all containers and journals, from all hosts at once."""
    for host in lab.hosts.values():
        journals = host.outside("/srv/pymigrate/migrations").glob("*/journal")
        if not all(journal.read(path).settled for path in journals):
            host.pymigrate("recover", check=False)
    clearing = [host.popen(["sh", "-euc", CLEAR]) for host in lab.hosts.values()]
    said = [(each.communicate(timeout=120), each.returncode) for each in clearing]
    assert not any(returncode for _, returncode in said), said


@pytest.fixture
def counter(lab: Lab) -> Iterator[Counter]:
    yield counting(lab)
    clear(lab)
