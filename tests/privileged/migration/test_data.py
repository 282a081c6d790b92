"""How memory and files go: by TLS where the target can be reached, by SSH where it cannot."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import Client, Host, Lab, Process
from tests.privileged.migration.conftest import (
    ADDRESS,
    IMPATIENT,
    PORT,
    Counter,
    await_end_of_cut_lines,
)

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

# Not on `lo`, where CRIU talks to itself while it restores.
DROP = (
    "table inet test {{ chain input {{ type filter hook input priority 0;"
    " iifname pymigrate0 {rule} drop; }}; }}"
)
NEW_BUT_SSH = "tcp dport != 22 tcp flags & (syn | ack) == syn"
DATA = "tcp dport >= 1024"


@contextmanager
def firewall(host: Host, rule: str) -> Iterator[None]:
    """Let packets to `host` that match the rule vanish."""
    host.run(["nft", "-f", "-"], input=DROP.format(rule=rule))
    yield
    host.run(["nft", "delete", "table", "inet", "test"])


def listening(host: Host) -> list[str]:
    """List the TCP ports that somebody listens on, but sshd's."""
    lines = host.sh("ss -Hltn").splitlines()
    return [line for line in lines if not line.split()[3].endswith(":22")]


@pytest.mark.parametrize(("wanted", "taken"), [("tls", "tls"), ("ssh", "ssh"), ("auto", "tls")])
def test_a_container_moves_either_way(lab: Lab, counter: Counter, wanted: str, taken: str) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("exec", "counter", "sh", "-c", "head -c 8m /dev/urandom > /big")
    digest = alpha.pymigrate("exec", "counter", "sha256sum", "/big").stdout

    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        report = alpha.pymigrate_json("migrate", "counter", "root@beta", "--data", wanted)
        echo.finish()

    assert taken == report["data"]
    assert 8 << 20 < report["bytes_sent"]
    assert [beta] == counter.running()
    assert digest == beta.pymigrate("exec", "counter", "sha256sum", "/big").stdout
    assert [] == listening(beta)


@pytest.mark.parametrize("data", ["tls", "ssh"])
def test_a_limit_is_kept_to_whatever_the_data_goes_by_and_events_tell_of_it(
    lab: Lab, counter: Counter, data: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("exec", "counter", "sh", "-c", "head -c 4m /dev/urandom > /big")

    moved = alpha.pymigrate(
        *("--json", "migrate", "counter", "root@beta"), *("--bandwidth", "32mbit", "--data", data)
    )

    report = json.loads(moved.stdout)
    events = [json.loads(line) for line in moved.stderr.splitlines()]
    progress = [each for each in events if each["event"] == "progress"]
    assert [beta] == counter.running()
    assert 4 << 20 < report["bytes_sent"]
    # However slow the machine is: never faster than was allowed, but for a moment's worth.
    assert report["bytes_sent"] <= 4e6 * (report["seconds"] + 0.1)
    assert "done" == [each["phase"] for each in events if each["event"] == "reached"][-1]
    assert report["bytes_sent"] == progress[-1]["bytes_sent"]
    kept = alpha.pymigrate_json("migrations", "show", report["id"])
    assert 4e6 == kept["lines"][0]["facts"]["bytes_per_second"]  # for `recover`


def test_a_firewall_costs_a_second_before_the_freeze_and_ssh_is_used(
    lab: Lab, counter: Counter
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with firewall(beta, NEW_BUT_SSH):
        moved = alpha.pymigrate("migrate", "counter", "root@beta", "--report", "/tmp/move.json")

    assert "data goes over SSH: root@beta port" in moved.stderr
    assert moved.stderr.index("data goes over SSH") < moved.stderr.index("frozen")
    assert [beta] == counter.running()
    assert '"data": "ssh"' in alpha.sh("cat /tmp/move.json; rm /tmp/move.json")
    assert [] == listening(beta)


def test_a_firewall_and_nothing_but_tls_wanted_leaves_the_container_here(
    lab: Lab, counter: Counter
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    with firewall(beta, NEW_BUT_SSH):
        refused = alpha.pymigrate("migrate", "counter", "root@beta", "--data", "tls", check=False)

    assert 52 == refused.returncode, refused.stderr
    assert "there is no TLS connection for the data" in refused.stderr
    assert "firewall" in refused.stderr
    assert "frozen" not in refused.stderr
    assert [alpha] == counter.running()
    assert "absent" == counter.status(beta)


def frozen(alpha: Host, *options: str) -> Process:
    """Begin to move the container; return when it is frozen. A cut of the line is soon seen."""
    command = [sys.executable, IMPATIENT, "migrate", "counter", "root@beta", *options]
    migrate = alpha.popen(command)
    assert migrate.stderr is not None
    while "frozen" not in migrate.stderr.readline():
        assert migrate.poll() is None
    return migrate


@pytest.mark.parametrize("data_alone", [False, True])
def test_a_cut_while_data_flows_by_tls_rolls_back(
    lab: Lab, counter: Counter, *, data_alone: bool
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    counter.fill_memory()
    lab.shape(rate="8mbit")
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        with frozen(alpha, "--data", "tls") as migrate:
            if data_alone:
                with firewall(beta, DATA):
                    _, text = migrate.communicate(timeout=60)
            else:
                lab.cut("beta")
                _, text = migrate.communicate(timeout=60)
        lab.heal("beta")
        lab.shape()

        assert 52 == migrate.returncode, text
        assert "runs on here as before" in text
        assert "running" == counter.status(alpha)
        while not echo.ask("after")["answers"]:
            pass  # the client itself gives up, with an error, when nothing comes
        echo.finish()
    alpha.pymigrate("recover")
    assert [alpha] == counter.running()
    assert "absent" == counter.status(beta)
    await_end_of_cut_lines(beta)
