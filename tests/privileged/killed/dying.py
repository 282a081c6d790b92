"""The command, killed at its n-th effect: `dying.py command|supervisor N FILE WORDS…`.

An effect is what may be seen from outside: a file made, written to, synced, renamed or removed, a
lock, a message, a process, a system call of ours. SIGKILL comes just before the n-th (one of libc:
just after it), in the command's own process or in the supervisor that it forks; FILE is then there.
The moments are found by the interpreter's audit events and by what it calls the kernel with: the
product has no hooks for tests.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from pymigrate.migrate import cli
from pymigrate.runtime import syscalls

EVENTS = {
    *("fcntl.flock", "os.chmod", "os.chown", "os.fork", "os.kill", "os.link", "os.mkdir"),
    *("os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"),
    *("socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto"),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
GENERATION = {"command": 0, "supervisor": 2}  # it forks once more, to be nobody's child


class Death:
    """Counts effects in the processes of one generation, and strikes."""

    def __init__(self, role: str, moment: int, mark: str) -> None:
        self._generation = GENERATION[role]
        self._left = moment
        self._mark = mark
        self._pid = os.getpid()
        self._age = 0

    def grow(self) -> None:
        """Be in the child of a fork."""
        self._age += 1
        self._pid = os.getpid()

    def effect(self) -> None:
        """Count one. A container's processes are cloned without `grow`, and live."""
        if self._age != self._generation or os.getpid() != self._pid:
            return
        self._left -= 1
        if self._left == 0:
            os.close(os.open(self._mark, os.O_WRONLY | os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See an event of the interpreter before it happens."""
        if event in EVENTS or (event == "open" and arguments[2] & WRITES):
            self.effect()

    def counting(self, function: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
        """Return the function with its calls counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            if before:
                self.effect()
            result = function(*arguments, **named)
            if not before:
                self.effect()
            return result

        return counted


def main() -> None:
    role, moment, mark, *words = sys.argv[1:]
    death = Death(role, int(moment), mark)
    os.register_at_fork(after_in_child=death.grow)
    syscalls._check = death.counting(syscalls._check, before=False)
    socket.socket.send = death.counting(socket.socket.send, before=True)  # type: ignore[method-assign]
    for name in ("write", "fsync"):
        setattr(os, name, death.counting(getattr(os, name), before=True))
    sys.addaudithook(death.audit)
    sys.exit(cli.main(words))


if __name__ == "__main__":
    main()
