"""The clients of a supervisor: who is connected, what each asks, and the answers."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable, Sequence

from pymigrate.runtime import control, errors

Fields = dict[str, object]


class Reply:
    """What an operation answers: JSON fields, and descriptors that are closed once sent."""

    def __init__(self, fields: Fields | None = None, fds: Sequence[int] = ()) -> None:
        """Keep the fields and take over the descriptors."""
        self.fields = {"ok": True, **(fields or {})}
        self.fds = fds


# Takes the client, the request's fields and its descriptors (of which it pops what it keeps);
# None means that the answer comes later.
Operation = Callable[[socket.socket, Fields, list[int]], Reply | None]


class Clients:
    """Accepts root's connections, reads requests and sends answers; never waits for a client."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        operations: dict[str, Operation],
        on_gone: Callable[[socket.socket], None],
    ) -> None:
        """Take the table of operations, and whom to tell that a client is gone."""
        self._selector = selector
        self._operations = operations
        self._on_gone = on_gone
        self._clients: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def listen(self, directory: os.PathLike[str]) -> None:
        """Open the control socket in the container's directory."""
        directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            listener = control.listen(directory_fd)
        finally:
            os.close(directory_fd)
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Accept nobody more; answers can still be sent."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def add(self, client: socket.socket) -> None:
        """Listen to a connected client."""
        client.setblocking(False)

        def react(_events: int) -> None:
            self._hear(client)

        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, react)

    def answer(self, client: socket.socket, reply: Reply) -> None:
        """Send an answer, if the client is still there."""
        self._send(client, reply.fields, reply.fds)
        for fd in reply.fds:
            os.close(fd)

    def answer_error(self, client: socket.socket, error: errors.PymigrateError) -> None:
        """Send an error, if the client is still there."""
        self._send(client, control.error_to_document(error), ())

    def _accept(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        if control.peer_uid(client) != 0:
            client.close()
            return
        self.add(client)

    def _hear(self, client: socket.socket) -> None:
        try:
            request = control.receive(client)
        except BlockingIOError:
            return
        except (OSError, errors.ProtocolError):
            request = None
        if request is None:
            self._drop(client)
            return
        fields, fds = request
        try:
            operation = self._operations.get(str(fields.get("op")))
            if operation is None:
                raise errors.ProtocolError(f"a supervisor cannot {fields.get('op')!r}")
            reply = operation(client, fields, fds)
        except errors.PymigrateError as error:
            self.answer_error(client, error)
        except OSError as error:
            self.answer_error(client, errors.HostError(f"the supervisor failed: {error}"))
        else:
            if reply is not None:
                self.answer(client, reply)
        finally:
            for fd in fds:
                os.close(fd)

    def _send(self, client: socket.socket, fields: Fields, fds: Sequence[int]) -> None:
        if client not in self._clients:
            return
        try:
            control.send(client, fields, fds)
        except OSError:  # it died, or does not read its answers
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._selector.unregister(client)
            client.close()
            self._on_gone(client)
