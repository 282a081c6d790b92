"""Snapshots at times: what is to be done when, and one run of it.

Each schedule has a directory below ``ROOT/schedules/``, named as its container: ``schedule.json``
says what to do, ``history`` what became of all runs (run_history.py), and flock(2) on ``run.lock``
keeps two runs from meeting. Cron only starts ``pymigrate schedule run NAME``.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pymigrate.migrate import crontabs, missed, run_history, run_report, timers
from pymigrate.migrate.retention import Policy
from pymigrate.migrate.run_history import MISSED, History, Run
from pymigrate.runtime import lock
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import HostError, NotFound, PymigrateError, UsageError, WrongState
from pymigrate.runtime.host import Host, check_name

FORMAT = 1
TAG = "scheduled"
"""Snapshots with it are thinned out by the rules; those made by hand are not."""

MAX_JITTER = 3600
_DEFINITION = "schedule.json"
_LOCK_FILE = "run.lock"
_UNSEEN = "it was due, and no run is known: was the host off, or cron not running?"


@dataclass(frozen=True)
class Schedule:
    """What to do, and when.

    ``jitter`` is the longest random wait before a run, in seconds; ``before``, ``after`` and
    ``on_failure`` are commands, ``webhook`` the file that has the address of one, ``metrics`` the
    file for Prometheus: see run_report.py. ``since`` is when its times were last changed.
    """

    name: str
    expression: str
    repository: str | None = None
    key_file: str | None = None
    policy: Policy = field(default_factory=Policy)
    jitter: int = 0
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    metrics: str | None = None
    systemd: bool = False
    created: str = ""
    since: str = ""
    on_failure: tuple[str, ...] = ()
    webhook: str | None = None
    skip: tuple[str, ...] = ()  # findings of the scan in spite of which it is tried

    @property
    def due(self) -> crontabs.Fields | None:
        """When it is to run; None for @reboot, which no clock tells."""
        try:
            return crontabs.parse(self.expression)
        except UsageError:
            return None

    def to_json(self) -> bytes:
        """Return it as JSON."""
        document = {
            "format": FORMAT,
            "name": self.name,
            "expression": self.expression,
            "repository": self.repository,
            "key_file": self.key_file,
            "keep": self.policy.to_document(),
            "jitter": self.jitter,
            "before": list(self.before),
            "after": list(self.after),
            "metrics": self.metrics,
            "systemd": self.systemd,
            "created": self.created,
            "since": self.since,
            "on_failure": list(self.on_failure),
            "webhook": self.webhook,
            "skip": list(self.skip),
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Schedule:
        """Read it; raises HostError for what is damaged or newer."""
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}")
            repository, key_file = document["repository"], document["key_file"]
            metrics, webhook = document["metrics"], document.get("webhook")
            return cls(
                name=check_name(str(document["name"])),
                expression=crontabs.check(str(document["expression"])),
                repository=None if repository is None else str(repository),
                key_file=None if key_file is None else str(key_file),
                policy=Policy.from_document(document["keep"]),
                jitter=int(document["jitter"]),
                before=tuple(str(word) for word in document["before"]),
                after=tuple(str(word) for word in document["after"]),
                metrics=None if metrics is None else str(metrics),
                systemd=bool(document["systemd"]),
                created=str(document["created"]),
                since=str(document.get("since", document["created"])),
                on_failure=tuple(str(word) for word in document.get("on_failure", ())),
                webhook=None if webhook is None else str(webhook),
                skip=tuple(str(check) for check in document.get("skip", [])),
            )
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise HostError(
                f"a {_DEFINITION} is damaged: {error}", hint="pymigrate schedule add it again"
            ) from error


class Overlap(WrongState):
    """The run before is still at work."""


class Schedules:
    """All schedules of a host."""

    def __init__(self, host: Host) -> None:
        """Take the host; its directory of schedules is made the first time."""
        self.host = host
        self._root = host.root / "schedules"
        self._root.mkdir(mode=0o700, exist_ok=True)

    def names(self) -> list[str]:
        """List them."""
        return sorted(path.parent.name for path in self._root.glob(f"*/{_DEFINITION}"))

    def get(self, name: str) -> Schedule:
        """Read one; raises NotFound."""
        try:
            return Schedule.from_json((self._directory(name) / _DEFINITION).read_bytes())
        except FileNotFoundError as error:
            raise NotFound(
                f"there is no schedule for {name}; nothing was changed",
                hint='pymigrate schedule add NAME "*/10 * * * *"',
            ) from error

    def add(self, schedule: Schedule, program: list[str]) -> bool:
        """Keep a schedule and its line in the crontab, or its timer; False: all was there already.

        ``program`` is how pymigrate is started, up to its verb.

        Raises:
            NotFound: there is no such container.
            MissingFeature: there is no cron, or no systemd.

        """
        Container.open(self.host, schedule.name)
        argv = [*program, "-q", "schedule", "run", schedule.name]
        with lock.locked(self._root):
            if schedule.systemd:
                changed = self._install_timer(schedule, argv)
            else:
                changed = self._install_line(schedule, argv)
            return self._write(schedule) or changed

    def _install_line(self, schedule: Schedule, argv: list[str]) -> bool:
        table = crontabs.open_own()
        marker = crontabs.mark(self.host.id, schedule.name)
        changed = crontabs.install(table, marker, schedule.expression, crontabs.command(argv))
        if changed:
            crontabs.write(table)
        timers.uninstall(timers.unit(self.host.id, schedule.name))
        return changed

    def _install_timer(self, schedule: Schedule, argv: list[str]) -> bool:
        when = timers.calendar(crontabs.parse(schedule.expression))
        stem = timers.unit(self.host.id, schedule.name)
        changed = timers.install(stem, *timers.texts(schedule.name, argv, when))
        self._uninstall_line(schedule.name)
        return changed

    def _uninstall_line(self, name: str) -> None:
        if not crontabs.is_there():
            return
        table = crontabs.open_own()
        if crontabs.uninstall(table, crontabs.mark(self.host.id, name)):
            crontabs.write(table)

    def _write(self, schedule: Schedule) -> bool:
        directory = self._directory(schedule.name)
        directory.mkdir(mode=0o700, exist_ok=True)
        path = directory / _DEFINITION
        if path.exists():
            before = Schedule.from_json(path.read_bytes())
            same = (before.expression, before.systemd) == (schedule.expression, schedule.systemd)
            since = before.since if same else schedule.since
            schedule = replace(schedule, created=before.created, since=since)
            if schedule == before:
                return False
        draft = path.with_suffix(".draft")
        with draft.open("wb") as stream:
            stream.write(schedule.to_json())
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
        return True

    def remove(self, name: str) -> None:
        """Remove a schedule, its line and its history; its snapshots stay. Raises NotFound."""
        directory = self._directory(name)
        with lock.locked(self._root):
            if not directory.exists():
                self.get(name)
            self._uninstall_line(name)
            timers.uninstall(timers.unit(self.host.id, name))
            shutil.rmtree(directory)

    def is_installed(self, name: str) -> bool:
        """Say whether cron, or systemd, will run it."""
        if timers.is_installed(timers.unit(self.host.id, name)):
            return True
        marker = crontabs.mark(self.host.id, name)
        return crontabs.is_there() and crontabs.is_installed(crontabs.open_own(), marker)

    def history(self, name: str) -> list[Run]:
        """Return all runs, the oldest first, those that were missed among them; raises NotFound."""
        schedule = self.get(name)
        known = self._history(name).runs()
        gone = self._missed(schedule, known, datetime.now(UTC))
        return sorted([*known, *gone], key=lambda run: run.started)

    def _missed(self, schedule: Schedule, known: list[Run], now: datetime) -> list[Run]:
        """Return the runs that were due and of which nothing is known."""
        fields = schedule.due
        if fields is None or not schedule.since or not self.is_installed(schedule.name):
            return []  # where its line is missing, that is what is told
        begun = [datetime.fromisoformat(run.started) for run in known]
        since = datetime.fromisoformat(schedule.since)
        if begun and len(begun) > run_history.REMEMBERED:
            since = max(since, begun[0])  # older ones may have been dropped
        running = self._running_since(schedule.name)
        begun += [] if running is None else [running]
        gone = missed.missed(fields, begun, since, now, jitter=schedule.jitter)
        return [Run(run_history.written(due), 0.0, MISSED, error=_UNSEEN) for due in gone]

    def _running_since(self, name: str) -> datetime | None:
        """Say when the run began that is at work now, if one is."""
        try:
            held = os.open(self._directory(name) / _LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if lock.try_lock(held):
                return None
            return datetime.fromtimestamp(os.fstat(held).st_mtime, UTC)
        finally:
            os.close(held)

    def run(self, name: str, *, wait: bool = True, debug: bool = False) -> Run:
        """Make a snapshot now and thin out those of this schedule; the run is written down.

        ``wait``: up to the schedule's jitter first, so that many hosts do not begin at once;
        ``debug``: what CRIU is asked for and says is shown and kept.

        Raises:
            PymigrateError: whatever made it fail; that is in the history too.

        """
        schedule = self.get(name)
        if wait and schedule.jitter:
            part = int.from_bytes(os.urandom(4)) / 2**32
            select.select([], [], [], schedule.jitter * part)
        started = run_history.written(datetime.now(UTC))
        begun = time.monotonic()
        try:
            with self._alone(name):
                if schedule.before:
                    run_report.run_command(schedule.before, {"PYMIGRATE_CONTAINER": name})
                run = _snapshot(self.host, schedule, started, begun, debug=debug)
        except (PymigrateError, OSError) as error:
            run = _failure(error, started, time.monotonic() - begun)
            try:
                self._finish(schedule, run)
            except PymigrateError as second:
                error.add_note(second.message)
            raise
        self._finish(schedule, run)
        return run

    def _finish(self, schedule: Schedule, run: Run) -> None:
        """Write a run down, then tell others; if that fails, it is written down too."""
        self._history(schedule.name).add(run)
        try:
            if schedule.metrics is not None:
                runs = self.history(schedule.name)
                values = {**run_history.gauges(runs), **_next(schedule)}
                text = run_report.metrics(schedule.name, values)
                run_report.write_metrics(Path(schedule.metrics), text)
            if schedule.after:
                run_report.run_command(schedule.after, _told(schedule.name, run))
        except PymigrateError as error:
            now = replace(run, result="failed", exit_code=error.exit_code, error=error.message)
            self._history(schedule.name).add(now)
            self._alarm(schedule, now)
            raise
        if run.result != "ok":
            self._alarm(schedule, run)

    def _alarm(self, schedule: Schedule, run: Run) -> None:
        """Call for help, by each of the ways; if one fails, that is written down too."""
        ways: list[Callable[[], None]] = []
        if schedule.on_failure:
            told = _told(schedule.name, run)
            ways.append(lambda: run_report.run_command(schedule.on_failure, told))
        if schedule.webhook is not None:
            where = Path(schedule.webhook)
            document = {"host": socket.gethostname(), "container": schedule.name}
            ways.append(lambda: run_report.post(where, {**document, **run.to_document()}))
        failures = []
        for way in ways:
            try:
                way()
            except PymigrateError as error:
                failures.append(error.message)
        if failures:
            message = "; ".join([run.error, *failures])
            self._history(schedule.name).add(replace(run, error=message))
            raise HostError(f"not all could be told of the failure: {'; '.join(failures)}")

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold the schedule's lock for the block; raises Overlap if a run holds it."""
        path = self._directory(name) / _LOCK_FILE
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not lock.try_lock(held):
                raise Overlap(
                    f"the run of {name} before this one is still at work; this one was left out",
                    hint="pymigrate schedule history shows how long they take",
                )
            os.utime(held)  # so that it is seen when the run began
            yield
        finally:
            os.close(held)

    def _history(self, name: str) -> History:
        return History(self._directory(name))

    def _directory(self, name: str) -> Path:
        return self._root / check_name(name)


def program(host: Host) -> list[str]:
    """Return how cron is to start pymigrate on this host."""
    return [sys.executable, "-I", "-m", "pymigrate.migrate", "--root", str(host.root)]


def _snapshot(host: Host, schedule: Schedule, started: str, begun: float, *, debug: bool) -> Run:
    from pymigrate.checkpoint.requests import DumpOptions
    from pymigrate.migrate import snapshots

    where = snapshots.location(host, schedule.repository)
    key_file = None if schedule.key_file is None else Path(schedule.key_file)
    secret = snapshots.read_secret(key_file)
    container = Container.open(host, schedule.name)
    options = DumpOptions(leave_running=True, debug=debug, skip=schedule.skip)
    removed = freed = 0
    with snapshots.opened(where, secret, host.root, make=True) as repository:
        made = snapshots.create(container, repository, [TAG], options)
        if not schedule.policy.is_empty:
            try:
                thinned = snapshots.thin(
                    repository, schedule.policy, container=schedule.name, tag=TAG, host=made.host
                )
            except PymigrateError as error:
                error.message = f"snapshot {made.short_id} was made, then: {error.message}"
                raise
            removed, freed = len(thinned.removed), thinned.pruned.freed
    return Run(
        started=started,
        seconds=time.monotonic() - begun,
        result="ok",
        snapshot=made.id,
        frozen_seconds=made.statistics.frozen_seconds,
        new_bytes=made.statistics.new_bytes,
        removed=removed,
        freed_bytes=freed,
    )


def _next(schedule: Schedule) -> dict[str, float]:
    """Say when the next run is due: an alarm may compare it with the clock when cron is dead."""
    following = schedule.due and missed.due_after(schedule.due, datetime.now(UTC))
    return {"next_run_timestamp_seconds": following.timestamp()} if following else {}


def _told(name: str, run: Run) -> dict[str, str]:
    return {
        "PYMIGRATE_CONTAINER": name,
        "PYMIGRATE_RESULT": run.result,
        "PYMIGRATE_SNAPSHOT": run.snapshot,
        "PYMIGRATE_ERROR": run.error,
    }


def _failure(error: PymigrateError | OSError, started: str, seconds: float) -> Run:
    message = error.message if isinstance(error, PymigrateError) else str(error)
    code = error.exit_code if isinstance(error, PymigrateError) else PymigrateError.exit_code
    result = "skipped" if isinstance(error, Overlap) else "failed"
    return Run(started, seconds, result, exit_code=code, error=message)
