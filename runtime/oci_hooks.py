"""Hooks of the OCI runtime specification: programs that are told the container's state on stdin.

Source of the rules: runtime-spec's config.md, "POSIX-platform Hooks", and runtime.md, "Lifecycle".
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pymigrate.runtime.errors import HostError
from pymigrate.runtime.settings import Hook

_MOST_STATE = 60_000  # bytes; fits into a pipe, so that nobody has to write while the hook runs


def run_all(name: str, hooks: Sequence[Hook], state: Mapping[str, object]) -> None:
    """Run the hooks of one point in order; HostError at the first that fails."""
    for hook in hooks:
        run(name, hook, state)


def run(name: str, hook: Hook, state: Mapping[str, object]) -> None:
    """Run one hook and wait for it; nothing is imported, for it may run inside a container.

    Raises:
        HostError: it could not be run, failed, or was still running after its timeout.

    """
    text = json.dumps(state).encode()
    if len(text) > _MOST_STATE:
        raise HostError(f"the {name} hook {hook.path} cannot be told a state of {len(text)} bytes")
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(write, text)
        os.close(write)
        environment = dict(each.partition("=")[::2] for each in hook.env)
        try:
            pid = os.posix_spawn(
                hook.path,
                hook.args or (hook.path,),
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read, 0),
                    (os.POSIX_SPAWN_DUP2, 2, 1),  # what it says is not the container's output
                ],
            )
        except OSError as error:
            raise HostError(f"the {name} hook {hook.path}: {error.strerror}") from error
    finally:
        os.close(read)
    status = _wait(pid, hook.timeout)
    if status is None:
        raise HostError(f"the {name} hook {hook.path} was still running after {hook.timeout} s")
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        why = f"exit code {code}" if code >= 0 else f"signal {-code}"
        raise HostError(f"the {name} hook {hook.path} failed: {why}")


def _wait(pid: int, timeout: int | None) -> int | None:
    """Reap a child and return its wait status, None if it had to be killed."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        in_time = bool(poll.poll(None if timeout is None else timeout * 1000))
        if not in_time:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        return status if in_time else None
    finally:
        os.close(pidfd)
