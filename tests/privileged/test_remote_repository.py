"""Snapshots in a repository of another host of the lab, over its sshd, by the command itself."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Client, Host, Lab
from tests.privileged.migration.conftest import ADDRESS, PORT, Counter, counting, small_lab
from tests.privileged.tool import until

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

REPOSITORY = "ssh://root@beta/srv/kept"
AT = ("--repo", REPOSITORY)
COPY_ADDRESS = "10.88.0.32"
DYING = Path(__file__).with_name("killed") / "dying.py"
CREATE = ("create", "counter")
PRUNE = ("prune", "--keep-last", "1")
ALL = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with small_lab() as lab:
        yield lab


@pytest.fixture
def counter(lab: Lab) -> Iterator[Counter]:
    yield counting(lab)
    for host in lab.hosts.values():
        names = host.pymigrate("ps", "-a", "-q").stdout.split()
        if names:
            host.pymigrate("rm", "-f", *names)
        host.sh("rm -rf /srv/kept /srv/secret")


def kept(lab: Lab) -> Path:
    return lab["beta"].outside("/srv/kept")


def answers(echo: Client, what: str) -> None:
    while not echo.ask(what)["answers"]:
        pass  # the client itself gives up, with an error, when nothing comes


def listed(host: Host) -> list[str]:
    return [one["id"] for one in host.pymigrate_json("snapshot", "ls", *AT)]


def test_every_verb_works_there_as_here(lab: Lab, counter: Counter) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.sh("umask 77; echo open sesame > /srv/secret")
    at = (*AT, "--key-file", "/srv/secret")
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        made = [alpha.pymigrate_json("snapshot", "create", "counter", *at) for _ in range(3)]
        answers(echo, "made")
        echo.finish()
    one, two, three = (each["id"] for each in made)
    assert made[1]["new_bytes"] < made[0]["new_bytes"] / 2

    assert [one, two, three] == [each["id"] for each in alpha.pymigrate_json("snapshot", "ls", *at)]
    assert two == alpha.pymigrate_json("snapshot", "show", two[:8], *at)["id"]
    assert alpha.pymigrate_json("snapshot", "verify", "--data", *at)["sound"]
    assert "/count" in alpha.pymigrate("snapshot", "diff", one, two, *at).stdout
    alpha.pymigrate("snapshot", "rm", two, *at)
    pruned = alpha.pymigrate_json("snapshot", "prune", "--keep-last", "1", *at)
    assert [one] == pruned["removed"]
    alpha.pymigrate("rm", "-f", "counter")
    alpha.pymigrate("snapshot", "restore", "latest", *at)
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        answers(echo, "restored")
        echo.finish()
    # The host that keeps it sees the same repository, with the same secret and not without.
    beta.sh("umask 77; echo open sesame > /srv/secret")
    local = ("--repo", "/srv/kept")
    assert 2 == beta.pymigrate("snapshot", "ls", *local, check=False).returncode
    (found,) = beta.pymigrate_json("snapshot", "ls", *local, "--key-file", "/srv/secret")
    assert three == found["id"]


def test_schedule_keeps_its_snapshots_there(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    alpha.pymigrate("snapshot", "create", "counter", *AT)
    alpha.sh(
        "mount -n -t tmpfs spool /var/spool/cron; mkdir -m 1730 /var/spool/cron/crontabs;"
        "chgrp crontab /var/spool/cron/crontabs"
    )
    alpha.pymigrate("schedule", "add", "counter", "@daily", "--keep-last", "1", *AT)
    for _ in range(2):
        alpha.pymigrate("schedule", "run", "counter")
    assert 2 == len(listed(alpha))  # one by hand, and one that was kept
    alpha.pymigrate("schedule", "rm", "counter")


def test_killed_ones_leave_nothing_there(lab: Lab, counter: Counter) -> None:
    """Whoever dies here takes the agent there along, its lock and its drafts."""
    alpha = lab["alpha"]
    alpha.pymigrate("snapshot", "create", "counter", *AT)
    null = subprocess.DEVNULL
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        for place in ("locks/*", "tmp/*", "packs/*"):
            before = len(list(kept(lab).glob(place)))
            command = ["pymigrate", "snapshot", "create", "counter", *AT]
            with alpha.popen(command, stdout=null, stderr=null) as one:

                def begun(place: str = place, least: int = before) -> bool:
                    return len(list(kept(lab).glob(place))) > least

                until(lambda: one.poll() is not None or begun())
                one.send_signal(signal.SIGKILL)
            answers(echo, place)
            until(lambda: not list(kept(lab).glob("locks/*")))
        echo.finish()
    assert alpha.pymigrate_json("snapshot", "verify", "--data", *AT)["sound"]
    alpha.pymigrate("snapshot", "create", "counter", *AT)
    alpha.pymigrate("snapshot", "prune", *AT)
    assert [] == list(kept(lab).glob("tmp/*"))


@pytest.mark.parametrize(
    ("words", "every"),
    [
        (CREATE, 40),
        (PRUNE, 15),
        pytest.param(CREATE, 1, marks=ALL),
        pytest.param(PRUNE, 1, marks=ALL),
    ],
)
def test_commands_killed_at_any_effect_cost_nothing_there(
    lab: Lab, counter: Counter, words: tuple[str, ...], every: int
) -> None:
    """What is published restores each time, the container runs, and the next run goes on.

    Dies at each so many-eth effect; all of them take a quarter of an hour.
    """
    alpha = lab["alpha"]
    dying = [sys.executable, "-I", str(DYING), "command"]
    deaths = 0
    for moment in itertools.count(1 + every // 2, every):
        alpha.pymigrate("snapshot", "create", "counter", *AT)
        alpha.sh("rm -f /srv/mark")
        command = [*dying, str(moment), "/srv/mark", "snapshot", *words, *AT]
        done = alpha.run(command, check=False)
        died = alpha.outside("/srv/mark").exists()
        assert died or done.returncode == 0, done
        deaths += died
        until(lambda: not list(kept(lab).glob("locks/*")))
        assert "running" == counter.status(alpha)
        assert alpha.pymigrate_json("snapshot", "verify", "--data", *AT)["sound"], moment
        for identity in listed(alpha)[-2:]:
            where = ("--name", "copy", "--ip", COPY_ADDRESS)
            alpha.pymigrate("snapshot", "restore", identity, *where, *AT)
            assert "running" == alpha.pymigrate_json("inspect", "copy")["state"]["status"]
            alpha.pymigrate("rm", "-f", "copy")
        if not died:
            break
    assert deaths > 1
    alpha.pymigrate("snapshot", "create", "counter", *AT)
    alpha.pymigrate("snapshot", "prune", "--keep-last", "1", *AT)
    assert [] == list(kept(lab).glob("tmp/*"))
    assert 1 == len(listed(alpha))


def test_full_disk_there_is_told_here(lab: Lab, counter: Counter) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("snapshot", "create", "counter", *AT)
    before = listed(alpha)
    alpha.pymigrate("exec", "counter", "sh", "-c", "head -c 3000000 /dev/urandom > /noise")
    beta.resize_disk("1m")
    try:
        refused = alpha.pymigrate("snapshot", "create", "counter", *AT, check=False)
        assert (24, True) == (refused.returncode, "beta" in refused.stderr), refused
        assert "running" == counter.status(alpha)
        assert before == listed(alpha)
    finally:
        beta.resize_disk("50%")
    alpha.pymigrate("snapshot", "create", "counter", *AT)
    assert alpha.pymigrate_json("snapshot", "verify", "--data", *AT)["sound"]


def test_host_that_is_not_who_it_was_is_refused(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    alpha.sh("cp $HOME/.ssh/known_hosts /srv/known; : > $HOME/.ssh/known_hosts")
    try:
        refused = alpha.pymigrate("snapshot", "create", "counter", *AT, check=False)
        assert 42 == refused.returncode, refused
    finally:
        alpha.sh("cp /srv/known $HOME/.ssh/known_hosts; rm /srv/known")
    assert not kept(lab).exists()
    assert 11 == alpha.pymigrate("snapshot", "ls", *AT, check=False).returncode
