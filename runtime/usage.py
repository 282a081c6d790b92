"""What a running container uses, as one frozen value, and rates from two of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.runtime.cgroups import Stats

if TYPE_CHECKING:
    from pymigrate.runtime.container import Container
    from pymigrate.runtime.settings import Resources


@dataclass(frozen=True)
class Usage:
    """Counters at one moment; ``moment`` is on the monotonic clock, in seconds.

    Network is that of a namespace of its own, without its loopback; None where it is another's.
    """

    name: str
    id: str
    status: str
    moment: float
    counted: Stats
    limits: Resources
    received_bytes: int | None
    sent_bytes: int | None

    def cpus(self, before: Usage) -> float | None:
        """Return how many CPUs it used on average since ``before``."""
        now, then = self.counted.cpu_microseconds, before.counted.cpu_microseconds
        if now is None or then is None or self.moment <= before.moment:
            return None
        return max(now - then, 0) / 1e6 / (self.moment - before.moment)


def read(container: Container) -> Usage | None:
    """Count what a container uses; None if it does not run, or ended while we looked."""
    now = container.state()
    if not now.status.is_alive or now.pid is None:
        return None
    try:
        counted = container.cgroup.stats()
        traffic: tuple[int | None, int | None] = (None, None)
        if container.record.network.is_own:
            traffic = traffic_of(Path(f"/proc/{now.pid}/net/dev").read_text(encoding="ascii"))
    except (FileNotFoundError, ProcessLookupError):
        return None  # its supervisor may not have written it down yet
    except OSError:
        if container.state().status.is_alive:
            raise
        return None
    return Usage(
        name=container.name,
        id=container.record.id,
        status=now.status.value,
        moment=time.monotonic(),
        counted=counted,
        limits=container.spec.resources,
        received_bytes=traffic[0],
        sent_bytes=traffic[1],
    )


def traffic_of(text: str) -> tuple[int, int]:
    """Add up what all interfaces but the loopback received and sent; see proc_pid_net(5)."""
    received = sent = 0
    for line in text.splitlines()[2:]:
        name, _, counters = line.partition(":")
        fields = counters.split()
        if name.strip() != "lo" and len(fields) >= 16:
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent
