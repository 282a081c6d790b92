"""What the programs of a host's own cgroup use while something is done: memory and CPU time.

Containers have cgroups beside it, so what is seen are the tools, ssh included. A process is looked
at every few milliseconds, so of each the last of them are not seen.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

STEP = 0.03  # seconds between two looks
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """Watches from the beginning of a ``with`` to its end; processes named in ``but`` do not count.

    ``peak`` is the sum of what each process had at its most, in bytes, of those that began
    meanwhile; ``seconds`` is the CPU time of all.
    """

    members: Callable[[], list[int]]
    but: frozenset[str] = frozenset()
    _cpu: dict[int, list[float]] = field(default_factory=dict)
    _memory: dict[int, int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def peak(self) -> int:
        """Bytes of memory, shared pages counted for each."""
        return sum(self._memory.values())

    @property
    def seconds(self) -> float:
        """CPU seconds."""
        return sum(last - first for first, last in self._cpu.values())

    def __enter__(self) -> Self:
        """Begin: what is there already counts from now on."""
        self._look(first=True)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(STEP):
            self._look()

    def _look(self, *, first: bool = False) -> None:
        for pid in self.members():
            seen = look(Path(f"/proc/{pid}"))
            if seen is None or seen[0] in self.but:
                continue
            _, spent, most = seen
            self._cpu.setdefault(pid, [spent if first else 0.0, spent])[1] = spent
            if not first and (pid in self._memory or self._cpu[pid][0] == 0.0):
                self._memory[pid] = most


def look(directory: Path) -> tuple[str, float, int] | None:
    """Read a process's name, CPU seconds and the most memory it had; None if it has ended."""
    try:
        stat = (directory / "stat").read_text()
        status = (directory / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    words = rest.split()
    peaks = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    most = int(peaks[0].split()[1]) << 10 if peaks else 0
    return name, (int(words[11]) + int(words[12])) / _TICKS, most
