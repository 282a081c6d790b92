"""Scheduled snapshots on a host of the lab, by hand and by a real cron daemon."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pymigrate.migrate.schedule import TAG
from tests.lab import Lab
from tests.lab.client import Client
from tests.lab.host import Host, Process

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

CRON = "/usr/sbin/cron"
ADDRESS = "10.88.0.5"
ECHO = r"""while read word; do echo "{\"said\": \"$word\"}"; done"""
APPLETS = ("nc", "sh", "sleep")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(("alpha",)) as lab:
        yield lab


@pytest.fixture
def alpha(lab: Lab) -> Host:
    """Make a host with crontabs of its own and a container ``web`` that answers at port 7000."""
    if shutil.which("crontab") is None or not Path(CRON).exists():
        pytest.skip("needs cron: ./test installs it")
    host = lab["alpha"]
    # The lab's /etc and its mounts are its own: the machine's jobs must not run here.
    host.sh(
        "mount -n -t tmpfs spool /var/spool/cron; mkdir -m 1730 /var/spool/cron/crontabs; "
        "chgrp crontab /var/spool/cron/crontabs; rm -rf /etc/cron.* /etc/crontab; "
        "mkdir -p /srv/rootfs/bin /srv/rootfs/etc; cp /bin/busybox /srv/rootfs/bin; "
        f"for name in {' '.join(APPLETS)}; do ln -s busybox /srv/rootfs/bin/$name; done"
    )
    listening = ("sh", "-c", f"exec nc -ll -p 7000 -e sh -c '{ECHO}'")
    options = ("-d", "--name", "web", "--ip", ADDRESS, "--rootfs", "/srv/rootfs")
    host.pymigrate("run", *options, *listening)
    return host


def answers(client: Client, word: str) -> bool:
    return bool({"said": word} == client.ask(word)["value"])


def connected(lab: Lab) -> Client:
    return Client(lab.client, "lines", ADDRESS, 7000)


def history(host: Host) -> list[dict[str, Any]]:
    said = host.pymigrate("schedule", "history", "web", "--json").stdout
    return [json.loads(line) for line in said.splitlines()]


def crontab(host: Host) -> str:
    return host.run(["crontab", "-l"], check=False).stdout


def test_findings_that_are_skipped_are_kept_with_the_schedule(alpha: Host) -> None:
    words = ("schedule", "add", "web", "@daily", "--skip")
    assert "no such check" in alpha.pymigrate(*words, "moon", check=False).stderr
    alpha.pymigrate(*words, "tcp,zombie")
    assert "tcp,zombie" == alpha.pymigrate_json("schedule", "show", "web")["skip"]
    alpha.pymigrate("schedule", "run", "web")

    (definition,) = alpha.outside("/srv/pymigrate/schedules/web").glob("*.json")
    definition.write_text(definition.read_text().replace("zombie", "moon"))
    said = alpha.pymigrate("schedule", "run", "web", check=False).stderr
    assert "no such check to skip: moon" in said


def test_runs_make_snapshots_and_thin_them_out(lab: Lab, alpha: Host) -> None:
    alpha.pymigrate("snapshot", "create", "web", "--tag", "by-hand")
    alpha.pymigrate("schedule", "add", "web", "@daily", "--keep-last", "2")
    with connected(lab) as client:
        for word in ("one", "two", "three", "four"):
            alpha.pymigrate("schedule", "run", "web")
            assert answers(client, word)

    snapshots = alpha.pymigrate_json("snapshot", "ls")
    assert [["by-hand"], [TAG], [TAG]] == [one["tags"] for one in snapshots]
    runs = history(alpha)
    assert ["ok"] * 4 == [one["result"] for one in runs]
    assert [0, 0, 1, 1] == [one["removed"] for one in runs]
    assert [one["id"] for one in snapshots[1:]] == [one["snapshot"] for one in runs[2:]]
    assert all(0 < one["frozen_seconds"] < one["seconds"] for one in runs)
    alpha.pymigrate("snapshot", "verify", "--data")


def test_crontab_has_one_line_however_often_it_is_added(alpha: Host) -> None:
    alpha.run(["crontab", "-"], input="MAILTO=ops\n0 4 * * * /bin/true # theirs\n")
    first = alpha.pymigrate_json("schedule", "add", "web", "*/10 * * * *")
    again = alpha.pymigrate_json("schedule", "add", "web", "*/10 * * * *")
    assert (True, False) == (first["changed"], again["changed"])
    changed = alpha.pymigrate_json("schedule", "add", "web", "@hourly", "--keep-daily", "7")
    assert changed["changed"]

    assert 1 == crontab(alpha).count("schedule run web")
    assert "@hourly PATH=" in crontab(alpha)
    assert alpha.pymigrate_json("schedule", "show", "web")["installed"]
    alpha.pymigrate("schedule", "rm", "web")
    assert "MAILTO=ops\n0 4 * * * /bin/true # theirs" == crontab(alpha).strip()
    assert [] == alpha.pymigrate_json("schedule", "ls")
    assert 11 == alpha.pymigrate("schedule", "rm", "web", check=False).returncode


def test_failures_and_overlaps_are_seen(alpha: Host) -> None:
    alpha.pymigrate("schedule", "add", "web", "@daily")
    alpha.sh(
        "exec 9>/srv/pymigrate/schedules/web/run.lock; flock 9; "
        "! pymigrate schedule run web 2>/dev/null"
    )
    assert "skipped" in alpha.pymigrate("schedule", "ls").stdout
    alpha.pymigrate("pause", "web")
    alpha.pymigrate("schedule", "run", "web")  # what stands still can be written down too
    alpha.pymigrate("rm", "-f", "web")

    for _ in range(2):
        assert 11 == alpha.pymigrate("schedule", "run", "web", check=False).returncode

    assert ["skipped", "ok", "failed", "failed"] == [one["result"] for one in history(alpha)]
    assert "failed 2 times: there is no container" in alpha.pymigrate("schedule", "ls").stdout
    alpha.run(["crontab", "-r"])
    assert "not in the crontab" in alpha.pymigrate("schedule", "ls").stdout


def test_others_are_told_how_runs_went(alpha: Host) -> None:
    options = ("--metrics", "/srv/web.prom", "--pre", "sh -c 'test ! -e /srv/stop'")
    after = """sh -c 'echo "$PYMIGRATE_CONTAINER $PYMIGRATE_RESULT" >> /srv/told'"""
    failing = """sh -c 'echo "$PYMIGRATE_RESULT: $PYMIGRATE_ERROR" >> /srv/alarm'"""
    ways = ("--post", after, "--on-failure", failing)
    alpha.pymigrate("schedule", "add", "web", "@daily", *options, *ways)
    alpha.pymigrate("schedule", "run", "web")
    alpha.sh("touch /srv/stop")
    assert 20 == alpha.pymigrate("schedule", "run", "web", check=False).returncode

    assert "web ok\nweb failed\n" == alpha.sh("cat /srv/told")
    assert ["failed", " sh -c 'test ! -e /srv/stop' ended with 1"] == (
        alpha.sh("cat /srv/alarm").strip().split(":")[:2]
    )
    assert 'last_run_failed{container="web"} 1' in alpha.sh("cat /srv/web.prom")
    assert 1 == len(alpha.pymigrate_json("snapshot", "ls"))


def test_runs_that_cron_never_began_are_told(alpha: Host) -> None:
    alpha.pymigrate("schedule", "add", "web", "0 * * * *", "--metrics", "/srv/web.prom")
    path = alpha.outside("/srv/pymigrate/schedules/web/schedule.json")
    document = json.loads(path.read_text())
    before = datetime.now(UTC) - timedelta(hours=4, minutes=1)
    path.write_text(json.dumps({**document, "since": before.isoformat()}))  # as if so old
    alpha.pymigrate("schedule", "run", "web")

    missed = [one for one in history(alpha) if one["result"] == "missed"]
    assert len(missed) in (3, 4)  # the run now may stand for the last hour's
    assert f"missed {len(missed)} runs" in alpha.pymigrate("schedule", "ls").stdout
    (listed,) = alpha.pymigrate_json("schedule", "ls")
    assert (len(missed), "ok") == (listed["missed"], listed["last"]["result"])
    metrics = alpha.sh("cat /srv/web.prom")
    assert f'missed_runs{{container="web"}} {len(missed)}' in metrics
    assert "next_run_timestamp_seconds" in metrics


def test_nonsense_is_refused(alpha: Host) -> None:
    for words, code in (
        (("web", "every now and then"), 2),
        (("nobody", "@daily"), 11),
        (("web", "@daily", "--keep-last", "-1"), 2),
        (("web", "@daily", "--jitter", "-1"), 2),
        (("web", "@daily", "--key-file", "/nowhere"), 2),
        (("web", "@daily", "--systemd"), 22),  # the lab is not started by systemd
    ):
        said = alpha.pymigrate("schedule", "add", *words, check=False)
        assert code == said.returncode, said
    assert "" == crontab(alpha)


@pytest.mark.long
def test_cron_runs_it_every_minute(lab: Lab, alpha: Host) -> None:
    alpha.pymigrate("schedule", "add", "web", "* * * * *", "--keep-last", "2")
    with connected(lab) as client:
        cron: Process = alpha.popen([CRON, "-f"])
        try:
            end = time.monotonic() + 240
            while len(history(alpha)) < 3:
                assert time.monotonic() < end, alpha.pymigrate("schedule", "ls").stdout
                assert cron.poll() is None, cron.communicate()
                assert answers(client, "still there?")
                time.sleep(0.5)
        finally:
            cron.send_signal(signal.SIGTERM)
            cron.communicate(timeout=20)
        assert answers(client, "afterwards")

    runs = history(alpha)
    assert ["ok"] * 3 == [one["result"] for one in runs]
    assert [0, 0, 1] == [one["removed"] for one in runs]
    assert 2 == len(alpha.pymigrate_json("snapshot", "ls"))
    alpha.pymigrate("snapshot", "verify", "--data")
    alpha.pymigrate("snapshot", "restore", "latest", "--name", "copy", "--ip", "10.88.0.6")
