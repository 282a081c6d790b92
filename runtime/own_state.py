"""What a supervisor writes down about its container: state.json."""

from __future__ import annotations

import os
from pathlib import Path

from pymigrate.runtime import state
from pymigrate.runtime.cgroups import Cgroup
from pymigrate.runtime.state import Status
from pymigrate.runtime.values import replace


def last(directory: Path) -> state.State:
    """Return the state to go back to when nothing comes of a preparation."""
    try:
        document = state.read_document(directory / "state.json")
    except FileNotFoundError:
        return state.CREATED
    found = state.state_from_document(document)
    return state.State(
        status=Status.STOPPED if found.started else Status.CREATED,
        exit_code=found.exit_code,
        oom_killed=found.oom_killed,
        restarts=found.restarts,
        started=found.started,
        finished=found.finished,
        failure=found.failure,
    )


def cared_for(before: state.State, status: Status, cgroup: Cgroup) -> state.State:
    """Return what is to be written down while the calling process looks after it."""
    me = state.Identity.of(os.getpid())
    return replace(
        before,
        status=status,
        supervisor_pid=os.getpid(),
        supervisor_started=me.started if me else None,
        boot_id=state.boot_id(),
        cgroup=cgroup.to_document(),
    )


def write(directory: Path, now: state.State) -> None:
    """Write it down, unless the container was removed by force and by another."""
    try:
        state.write_document(directory / "state.json", state.state_to_document(now))
    except FileNotFoundError:
        if directory.exists():
            raise
