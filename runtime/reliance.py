"""A program without which the container of a supervisor cannot go on: it brings its memory."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

from pymigrate.runtime import errors
from pymigrate.runtime.children import Helpers
from pymigrate.runtime.clients import Fields, Operation, Reply

_LONGEST = 2000  # characters of a reason


class Reliance:
    """The program, and why the container was ended should it have failed."""

    def __init__(self, helpers: Helpers, end: Callable[[], None]) -> None:
        """Rely on none; ``end`` ends the container at once."""
        self.reason: str | None = None
        self._helpers = helpers
        self._end = end
        self._pid: int | None = None

    def operations(self) -> dict[str, Operation]:
        """Return what clients can ask of us."""
        return {"rely_on": self._rely_on, "relied_on": self._relied_on, "fail": self._fail}

    def settle(self, pid: int, exit_code: int) -> None:
        """Hear that a helper has ended."""
        if pid != self._pid:
            return
        if exit_code:
            self._fail_for(f"the process that brought its memory ended with code {exit_code}")
        else:
            self._pid = None

    def release(self) -> None:
        """Kill the program: the container has ended."""
        if self._pid is not None and self._helpers.runs(self._pid):
            os.kill(self._pid, signal.SIGKILL)

    def forget(self) -> None:
        """Begin anew: the container is run again, with memory of its own."""
        self.reason = self._pid = None

    def _fail_for(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._end()

    def _rely_on(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        pid = fields.get("pid")
        if not isinstance(pid, int) or not self._helpers.runs(pid):
            raise errors.NotFound(f"{pid!r} is no program of this supervisor")
        self._pid = pid
        return Reply()

    def _relied_on(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        return Reply({"pid": self._pid or 0})

    def _fail(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        reason = fields.get("reason")
        if not isinstance(reason, str):
            raise errors.ProtocolError("fail needs a reason")
        self._fail_for(reason[:_LONGEST])
        return Reply()
