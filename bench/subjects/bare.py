"""A bare process moved by CRIU, as a careful operator does by hand: with one login.

It shares the hosts' namespaces, and its address is the host's, so a client finds it only if it asks
at both: what is measured is the memory's way.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

from bench.harness import BenchError
from bench.subjects.login import logged_in
from bench.subjects.subject import IMAGE, criu_program, fresh
from bench.workload import Workload
from tests.lab import Host, Process

IMAGES = Path("/srv/bench/bare")
PATIENCE = 120.0  # seconds for each step


class Bare:
    """A process on the first host, then on the second."""

    def __init__(self, source: Host, target: Host) -> None:
        self._source = source
        self._target = target
        self._pid: int | None = None
        self._running: list[Process] = []
        self._undo = ExitStack()

    def launch(self, workload: Workload) -> None:
        """Start it in a session of its own."""
        words = " ".join(workload.argv)
        # A PID that is free on the second host too, where few processes run.
        said = self._source.sh(
            "echo 30000 > /proc/sys/kernel/ns_last_pid\n"
            f"setsid {IMAGE}{words} < /dev/null > /dev/null 2>&1 &\necho $!",
            directory=IMAGE,
        )
        self._pid = int(said)

    def _start(self, host: Host, verb: str, *argv: str) -> Process:
        options = ("--images-dir", str(IMAGES), "--log-file", f"{verb}.log", "-v1")
        process = host.popen([criu_program(), verb, *options, *argv], directory=IMAGES)
        self._running.append(process)
        return process

    def move(self) -> None:
        """Log in, and move it; on return all of its memory is there."""
        with logged_in(self._source, self._target) as login:
            self._move(login)

    def _move(self, login: tuple[str, str]) -> None:
        raise NotImplementedError

    def _wait(self, *steps: tuple[str, Process, Host]) -> None:
        for name, process, host in steps:
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired as error:
                raise BenchError(f"criu {name} did not end") from error
            if code:
                raise BenchError(f"criu {name}: {self._log(host, name)}")

    def _log(self, host: Host, verb: str) -> str:
        path = host.outside(IMAGES) / f"{verb}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return " / ".join([line for line in lines if "Error" in line][:3]) or "no reason given"

    def remove(self) -> None:
        """Kill it wherever it is. May be repeated."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self._running.clear()
        if self._pid is not None:
            self._source.sh(f"kill -KILL {self._pid} || true")
            # It has its number there too, if it was restored; nothing else comes near it.
            self._target.sh(f"kill -KILL {self._pid} || true")
            self._pid = None
        self._undo.close()
        for host in (self._source, self._target):
            fresh(host, IMAGES)
