"""What `create` adds to a container's birth: hooks, and a process that waits for `start`.

::

    create                         newborn                          start
      │ (see birth.py)               │ namespaces, mounts
      │◀── {"ask": "surrounded"} ────│
      │ prestart, createRuntime      │
      │─── {"go": true, "pid": N} ──▶│ createContainer
      │                              │ root, privileges, command found
      │◀── end of the line ──────────│ accept() on control.sock
      │ ends: init's parent is then  │                                │
      │ conmon, or who else reaps    │◀── {"op": "start"} ────────────│
                                     │ startContainer, seccomp        │
                                     │─── {"error": …} ──── or ──────▶│
                                     │ exec: the connection closes ──▶│ poststart

Only root can connect: the socket is in a directory that is closed to all others. It is gone when
the container has been started, which is how created and running are told apart.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pymigrate.runtime import birth, control, oci_hooks
from pymigrate.runtime.errors import HostError
from pymigrate.runtime.settings import Hook

_FIRST = 3  # where --preserve-fds begins; as sd_listen_fds(3)


@dataclass(frozen=True)
class Ceremony:
    """The ceremony of one container; see init.Ceremony."""

    gate: socket.socket
    hooks: Mapping[str, tuple[Hook, ...]]
    state: Mapping[str, object]  # without the pid, which nobody knows yet
    preserved: int = 0

    def answer(self, name: str, pid: int) -> Mapping[str, object]:
        """Run the host's hooks once the namespaces are there."""
        del name  # there is only one question
        state = {**self.state, "pid": pid}
        for each in ("prestart", "createRuntime"):
            oci_hooks.run_all(each, self.hooks.get(each, ()), state)
        return {"pid": pid}

    def surrounded(self, line: birth.Line) -> None:
        """Run the hooks that are the host's programs in the container's namespaces."""
        line.stage = "run the hooks of the host"
        state = {**self.state, "pid": line.ask("surrounded")["pid"]}
        line.stage = "run the createContainer hooks"
        oci_hooks.run_all("createContainer", self.hooks.get("createContainer", ()), state)

    def about_to_run(self, line: birth.Line) -> None:
        """Tell `create` that all is well, wait for `start`, and run the container's own hooks."""
        line.stage = "wait for the start"
        line.connection.close()  # before the wait: it is what `create` waits for
        while True:
            connection, _ = self.gate.accept()
            if control.receive(connection) is not None:
                break
            connection.close()  # somebody who looked whether we are here
        line.connection = connection
        self.gate.close()
        line.stage = "run the startContainer hooks"
        state = {**self.state, "status": "created", "pid": os.getpid()}
        oci_hooks.run_all("startContainer", self.hooks.get("startContainer", ()), state)

    def kept(self) -> Collection[int]:
        """Return the gate, and what the command inherits."""
        return (self.gate.fileno(), *range(_FIRST, _FIRST + self.preserved))


def check_preserved(count: int) -> None:
    """Make the descriptors that the command is to get inheritable; HostError if one is not open."""
    for fd in range(_FIRST, _FIRST + count):
        try:
            os.set_inheritable(fd, True)
        except OSError as error:
            raise HostError(f"--preserve-fds {count}: descriptor {fd} is not open") from error
