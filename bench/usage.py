"""What the programs of a host's own cgroup use while something is done: memory and CPU time.

Containers have cgroups beside it, so what is seen are the tools, ssh included. A process is looked
at every few milliseconds, so of each the last of them are not seen.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import Host

STEP = 0.03  # seconds between two looks
BEHIND = 10  # nice(2)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """Watches from the beginning of a ``with`` to its end; processes named in ``but`` do not count.

    ``peak`` is the sum of what each process had at its most, in bytes, of those that began
    meanwhile; ``anonymous`` what all of these had at once at the most that is in no file, so of
    their own and nothing that the kernel could write back; ``seconds`` is the CPU time of all.
    """

    members: Callable[[], list[int]]
    but: frozenset[str] = frozenset()
    anonymous: int = 0
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
        self.look(first=True)
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
        self.look()

    def _watch(self) -> None:
        # Beside all hosts, which share one cgroup, this thread would have half of a processor.
        os.setpriority(os.PRIO_PROCESS, 0, BEHIND)
        while not self._stop.wait(STEP):
            self.look()

    def look(self, *, first: bool = False) -> None:
        """Look at all now, as the thread does; what is there at ``first`` began before."""
        anonymous = 0
        for pid in self.members():
            seen = look(Path(f"/proc/{pid}"))
            if seen is None or seen[0] in self.but:
                continue
            _, spent, most, own = seen
            self._cpu.setdefault(pid, [spent if first else 0.0, spent])[1] = spent
            if not first and (pid in self._memory or self._cpu[pid][0] == 0.0):
                # Of one that is about to end, or has just become another program, it is less.
                self._memory[pid] = max(most, self._memory.get(pid, 0))
                anonymous += own
        self.anonymous = max(self.anonymous, anonymous)


def look(directory: Path) -> tuple[str, float, int, int] | None:
    """Read a process's name, CPU seconds, the most memory it had, and its anonymous memory now.

    Both in bytes; None if it has ended.
    """
    try:
        stat = (directory / "stat").read_text()
        status = (directory / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    words = rest.split()
    sizes = {
        line.partition(":")[0]: int(line.split()[1]) << 10
        for line in status.splitlines()
        if line.startswith(("VmHWM:", "RssAnon:"))
    }
    spent = (int(words[11]) + int(words[12])) / _TICKS
    return name, spent, sizes.get("VmHWM", 0), sizes.get("RssAnon", 0)


@contextmanager
def used(host: Host) -> Iterator[Usage]:
    """Watch what the tools on a host use; not the workload."""
    processes = host.system[0] / "cgroup.procs"

    def members() -> list[int]:
        return [int(pid) for pid in processes.read_text().split()]

    with Usage(members, but=frozenset(("memory",))) as usage:
        yield usage
