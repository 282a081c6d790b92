"""A program without which the container of a supervisor cannot go on: it brings its memory.

It is whoever asked by the connection that this is. If that is lost before it has said that it is
needed no more, the program was killed, or failed: then the container is ended.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from pymigrate.runtime import control, errors
from pymigrate.runtime.clients import Fields, Operation, Reply

_LONGEST = 2000  # characters of a reason


class Reliance:
    """The program, who waits for its end, and why the container was ended should it have failed."""

    def __init__(self, end: Callable[[], None], answer: Callable[[socket.socket, Reply], None]):
        """Rely on none; ``end`` ends the container at once, ``answer`` tells who has waited."""
        self.reason: str | None = None
        self._end = end
        self._answer = answer
        self._program: socket.socket | None = None
        self._process = -1  # its pidfd, while there is one
        self._waiting: list[socket.socket] = []

    def operations(self) -> dict[str, Operation]:
        """Return what clients can ask of us."""
        return {
            "rely": self._rely,
            "rely_no_more": self._rely_no_more,
            "wait_relied": self._wait,
            "fail": self._fail,
        }

    def on_gone(self, client: socket.socket) -> None:
        """Take note that a client has hung up."""
        self._waiting = [one for one in self._waiting if one is not client]
        if client is self._program:
            self._fail_for("the process that brought its memory was killed")
            self._let_go()

    def release(self) -> None:
        """Kill the program: the container has ended."""
        if self._program is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            self._let_go()

    def forget(self) -> None:
        """Begin anew: the container is run again, with memory of its own."""
        self.reason = None
        self._let_go()

    def _let_go(self) -> None:
        if self._program is not None:
            os.close(self._process)
        self._program = None
        waiting, self._waiting = self._waiting, []
        for client in waiting:
            self._answer(client, Reply())

    def _fail_for(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._end()

    def _rely(self, client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        if self._program is not None:
            raise errors.WrongState("another process brings the container's memory")
        self._process = os.pidfd_open(control.peer_pid(client))  # which waits for our answer
        self._program = client
        return Reply()

    def _rely_no_more(self, client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        if client is self._program:
            self._let_go()
        return Reply()

    def _wait(self, client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply | None:
        if self._program is None:
            return Reply()
        self._waiting.append(client)
        return None

    def _fail(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        reason = fields.get("reason")
        if not isinstance(reason, str):
            raise errors.ProtocolError("fail needs a reason")
        self._fail_for(reason[:_LONGEST])
        return Reply()
