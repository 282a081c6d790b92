"""What a supervisor does for a checkpoint that may die while the container stands still.

Whoever checkpoints freezes the container and pulls its cable, and must undo both. So before the
freeze it makes a connection to the supervisor the container's *guard*. When that connection is lost
without a word, its owner has died: then the supervisor waits for the CRIU that it had spawned for
it, plugs the cable in, and thaws. ::

    checkpoint                    supervisor                            CRIU
    guard(lock, CRIU's PID) ────▶ frozen already? keeps the lock too
    freeze, unplug, dump ──────────────────────────────────────────────▶ holds the tasks
        ✝ ─── hung up ──────────▶ waits                 hung up, a no ──▶ lets go of the tasks,
                                  CRIU has ended ◀──────────────────────  leaves the cgroup frozen
                                  plug, thaw, unlock

Waiting is for two reasons: CRIU ends by freezing anew what it found frozen, and tasks that it still
holds by ptrace may have its code in them.

The lock of the container is a flock(2), and the supervisor is given the open file that has it. So
it outlives the process that died: nobody pauses, moves or checkpoints the container before it goes
on, and what is done to it afterwards is not undone by us.

It never thaws what was paused before, nor what a migration holds, for of that another copy may run.
A checkpoint that is to end the container is no exception: killed before CRIU has its yes, the
container goes on (even if the checkpoint's file is complete by then); killed after it, CRIU ends
the container whether or not anybody listens.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from pymigrate.runtime import errors, state
from pymigrate.runtime.children import Helpers
from pymigrate.runtime.clients import Fields, Operation, Reply
from pymigrate.runtime.surroundings import Surroundings
from pymigrate.runtime.values import dataclass


@dataclass()
class _Hold:
    """A checkpoint at work, as its guard told it."""

    client: socket.socket
    lock: int
    was_frozen: bool
    helpers: set[int]
    orphaned: bool = False


class Guard:
    """At most one checkpoint at a time; has no effect until that dies."""

    def __init__(self, around: Surroundings, helpers: Helpers) -> None:
        """Begin without one."""
        self._around = around
        self._helpers = helpers
        self._hold: _Hold | None = None

    def operations(self) -> dict[str, Operation]:
        """Return what clients can ask of us."""
        return {"guard": self._begin, "unguard": self._end}

    def on_gone(self, client: socket.socket) -> None:
        """Take note that a client has hung up; ``settle`` is to follow."""
        if self._hold is not None and client is self._hold.client:
            self._hold.orphaned = True

    def settle(self) -> bool:
        """Let the container go on if its guard is gone and the guard's helpers have ended.

        Say whether that was so.
        """
        hold = self._hold
        if hold is None or not hold.orphaned or any(map(self._helpers.runs, hold.helpers)):
            return False
        self._hold = None
        try:
            if self._around.is_fenced:
                say("a checkpoint died; a migration holds the container, so nothing was thawed")
                return True
            say("a checkpoint died while the container stood still; it goes on as before")
            self._go_on("plug the cable in", self._around.plug)
            if not hold.was_frozen:
                self._go_on("thaw", self._around.cgroup.thaw)
            return True
        finally:
            os.close(hold.lock)

    def _go_on(self, what: str, act: Callable[[], None]) -> None:
        """Do it; what fails is told to the log, so that the rest is done. `resume` may do more."""
        try:
            act()
        except (OSError, errors.PymigrateError) as error:
            say(f"could not {what}: {error}")

    def _begin(self, client: socket.socket, fields: Fields, fds: list[int]) -> Reply:
        helpers = fields.get("helpers")
        if not isinstance(helpers, list) or not all(isinstance(pid, int) for pid in helpers):
            raise errors.ProtocolError("guard needs helpers, a list of PIDs")
        if len(fds) != 1:
            raise errors.ProtocolError("guard needs the descriptor that has the container's lock")
        name = self._around.record.name
        if self._around.is_fenced:
            raise errors.WrongState(f"{name} is being moved by a migration")
        if self._hold is None:
            frozen = self._around.cgroup.frozen()
            self._hold = _Hold(client, fds.pop(), frozen, set(helpers))
        elif self._hold.client is client:
            self._hold.helpers |= set(helpers)
        else:
            raise errors.WrongState(f"{name} is being checkpointed by another process")
        return Reply()

    def _end(self, client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        if self._hold is not None and self._hold.client is client:
            os.close(self._hold.lock)
            self._hold = None
        return Reply()


def say(what: str) -> None:
    """Write a line into the supervisor's log."""
    sys.stderr.write(f"{state.now()} {what}\n")
    sys.stderr.flush()
