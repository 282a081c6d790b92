"""A firewall that lets all of a move pass but the connection for pages that are waited for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pymigrate.migrate.wanted_sender import PROCESS_NAME as LANE_NAME
from tests.lab import Host, Lab
from tests.privileged.migration.conftest import IMPATIENT
from tests.privileged.migration.test_modes import intact, lanes, memory

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
]
__all__ = ["memory"]

SYN = "tcp dport >= 1024 tcp flags & (syn | ack) == syn"
# A lane is the second connection to a port: of each port only the first packet of one passes.
SECOND = (
    "table inet test { set known { type inet_service; flags dynamic; size 1024; };"
    " chain input { type filter hook input priority 0;"
    f" iifname pymigrate0 {SYN} tcp dport @known counter drop;"
    f" iifname pymigrate0 {SYN} add @known {{ tcp dport }}; }}; }}"
)
ONE = (
    "table inet test {{"
    " chain input {{ type filter hook input priority 0; tcp sport {port} counter drop; }};"
    " chain output {{ type filter hook output priority 0; tcp dport {port} counter drop; }}; }}"
)


@contextmanager
def firewall(host: Host, rules: str) -> Iterator[None]:
    """Have packets to `host` vanish by these rules."""
    host.run(["nft", "-f", "-"], input=rules)
    yield
    host.run(["nft", "delete", "table", "inet", "test"])


def dropped(host: Host) -> int:
    """Return how many packets vanished."""
    listed = json.loads(host.run(["nft", "-j", "list", "table", "inet", "test"]).stdout)
    rules = [each["rule"]["expr"] for each in listed["nftables"] if "rule" in each]
    return sum(part["counter"]["packets"] for rule in rules for part in rule if "counter" in part)


def lane(alpha: Host, said: str) -> tuple[int, int]:
    """Return the process that sends what is waited for, and from which port it has connected."""
    lines = [each for each in alpha.sh("ss -Htnp").splitlines() if LANE_NAME in each]
    found = re.search(rf":([0-9]+)\s.*{LANE_NAME}.*pid=([0-9]+)", lines[0] if lines else "")
    assert found is not None, f"there is no lane: {said}"
    return int(found[2]), int(found[1])


@pytest.mark.parametrize("mode", ["pre", "post", "hybrid"])
def test_where_no_lane_can_be_made_all_goes_one_way_and_that_is_known_before_the_freeze(
    lab: Lab, memory: None, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with firewall(beta, SECOND):
        moved = alpha.pymigrate("--json", "migrate", "memory", "root@beta", "--mode", mode)
        assert dropped(beta) > 0

    report = json.loads(moved.stdout)
    assert "tls" == report["data"]
    assert "no connection of their own" in moved.stderr
    assert moved.stderr.index("no connection of their own") < moved.stderr.index("frozen")
    assert not lanes(alpha)
    assert intact(beta, "there")


@pytest.mark.long  # and for a quiet machine: a lane that cannot be made in a second is none
@pytest.mark.parametrize("line", ["frozen"])  # later all may be there before it is missed
def test_a_lane_whose_packets_vanish_is_given_up_and_memory_comes_by_another(
    lab: Lab, memory: None, line: str
) -> None:
    """Who waits for a page waits for a silence, at the longest, until the rest goes on."""
    alpha, beta = lab["alpha"], lab["beta"]
    command = [sys.executable, IMPATIENT, "migrate", "memory", "root@beta", "--mode", "post"]
    with alpha.popen(command) as move:
        assert move.stderr is not None
        said = ""
        for each in ("precopied", line):
            while each not in said.rpartition("\n")[2]:
                assert move.poll() is None, said
                said += "\n" + move.stderr.readline().strip()
            if each == "precopied":
                pid, port = lane(alpha, said)
            lab.shape(rate="4mbit")  # so that much is still missing when a silence is noticed
        with firewall(beta, ONE.format(port=port)):
            alpha.sh(f"while kill -0 {pid}; do sleep 0.05; done", timeout=30)
            assert move.poll() is None, "the link was too fast for this test"
            assert dropped(beta) > 0
            lab.shape()
            _, text = move.communicate(timeout=60)
    assert move.returncode in (0, 51, 52), text
    assert not lanes(alpha)
    alpha.pymigrate("recover")
    home, other = (alpha, beta) if move.returncode == 52 else (beta, alpha)
    assert "memory" not in other.pymigrate("ps", "-a").stdout, text
    assert intact(home, "recovered")
