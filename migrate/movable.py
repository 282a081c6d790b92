"""Whether a container can be moved at all, and room for it while it is; before much is loaded."""

from __future__ import annotations

import contextlib
import os

from pymigrate.runtime import priority
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import WrongState
from pymigrate.runtime.host import Host
from pymigrate.runtime.state import Status


def open_movable(host: Host, name: str) -> Container:
    """Open a container that can be moved now.

    Raises NotFound, or WrongState if it does not run or another migration has it.
    """
    container = Container.open(host, name)
    container.check_free()
    status = container.state().status
    if status is not Status.RUNNING:
        raise WrongState(
            f"{name} is {status.value}: only a running container can be moved",
            hint=f"pymigrate resume {name}"
            if status is Status.PAUSED
            else f"pymigrate start {name}",
        )
    container.check_whole()
    return container


def step_aside(container: Container) -> None:
    """Leave the container a processor, until it is frozen; see priority.py."""
    for pid in container.cgroup.pids():
        with contextlib.suppress(ProcessLookupError):
            priority.step_aside(os.sched_getaffinity(pid))
            return
