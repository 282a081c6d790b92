"""Memory that goes by several connections in turn: all of it arrives, whichever of them is cut."""

from __future__ import annotations

import json
import re
import sys

import pytest

from pymigrate.migrate.wanted_sender import PROCESS_NAME as LANE_NAME
from tests.lab import Host, Lab
from tests.lab.registry import wait_for
from tests.privileged.migration.conftest import IMPATIENT, Counter
from tests.privileged.migration.test_lane import ONE, SECOND, SYN, dropped, firewall
from tests.privileged.migration.test_modes import NOISE, intact, lanes, memory

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
]
__all__ = ["memory"]

# The lane is the second connection to a port; of each port only the first packets of two pass.
THIRD = (
    "table inet test {"
    " set once { type inet_service; flags dynamic; size 1024; };"
    " set twice { type inet_service; flags dynamic; size 1024; };"
    " chain input { type filter hook input priority 0;"
    f" iifname pymigrate0 {SYN} tcp dport @twice counter drop;"
    f" iifname pymigrate0 {SYN} tcp dport @once add @twice {{ tcp dport }} accept;"
    f" iifname pymigrate0 {SYN} add @once {{ tcp dport }}; }}; }}"
)


def streams(host: Host) -> list[tuple[int, int]]:
    """Return the connections by which memory goes, the first of them first: ports here and there.

    They lead to one port, as no others do; a lane does too, from another process.
    """
    lines = [each for each in host.sh("ss -Htnp").splitlines() if LANE_NAME not in each]
    found = [re.search(r":([0-9]+) +\S+:([0-9]+) .*pid=[0-9]+,fd=([0-9]+)", each) for each in lines]
    ends = sorted((int(each[3]), int(each[1]), int(each[2])) for each in found if each is not None)
    there = [port for _, _, port in ends]
    return [(here, port) for _, here, port in ends if port >= 1024 and there.count(port) > 1]


@pytest.mark.parametrize("mode", ["pre", "post", "hybrid"])
def test_a_container_moves_by_three_connections_with_all_its_memory(
    lab: Lab, memory: None, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    words = ("memory", "root@beta", "--mode", mode, "--streams", "3")
    there = alpha.pymigrate_json("migrate", *words)

    assert ("tls", 3) == (there["data"], there["streams"])
    assert there["bytes_sent"] > 4 << 20
    assert intact(beta, "there")
    assert not lanes(alpha)
    back = beta.pymigrate_json("migrate", "memory", "root@alpha", "--mode", mode, "--streams", "8")
    assert 8 == back["streams"]
    assert intact(alpha, "back")


def test_several_containers_move_as_one_each_by_as_many(lab: Lab, memory: None) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    words = ("memory,counter", "root@beta", "--mode", "hybrid", "--streams", "2")

    moved = alpha.pymigrate_json("migrate", *words)

    assert [2, 2] == [each["streams"] for each in moved["containers"]]
    for each in moved["containers"]:
        kept = alpha.pymigrate_json("migrations", "show", each["id"])
        assert 2 == kept["lines"][0]["facts"]["streams"]  # for `recover`
    assert intact(beta, "there")


def test_all_leave_a_host_each_by_as_many(lab: Lab, memory: None) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    alpha.pymigrate("evacuate", "root@beta", "--mode", "hybrid", "--streams", "2")

    used = {}
    for row in alpha.pymigrate_json("migrations", "ls"):
        lines = alpha.pymigrate_json("migrations", "show", row["id"])["lines"]
        used[row["name"]] = [line["facts"]["report"]["streams"] for line in lines[-1:]]
    assert {"memory": [2], "counter": [2]} == used
    assert intact(beta, "there")


@pytest.mark.parametrize(
    ("which", "mode"),
    [(0, "hybrid"), (1, "pre"), pytest.param(2, "hybrid", marks=pytest.mark.long)],
)
def test_one_that_is_cut_in_a_round_costs_only_what_had_not_arrived(
    lab: Lab, counter: Counter, which: int, mode: str
) -> None:
    """24 MiB at 4 MB/s: the round is far from over when one of the connections ends."""
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("run", "-d", "--name", "noise", "small", "sh", "-c", NOISE)
    alpha.sh("until pymigrate logs noise | grep -q ready; do sleep 0.1; done", timeout=60)
    words = ("--json", "migrate", "noise", "root@beta", "--mode", mode, "--streams", "3")
    with alpha.popen(["pymigrate", *words, "--bandwidth", "32mbit"]) as move:
        assert move.stderr is not None
        seen = {"bytes_sent": 0}
        while seen.get("bytes_sent", 0) < 10e6:  # so that some pieces were taken
            seen = json.loads(move.stderr.readline())
        made = streams(alpha)
        assert 3 == len(made)
        here, there = made[which]
        alpha.sh(f"ss -K -Htn sport = {here} dport = {there}")
        said, text = move.communicate(timeout=120)

    assert 0 == move.returncode, text
    report = json.loads(said)
    assert (1, 3) == (report["memory_cuts"], report["streams"])
    all_of_it = report["bytes"]["memory"] + report["bytes"]["memory unchanged"]
    assert report["memory_rounds"][0]["pages"] * 4096 <= all_of_it - 256 * 4096
    beta.pymigrate("exec", "noise", "sh", "-c", "kill $(cat /pid)")
    beta.pymigrate("wait", "noise")
    upper = beta.outside("/srv/pymigrate/containers/noise/upper")
    assert (upper / "sum").read_text() == (upper / "out").read_text()


@pytest.mark.parametrize(
    ("line", "which", "mode"),
    [
        ("frozen", 1, "pre"),
        ("handed-over", 2, "post"),
        *(
            pytest.param(line, which, mode, marks=pytest.mark.long)
            for line, which, mode in (
                ("precopied", 1, "hybrid"),
                ("frozen", 0, "post"),
                ("frozen", 2, "hybrid"),
                ("restored", 1, "post"),
                ("committed", 1, "hybrid"),
                ("handed-over", 0, "post"),
            )
        ),
    ],
)
def test_one_that_is_cut_once_frozen_costs_no_memory(
    lab: Lab, memory: None, line: str, which: int, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    words = ["migrate", "memory", "root@beta", "--mode", mode, "--streams", "3"]
    with alpha.popen([sys.executable, IMPATIENT, *words]) as move:
        assert move.stderr is not None
        for each in ("precopied", line) if line != "precopied" else (line,):
            while each not in move.stderr.readline():
                assert move.poll() is None
            if each == "precopied":
                made = streams(alpha)
                lab.shape(rate="40mbit")  # so that much is still missing
        assert 3 == len(made)
        here, there = made[which]
        # It may have ended by itself by now: that is one of the moments.
        alpha.sh(f"ss -K -Htn sport = {here} dport = {there}")
        lab.shape()
        _, text = move.communicate(timeout=90)

    assert move.returncode in (0, 51, 52), text
    assert not lanes(alpha)
    alpha.pymigrate("recover")
    home, other = (alpha, beta) if move.returncode == 52 else (beta, alpha)
    assert "memory" not in other.pymigrate("ps", "-a").stdout, text
    assert intact(home, "recovered")


def test_one_whose_packets_vanish_is_missed_while_the_others_are_busy(
    lab: Lab, counter: Counter
) -> None:
    """In a round: its silence ends the conversation, and the next one goes on."""
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("run", "-d", "--name", "noise", "small", "sh", "-c", NOISE)
    alpha.sh("until pymigrate logs noise | grep -q ready; do sleep 0.1; done", timeout=60)
    words = ["--json", "migrate", "noise", "root@beta", "--mode", "hybrid", "--streams", "3"]
    command = [sys.executable, IMPATIENT, *words, "--bandwidth", "32mbit"]
    with alpha.popen(command) as move:
        assert move.stderr is not None
        seen = {"bytes_sent": 0}
        while seen.get("bytes_sent", 0) < 4e6:
            seen = json.loads(move.stderr.readline())
        port = streams(alpha)[1][0]
        with firewall(beta, ONE.format(port=port)):
            assert wait_for(lambda: port not in dict(streams(alpha)), 30.0)
            assert dropped(beta) > 0
        said, text = move.communicate(timeout=120)

    assert 0 == move.returncode, text
    assert (1, 3) == (json.loads(said)["memory_cuts"], json.loads(said)["streams"])
    beta.pymigrate("exec", "noise", "sh", "-c", "kill $(cat /pid)")
    beta.pymigrate("wait", "noise")
    upper = beta.outside("/srv/pymigrate/containers/noise/upper")
    assert (upper / "sum").read_text() == (upper / "out").read_text()


@pytest.mark.parametrize(("rules", "has_lane"), [(SECOND, False), (THIRD, True)])
def test_where_no_further_one_can_be_made_memory_goes_by_the_first_and_the_lane_is_kept(
    lab: Lab, memory: None, rules: str, *, has_lane: bool
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with firewall(beta, rules):
        words = ("memory", "root@beta", "--mode", "hybrid", "--streams", "3")
        moved = alpha.pymigrate("migrate", *words, "--report", "/tmp/move.json")
        assert dropped(beta) > 0

    report = json.loads(alpha.sh("cat /tmp/move.json; rm /tmp/move.json"))
    assert ("tls", 1) == (report["data"], report["streams"])
    assert "memory goes by 1 of 3 connections" in moved.stderr
    assert moved.stderr.index("1 of 3 connections") < moved.stderr.index("frozen")
    assert has_lane == ("no connection of their own" not in moved.stderr)
    assert intact(beta, "there")
