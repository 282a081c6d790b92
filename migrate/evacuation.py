"""Move every container off this host, one command ``migrate`` for each, so that none needs another.

Each move is a process of its own: what becomes of one does not matter to the others, and each rolls
itself back or says what is in doubt, as it would if a person had typed it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

REFUSED = frozenset({20, 21, 22, 24, 40, 41, 42, 43, 46})
"""Exit codes that say that this target will not do; another may. Nothing was touched then."""


@dataclass(frozen=True)
class Outcome:
    """What became of one container: ``code`` is that of its ``migrate``, 0 if it runs there now."""

    name: str
    target: str
    code: int
    seconds: float | None = None
    blackout: float | None = None
    said: str = ""

    @property
    def gone(self) -> bool:
        """Whether it is off this host."""
        return self.code == 0


@dataclass
class Evacuation:
    """Runs the moves; `interrupt` lets each that runs roll back, and begins no more."""

    command: Sequence[str]  # all of the command line but the container and the target
    targets: Sequence[str]
    told: Callable[[Outcome], None]
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(self, names: Sequence[str], parallel: int) -> list[Outcome]:
        """Move them, so many at once; the outcomes are in the order of the names."""
        with ThreadPoolExecutor(max_workers=parallel) as pool:
            try:
                turns = list(enumerate(names))
                return list(pool.map(lambda turn: self._moved(turn[1], turn[0]), turns))
            except BaseException:
                self.interrupt()
                raise

    def interrupt(self) -> None:
        """Ask every move that runs to end, as Ctrl-C does."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _moved(self, name: str, turn: int) -> Outcome:
        """Try each target once, beginning with the one whose turn it is."""
        outcome = Outcome(name, "", 50, said="not begun")
        for at in range(len(self.targets)):
            target = self.targets[(turn + at) % len(self.targets)]
            tried = self._try(name, target)
            if tried is None:
                break
            outcome = tried
            if outcome.code not in REFUSED:
                break
        self.told(outcome)
        return outcome

    def _try(self, name: str, target: str) -> Outcome | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                [*self.command, name, target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches it once, by us
            )
            self._running.add(process)
        try:
            out, complaint = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            return Outcome(name, target, process.returncode, said=complaint.strip())
        report = json.loads(out)
        return Outcome(
            name, target, 0, seconds=report["seconds"], blackout=report["blackout_seconds"]
        )


def command(root: str, options: Sequence[str]) -> list[str]:
    """Return the command line of one move, with the options that the evacuation was given."""
    program = [sys.executable, "-I", "-m", "pymigrate.migrate"]
    return [*program, "--root", root, "--json", "--quiet", "migrate", *options]
