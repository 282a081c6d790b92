"""Schedules: lines of a crontab, what is written down, and what a history says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from crontab import CronTab
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate import crontabs, run_report, timers
from pymigrate.migrate.retention import Policy
from pymigrate.migrate.run_history import Run, gauges
from pymigrate.migrate.schedule import Schedule, Schedules
from pymigrate.runtime.errors import HostError, NotFound, UsageError
from pymigrate.runtime.host import Host

OTHERS = """\
# m h dom mon dow command
MAILTO=ops@example.org
*/5 * * * * /usr/bin/backup # nightly

@reboot /usr/bin/hello
"""
MARK = crontabs.mark("0123456789ab", "web")
SCHEDULE = Schedule(
    "web",
    "*/10 * * * *",
    "/srv/r",
    "/etc/k",
    Policy(last=2),
    5,
    ("true", "a b"),
    ("false",),
    "/srv/web.prom",
    True,
    "2026-01-02T03:04:05Z",
    on_failure=("page", "ops"),
    webhook="/etc/hook",
)


def test_line_is_added_once_and_others_stay() -> None:
    table = CronTab(tab=OTHERS)

    assert crontabs.install(table, MARK, "0 * * * *", "run web")
    assert not crontabs.install(table, MARK, "0 * * * *", "run web")
    assert crontabs.install(table, MARK, "*/10 * * * *", "run web")
    assert not crontabs.install(table, MARK, "*/10 * * * *", "run web")
    again = CronTab(tab=table.render())
    assert not crontabs.install(again, MARK, "*/10 * * * *", "run web")

    assert f"*/10 * * * * run web # {MARK}\n" in again.render()
    assert 1 == again.render().count(MARK)
    assert OTHERS in again.render()


def test_changed_line_takes_the_place_of_the_one_before() -> None:
    table = CronTab(tab=OTHERS)
    crontabs.install(table, MARK, "*/10 * * * *", "run web")

    assert crontabs.install(table, MARK, "@hourly", "run web")

    assert 1 == table.render().count(MARK)
    assert f"@hourly run web # {MARK}\n" in table.render()


def test_removal_leaves_the_lines_of_other_hosts_and_containers() -> None:
    table = CronTab(tab=OTHERS)
    for host, name in (("0123456789ab", "web"), ("0123456789ab", "db"), ("ba9876543210", "web")):
        crontabs.install(table, crontabs.mark(host, name), "@daily", "run")

    assert crontabs.uninstall(table, MARK)
    assert not crontabs.uninstall(table, MARK)

    assert not crontabs.is_installed(table, MARK)
    assert crontabs.is_installed(table, crontabs.mark("ba9876543210", "web"))
    assert 2 == table.render().count("@daily run")
    assert OTHERS in table.render()


def test_line_that_was_commented_out_is_not_installed() -> None:
    table = CronTab(tab=f"# @daily run # {MARK}\n")

    assert not crontabs.is_installed(table, MARK)


@pytest.mark.parametrize("good", ["*/10 * * * *", "  0  3 * * 1-5 ", "@hourly", "0 0 1,15 * *"])
def test_expressions_of_cron_are_taken(good: str) -> None:
    assert " ".join(good.split()) == crontabs.check(good)


@pytest.mark.parametrize(
    "bad", ["", "every hour", "* * * *", "61 * * * *", "* * * * * *", "@never"]
)
def test_anything_else_is_refused(bad: str) -> None:
    with pytest.raises(UsageError):
        crontabs.check(bad)


@given(st.lists(st.text("ab%'\"\\ $`;#*", min_size=1), min_size=1, max_size=4))
def test_words_of_a_line_reach_the_program_as_they_are(words: list[str]) -> None:
    line = crontabs.command(["printf", r"%s\0", *words])

    # Cron takes the backslash before a % away, and gives the rest to the shell: crontab(5).
    said = subprocess.run(
        ["/bin/sh", "-c", line.replace(r"\%", "%")], stdout=subprocess.PIPE, check=True
    )

    assert words == said.stdout.decode().split("\0")[:-1]


def test_line_break_in_a_line_is_refused() -> None:
    with pytest.raises(UsageError):
        crontabs.command(["echo", "a\nb"])


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("*/20 * * * *", ["*-*-* *:00,20,40:00"]),
        ("@hourly", ["*-*-* *:00:00"]),
        ("5 4 * 2 *", ["*-02-* 04:05:00"]),
        ("0 3 * * mon-fri", ["Mon,Tue,Wed,Thu,Fri *-*-* 03:00:00"]),
        ("0 3 * * 7", ["Sun *-*-* 03:00:00"]),
        ("0 0 1,15 * 5", ["*-*-01,15 00:00:00", "Fri *-*-* 00:00:00"]),
        ("0 0 */10 * 5", ["Fri *-*-01,11,21,31 00:00:00"]),
    ],
)
def test_timers_run_when_cron_would(expression: str, lines: list[str]) -> None:
    assert lines == timers.calendar(crontabs.parse(crontabs.check(expression)))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    when = timers.calendar(crontabs.parse("*/20 1-5 1,15 jan-mar 1,3"))
    argv = ["/bin/echo", 'a "b" %n $HOME \\ c']
    for kind, text in zip(("service", "timer"), timers.texts("web", argv, when), strict=True):
        (tmp_path / f"web.{kind}").write_text(text)
    units = [str(tmp_path / f"web.{kind}") for kind in ("service", "timer")]

    said = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )

    assert "web." not in said.stderr, said.stderr
    for line in when:
        subprocess.run(["systemd-analyze", "calendar", line], check=True, capture_output=True)


def test_reboot_is_no_time_for_a_timer() -> None:
    with pytest.raises(UsageError):
        crontabs.parse("@reboot")


def test_schedule_goes_through_json() -> None:
    assert SCHEDULE == Schedule.from_json(SCHEDULE.to_json())
    skipping = replace(SCHEDULE, skip=("tcp", "zombie"))
    assert skipping == Schedule.from_json(skipping.to_json())
    with pytest.raises(HostError, match="damaged"):
        Schedule.from_json(SCHEDULE.to_json().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(HostError, match="damaged"):
        Schedule.from_json(replace(SCHEDULE, expression="never").to_json())


def test_commands_of_the_operator_are_run_without_a_shell(tmp_path: Path) -> None:
    words = run_report.parse_command(f"touch '{tmp_path}/a; b' $(reboot)", "--pre")
    assert ("touch", f"{tmp_path}/a; b", "$(reboot)") == words

    run_report.run_command(("sh", "-c", f'echo "$WHO" > {tmp_path}/who'), {"WHO": "web"})
    assert "web\n" == (tmp_path / "who").read_text()
    with pytest.raises(HostError, match="ended with 3: oh no"):
        run_report.run_command(("sh", "-c", "echo oh no; exit 3"), {})
    with pytest.raises(HostError, match="cannot be run"):
        run_report.run_command(("/nowhere",), {})
    for bad in ("'", "  "):
        with pytest.raises(UsageError):
            run_report.parse_command(bad, "--pre")


class Hook(BaseHTTPRequestHandler):
    """A web hook that keeps what it is told, and answers as it is asked to."""

    told: ClassVar[list[tuple[str, dict[str, object]]]] = []
    answer = 204

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append((self.path, json.loads(body)))
        self.send_response(self.answer)
        self.send_header("Location", "http://127.0.0.1/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(Hook, "told", [])
    file = tmp_path / "hook"
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        file.write_text(f"http://127.0.0.1:{server.server_port}/secret?key=1\n")
        yield file
        server.shutdown()
        thread.join()


def test_web_hook_is_posted_to(hook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_report.post(hook, {"result": "failed"})

    assert [("/secret?key=1", {"result": "failed"})] == Hook.told
    for answer in (302, 500):
        monkeypatch.setattr(Hook, "answer", answer)
        with pytest.raises(HostError, match=f"at 127.0.0.1 answered {answer}") as refused:
            run_report.post(hook, {})
        assert "secret" not in refused.value.message
    hook.write_text("http://127.0.0.1:1/secret")
    with pytest.raises(HostError, match="cannot be reached") as refused:
        run_report.post(hook, {})
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("bad", ["", "example.org/hook", "ftp://a/b", "http://", "http://a:x/"])
def test_what_is_no_address_of_a_web_hook_is_refused(tmp_path: Path, bad: str) -> None:
    (tmp_path / "hook").write_text(bad)
    with pytest.raises(UsageError):
        run_report.read_address(tmp_path / "hook")
    with pytest.raises(UsageError):
        run_report.read_address(tmp_path / "nowhere")


def test_failures_are_told_and_others_are_not(hook: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = ("sh", "-c", f'echo "$PYMIGRATE_RESULT: $PYMIGRATE_ERROR" >> {told}')
    schedules = Schedules(Host.open(tmp_path / "root"))
    schedule = Schedule("web", "@reboot", on_failure=command, webhook=str(hook))
    schedules._write(schedule)

    schedules._finish(schedule, Run("2026-01-02T03:04:05Z", 1.0, "ok"))
    assert ([], False) == (Hook.told, told.exists())
    schedules._finish(schedule, Run("2026-01-02T03:14:05Z", 1.0, "skipped", error="at work"))
    with pytest.raises(NotFound):
        schedules.run("web", wait=False)  # there is no such container

    assert ["skipped: at work", "failed: there is no container 'web' below"] == [
        line.partition(" /")[0] for line in told.read_text().splitlines()
    ]
    assert [("web", "skipped"), ("web", "failed")] == [
        (document["container"], document["result"]) for _, document in Hook.told
    ]

    hook.unlink()
    with pytest.raises(HostError, match="not all could be told"):
        schedules._finish(schedule, Run("2026-01-02T03:24:05Z", 1.0, "failed", error="full"))
    assert 3 == len(told.read_text().splitlines())  # by the other way it was
    said = [run.error for run in schedules.history("web") if run.started.endswith("03:24:05Z")]
    assert "full" == said[0]
    assert said[1].startswith("full; cannot read the address")


def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    runs = [Run("2026-01-02T03:04:05Z", 1.5, "ok"), Run("2026-01-02T03:05:05Z", 0.25, "failed")]

    run_report.write_metrics(tmp_path / "web.prom", run_report.metrics("web", gauges(runs)))

    lines = (tmp_path / "web.prom").read_text().splitlines()
    assert 'pymigrate_snapshot_last_success_timestamp_seconds{container="web"} 1767323045' in lines
    assert 'pymigrate_snapshot_last_run_failed{container="web"} 1' in lines
    assert 'pymigrate_snapshot_last_run_duration_seconds{container="web"} 0.25' in lines
    assert len(lines) // 2 == sum(line.startswith("# TYPE pymigrate_") for line in lines)
    with pytest.raises(HostError):
        run_report.write_metrics(tmp_path / "no/web.prom", "")


def test_history_keeps_what_can_be_read(tmp_path: Path) -> None:
    schedules = Schedules(Host(tmp_path, "0123456789ab"))
    schedules._directory("web").mkdir()
    assert schedules._write(SCHEDULE)
    assert not schedules._write(replace(SCHEDULE, created="later"))
    runs = [
        Run("2026-01-02T03:04:05Z", 1.5, "ok", "ab" * 16),
        Run("2026-01-02T03:05:05Z", 2.0, "failed"),
    ]
    for run in runs:
        schedules._history("web").add(run)
    with (tmp_path / "schedules/web/history").open("a") as stream:
        stream.write('{"started": "today", "seconds": 1, "result": "ok"}\n{"torn')

    assert ["web"] == schedules.names()
    assert SCHEDULE == schedules.get("web")
    assert runs == schedules.history("web")


def test_schedule_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Schedules(Host(tmp_path, "0123456789ab")).history("web")


def test_what_was_due_and_never_began_is_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is at work now has no line yet, and is not missed."""
    schedules = Schedules(Host(tmp_path, "0123456789ab"))
    schedules._directory("web").mkdir()
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    hours = [hour - timedelta(hours=number) for number in (3, 2, 1, 0)]
    since = (hours[0] - timedelta(minutes=1)).isoformat()
    schedules._write(replace(SCHEDULE, expression="@hourly", since=since))
    monkeypatch.setattr(Schedules, "is_installed", lambda *_: True)
    for begun in (hours[0], hours[2]):
        schedules._history("web").add(Run(begun.isoformat(), 1.0, "ok"))

    expected = ["ok", "missed", "ok", "missed"]
    assert expected == [run.result for run in schedules.history("web")][:4]
    with schedules._alone("web"):
        path = tmp_path / "schedules/web/run.lock"
        os.utime(path, (hours[3].timestamp() + 1, hours[3].timestamp() + 1))
        found = [run for run in schedules.history("web") if run.started < _text(hours[3], 9)]
        assert expected[:3] == [run.result for run in found]


def test_times_that_were_changed_count_from_then_on(tmp_path: Path) -> None:
    schedules = Schedules(Host(tmp_path, "0123456789ab"))
    schedules._directory("web").mkdir()
    schedules._write(replace(SCHEDULE, since="2026-01-02T03:04:05Z"))

    schedules._write(replace(SCHEDULE, jitter=9, since="2026-02-02T03:04:05Z"))
    assert "2026-01-02T03:04:05Z" == schedules.get("web").since
    schedules._write(replace(SCHEDULE, expression="@daily", since="2026-02-02T03:04:05Z"))
    assert "2026-02-02T03:04:05Z" == schedules.get("web").since


def _text(moment: datetime, minutes: int) -> str:
    return (moment + timedelta(minutes=minutes)).isoformat()
