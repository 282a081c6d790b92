"""Start the health command of a container, for its supervisor; see health.py."""

from __future__ import annotations

import os
from dataclasses import replace

from pymigrate.runtime import enter, lock, stdio
from pymigrate.runtime.surroundings import Surroundings


def start(around: Surroundings, init: int) -> int | None:
    """Run it beside ``init``; return its PID, or None while somebody is at work on the container.

    It is a child of the caller, who must be single-threaded, and the leader of a process group.
    Raises as enter.enter does.
    """
    health = around.record.health
    mine = os.open(around.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if health is None or not lock.try_lock(mine):
            return None
        if around.is_fenced or around.cgroup.frozen():
            return None  # what is entered into a frozen cgroup would not come to its exec
        own = around.spec.process
        return enter.enter(
            init,
            around.spec,
            replace(own, args=health.command, terminal=False),
            cgroup=around.cgroup,
            stdio=stdio.Stdio(None, None, None),
            cache=around.host.cache,
        ).pid
    finally:
        os.close(mine)
