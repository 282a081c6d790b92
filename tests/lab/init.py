"""Be process 1 of a place in the lab: reap orphans until standard input, the leash, ends.

Run as a program, in new namespaces. When it exits, the kernel kills every other process of its
PID namespace: that is both the power cut of a host and the clean-up after a lab whose owner died,
for the owner holds the other end of the leash.
"""

from __future__ import annotations

import os
import select
import signal


def reap() -> None:
    """Take the exit status of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main() -> None:
    """Say that this place exists, then live until the leash ends."""
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.write(1, b"ready\n")
    while True:
        readable, _, _ = select.select([0, wake], [], [])
        if 0 in readable and not os.read(0, 1):
            return
        if wake in readable:
            os.read(wake, 4096)
            reap()


if __name__ == "__main__":
    main()
