"""Start, tell, hear and end the process that sends what is waited for (`wanted_sender.py`)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pymigrate.migrate.wanted_sender import LONGEST
from pymigrate.runtime import daemon, priority
from pymigrate.runtime.errors import MigrationError, Unreachable
from pymigrate.transport.lane import Way

logger = logging.getLogger(__name__)

PROGRAM = "pymigrate.migrate.wanted_sender"
STARTING = 8.0  # seconds for it to be connected; an emulated host takes 3 to start an interpreter
_AT_ONCE = 1024  # PIDs in one word


@dataclass(frozen=True)
class Asked:
    """How often the process was asked for a page, and the bytes that it has sent."""

    times: int
    bytes: int


class LaneProcess:
    """One such process, connected to the target. `hear` is for one thread; close it in the end."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        """Use `start`."""
        self.sent = 0  # bytes, as far as it has told
        self._connection = connection
        self._pid = pid
        self._closed = False

    @classmethod
    def start(cls) -> LaneProcess:
        """Start it; it takes 0.2 s to be ready, in which others can be spoken to."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                pid = daemon.start(PROGRAM, [], its, title="", fork=False, aside=True)
            except BaseException:
                ours.close()
                raise
        if pid is None:
            raise AssertionError("a process that was spawned has a PID")
        return cls(ours, pid)

    def connect(self, way: Way) -> bool:
        """Have it connect; False, with a line in the log, if it cannot: then all goes one way."""
        self._connection.settimeout(STARTING)
        try:
            self._connection.send(way.pack())
            word, said = _read(self._connection.recv(LONGEST))
        except (TimeoutError, BrokenPipeError, ConnectionResetError) as error:
            word, said = "", str(error)
        self._connection.settimeout(None)
        if word != "connected":
            logger.warning("pages that are waited for have no connection of their own: %s", said)
        return word == "connected"

    def serve(self, pids: Sequence[int]) -> None:
        """Have it answer for the memory of these processes, which stand still: clients wait."""
        priority.bring_back(self._pid)
        with contextlib.suppress(BrokenPipeError):  # `hear` tells that it has ended
            for at in range(0, len(pids), _AT_ONCE):
                self._connection.send(json.dumps(pids[at : at + _AT_ONCE]).encode())
            self._connection.send(b"[]")

    def hear(self) -> Asked | None:
        """Wait until it was asked for pages; None once it was closed by us.

        The lane is of no use any more after Unreachable, its end or that of the process, and after
        MigrationError, what was asked for cannot be had.
        """
        try:
            word, said = _read(self._connection.recv(LONGEST))
        except ConnectionResetError:
            word, said = "", ""
        if self._closed:
            return None
        if word == "asked" and isinstance(said, list):
            asked = Asked(*said)
            self.sent = asked.bytes
            return asked
        if word == "failed":
            raise MigrationError(str(said))
        reason = said or "the process that does it has ended"
        raise Unreachable(f"what is waited for cannot be sent any more: {reason}")

    def close(self) -> None:
        """End it; wakes who hears. May be repeated."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):  # ENOTCONN: it has ended
            self._connection.shutdown(socket.SHUT_RDWR)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def release(self) -> None:
        """Close the connection, once nobody hears any more."""
        self._connection.close()


def _read(word: bytes) -> tuple[str, object]:
    """Read one word of its; "" is that it has ended."""
    if not word:
        return "", ""
    kind, said = json.loads(word)
    return kind, said
