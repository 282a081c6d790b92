"""Timers of systemd for schedules, instead of cron: systemd.timer(5), systemd.time(7)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pymigrate.migrate.crontabs import Fields
from pymigrate.runtime.errors import HostError, MissingFeature

UNITS = Path("/etc/systemd/system")
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)


def unit(host_id: str, name: str) -> str:
    """Return the name of the timer and its service, without the suffix."""
    return f"pymigrate-snapshot-{host_id}-{name}"


def calendar(fields: Fields) -> list[str]:
    """Say in systemd's words when cron would run; of several lines any one counts. Pure.

    Where both the day of the month and that of the week are restricted, cron runs on either:
    crontab(5). systemd runs on both, so each gets a line.
    """
    time = f"{_listed(fields.hours, 24)}:{_listed(fields.minutes, 60)}:00"
    months, days = _listed(fields.months, 12), _listed(fields.days, 31)
    week = "" if len(fields.weekdays) == 7 else ",".join(_DAYS[d] for d in fields.weekdays) + " "
    if fields.either_day and week and days != "*":
        return [f"*-{months}-{days} {time}", f"{week}*-{months}-* {time}"]
    return [f"{week}*-{months}-{days} {time}"]


def _listed(values: Sequence[int], count: int) -> str:
    return "*" if len(values) == count else ",".join(f"{value:02}" for value in values)


def texts(name: str, argv: Sequence[str], when: Sequence[str]) -> tuple[str, str]:
    """Write the service and the timer. Pure."""
    about = f"pymigrate's snapshots of {name}"
    service = (
        f"[Unit]\nDescription={about}\n\n"
        f"[Service]\nType=oneshot\nExecStart={' '.join(_quoted(word) for word in argv)}\n"
    )
    times = "".join(f"OnCalendar={line}\n" for line in when)
    timer = (
        f"[Unit]\nDescription={about}\n\n"
        # Persistent: a run that was missed while the host was off is made up for.
        f"[Timer]\n{times}AccuracySec=1s\nPersistent=true\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    return service, timer


def _quoted(word: str) -> str:
    r"""Quote a word as systemd.service(5) wants it: ``\``, ``"``, specifiers and variables."""
    for letter, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(letter, written)
    return f'"{word}"'


def install(stem: str, service: str, timer: str) -> bool:
    """Have the timer, and have it run; False: it was there already.

    Raises:
        MissingFeature: this host was not started by systemd.
        HostError: systemctl refused.

    """
    _check()
    wanted = {f"{stem}.service": service, f"{stem}.timer": timer}
    if is_installed(stem) and all((UNITS / name).read_text() == wanted[name] for name in wanted):
        return False
    for name, text in wanted.items():
        (UNITS / name).write_text(text, encoding="utf-8")
    _systemctl("daemon-reload")
    _systemctl("enable", f"{stem}.timer")
    _systemctl("restart", f"{stem}.timer")
    return True


def uninstall(stem: str) -> bool:
    """Remove the timer; False: there was none."""
    files = [UNITS / f"{stem}.{kind}" for kind in ("timer", "service")]
    if not any(path.exists() for path in files):
        return False
    _check()
    _systemctl("disable", "--now", f"{stem}.timer")
    for path in files:
        path.unlink(missing_ok=True)
    _systemctl("daemon-reload")
    return True


def is_installed(stem: str) -> bool:
    """Say whether systemd starts the timer at boot."""
    with contextlib.suppress(OSError):
        return (UNITS / "timers.target.wants" / f"{stem}.timer").resolve(strict=True).is_file()
    return False


def _check() -> None:
    if not _RUNNING.is_dir() or shutil.which("systemctl") is None:
        raise MissingFeature(
            "this host was not started by systemd, so no timer would run; nothing was changed",
            hint="leave --systemd out, for cron",
        )


def _systemctl(*words: str) -> None:
    done = subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise HostError(
            f"systemctl {' '.join(words)} failed: {done.stderr.strip()}",
            hint="systemctl list-timers 'pymigrate-*'",
        )
