"""Two containers that talk to each other move as one; and all containers leave a host."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pymigrate.migrate.phases import Phase
from tests.lab import Host, Lab
from tests.lab.registry import wait_for
from tests.privileged.migration.conftest import clear, small_lab

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

DYING = Path(__file__).with_name("dying.py")
SERVER = "10.88.0.41"
TALKER = "10.88.0.42"
ANSWER = "nc -ll -p 7000 -e cat"
# One connection, over which numbers go, and come back, for as long as it lives.
TALK = (
    f"i=0; while true; do i=$((i+1)); echo $i; usleep 20000; done | nc {SERVER} 7000 > /heard;"
    " echo the connection is lost"
)


@dataclass(frozen=True)
class Pair:
    """Both containers, and what the one has heard of the other."""

    lab: Lab

    def heard(self, host: Host) -> list[int]:
        """Return the numbers that came back, the last line only if it is whole."""
        root = host.outside("/srv/pymigrate/containers") / "talker" / "upper" / "heard"
        return [int(line) for line in root.read_text().splitlines(keepends=True) if "\n" in line]

    def running(self) -> dict[str, list[str]]:
        """Return which containers run on which host."""
        return {
            name: sorted(row["name"] for row in host.pymigrate_json("ps", "-a") if runs(row))
            for name, host in self.lab.hosts.items()
        }

    def goes_on(self, host: Host) -> None:
        """Wait until numbers come back that were not sent yet; none was lost on the way."""
        before = len(self.heard(host))
        assert wait_for(lambda: len(self.heard(host)) > before + 20, 30.0)
        numbers = self.heard(host)
        assert list(range(1, len(numbers) + 1)) == numbers
        assert "lost" not in host.pymigrate("logs", "talker").stdout


def runs(row: dict[str, str]) -> bool:
    return row["status"] == "running"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with small_lab() as lab:
        yield lab


@pytest.fixture
def pair(lab: Lab) -> Iterator[Pair]:
    """Start both on alpha; they have begun to talk."""
    alpha = lab["alpha"]
    for name, address, command in (("server", SERVER, ANSWER), ("talker", TALKER, TALK)):
        alpha.pymigrate(
            "run", "-d", "--name", name, "--ip", f"{address}/16", "small", "sh", "-c", command
        )
    pair = Pair(lab)
    root = alpha.outside("/srv/pymigrate/containers") / "talker" / "upper" / "heard"
    assert wait_for(lambda: root.exists() and len(pair.heard(alpha)) > 5, 30.0)
    yield pair
    clear(lab)


@pytest.mark.parametrize("mode", ["stop", "pre", "hybrid"])
def test_containers_that_talk_to_each_other_move_together_and_talk_on(
    lab: Lab, pair: Pair, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    report = alpha.pymigrate_json("migrate", "server,talker", "root@beta", "--mode", mode)

    assert {"alpha": [], "beta": ["server", "talker"]} == pair.running()
    assert ["moved", "moved"] == [each["result"] for each in report["containers"]]
    assert {report["group"]} == {each["group"] for each in report["containers"]}
    pair.goes_on(beta)
    states = {row["name"]: row["state"] for row in alpha.pymigrate_json("migrations", "ls")}
    assert {"server": "done", "talker": "done", "server,talker": "done"} == states


@pytest.mark.parametrize(
    ("phase", "event", "home"),
    [
        (Phase.RESERVED, "reached", "alpha"),
        (Phase.PRECOPIED, "reached", "alpha"),
        (Phase.FROZEN, "began", "alpha"),
        (Phase.FROZEN, "reached", "alpha"),
        (Phase.RESTORED, "reached", "alpha"),
        (Phase.COMMITTED, "began", "beta"),  # the group's line is written, no member's is
        (Phase.COMMITTED, "reached", "beta"),
        (Phase.HANDED_OVER, "reached", "beta"),
        (Phase.DONE, "began", "beta"),
    ],
)
def test_a_group_whose_move_is_killed_is_all_here_or_all_there(
    lab: Lab, pair: Pair, phase: Phase, event: str, home: str
) -> None:
    alpha = lab["alpha"]
    killed = alpha.run(
        [sys.executable, DYING, "server,talker", "root@beta", phase.label, event], check=False
    )
    assert killed.returncode in (-9, 137), killed
    there = pair.running()
    assert len(there["alpha"] + there["beta"]) == len({*there["alpha"], *there["beta"]})

    alpha.pymigrate("recover")

    other = "beta" if home == "alpha" else "alpha"
    assert {home: ["server", "talker"], other: []} == pair.running()
    assert [] == lab[other].pymigrate_json("ps", "-a")
    pair.goes_on(lab[home])
    rows = alpha.pymigrate_json("migrations", "ls")
    assert len(rows) == 3
    assert all(row["settled"] for row in rows), rows


def test_one_that_cannot_move_keeps_the_other_here_too(lab: Lab, pair: Pair) -> None:
    """Its name is in use at the target, which is found when the other has been reserved."""
    alpha, beta = lab["alpha"], lab["beta"]
    beta.sh("mkdir -p /srv/pymigrate/containers/talker")

    refused = alpha.pymigrate("migrate", "server,talker", "root@beta", check=False)

    beta.sh("rmdir /srv/pymigrate/containers/talker")
    assert 52 == refused.returncode, refused
    assert "server, talker: " in refused.stderr
    assert "all of them run on here as before" in refused.stderr
    assert {"alpha": ["server", "talker"], "beta": []} == pair.running()
    pair.goes_on(alpha)


def test_a_container_that_is_named_twice_is_refused(lab: Lab, pair: Pair) -> None:
    refused = lab["alpha"].pymigrate("migrate", "server,server", "root@beta", check=False)

    assert 2 == refused.returncode
    assert "names a container twice" in refused.stderr


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_all_containers_leave_a_host(lab: Lab, pair: Pair, parallel: str) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    said = alpha.pymigrate("evacuate", "root@beta", "--parallel", parallel)

    assert {"alpha": [], "beta": ["server", "talker"]} == pair.running()
    lines = said.stdout.splitlines()
    assert ["NAME", "TARGET", "STATE", "TIME", "BLACKOUT"] == lines[0].split()
    assert [["server", "root@beta", "moved"], ["talker", "root@beta", "moved"]] == [
        line.split()[:3] for line in lines[1:]
    ]
    pair.goes_on(beta)
    assert "no container" in alpha.pymigrate("evacuate", "root@beta").stdout


def test_one_that_stays_does_not_keep_the_others_and_is_told(lab: Lab, pair: Pair) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("create", "--name", "aside", "small", "true")

    said = alpha.pymigrate("--json", "evacuate", "root@nowhere.invalid", "root@beta", check=False)

    assert 50 == said.returncode
    assert "not off this host: aside" in said.stderr
    outcomes = {row["name"]: (row["moved"], row["target"]) for row in json.loads(said.stdout)}
    assert (False, "root@nowhere.invalid") == outcomes["aside"]
    assert (True, "root@beta") == outcomes["server"]
    assert (True, "root@beta") == outcomes["talker"]
    pair.goes_on(beta)


def test_a_move_writes_its_report_as_a_page(lab: Lab, pair: Pair) -> None:
    alpha = lab["alpha"]
    words = ("--mode", "hybrid", "--report", "/tmp/move.html")

    said = alpha.pymigrate("migrate", "server,talker", "root@beta", *words)

    text = alpha.sh("cat /tmp/move.html; rm /tmp/move.html")
    assert text.startswith("<!DOCTYPE html>")
    assert text.count("<h1>") == 2
    for expected in ("handed-over", "predicted", "achieved", "round 1"):
        assert expected in text
    assert said.stdout.count(" predicted)") == 2
