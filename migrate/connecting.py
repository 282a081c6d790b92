"""A connection to the target that is made while its user does something else.

To log in and start an agent takes half a second, most of it spent on waiting for the other host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from pymigrate.runtime.errors import PeerError, ProtocolError
from pymigrate.transport import messages as m
from pymigrate.transport.rpc import Client

ANSWER_SECONDS = 60.0
"""For requests that do little; streams and restores have no bound but the link's silence."""

Connect = Callable[[ExitStack], Client]
"""Returns a client, and gives the stack what hangs up."""


@dataclass(frozen=True)
class Connected:
    """A connection on which both sides have introduced themselves; ``undo`` hangs up."""

    client: Client
    reply: m.HelloReply
    undo: ExitStack


def connected(connect: Connect, migration_id: str, *, for_memory: bool = False) -> Connected:
    """Connect and greet, see `messages.hello`; on any error the line is down again."""
    with ExitStack() as undo:
        client = connect(undo)
        reply = greet(client, migration_id, for_memory=for_memory)
        return Connected(client, reply, undo.pop_all())


def greet(client: Client, migration_id: str, *, for_memory: bool = False) -> m.HelloReply:
    """Say hello; that the target refuses our protocol is as bad as that we refuse its."""
    try:
        return client.hello(migration_id, for_memory=for_memory, timeout=ANSWER_SECONDS)
    except PeerError as error:
        if error.peer_code == ProtocolError.exit_code:
            raise ProtocolError(error.message, hint=error.hint) from error
        raise


class Connecting:
    """Connects in a thread, from now on. To be taken, once, or closed."""

    def __init__(self, connect: Connect, migration_id: str, *, for_memory: bool = False) -> None:
        """Begin."""
        self._for_memory = for_memory
        self._connect = connect
        self._id = migration_id
        self._connected: Connected | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="connecting", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._connected = connected(self._connect, self._id, for_memory=self._for_memory)
        except BaseException as error:
            self._failure = error  # raised by whoever wants the connection

    def take(self) -> Connected:
        """Wait for it; it is the caller's from now on. Raises why there is none."""
        self._thread.join()
        found, self._connected = self._connected, None
        if found is not None:
            return found
        raise self._failure or AssertionError("a connection was taken twice")

    def close(self) -> None:
        """Hang up if nobody took it; may be repeated. Waits until it is decided."""
        self._thread.join()
        found, self._connected = self._connected, None
        if found is not None:
            found.undo.close()
