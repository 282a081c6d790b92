"""Descriptors that a supervisor holds for others, as systemd's descriptor store does for services.

Who keeps something here can be killed: the kernel does not take it back, and the next one fetches
it. The supervisor itself does nothing with them; they go when it ends.
"""

from __future__ import annotations

import os
import socket

from pymigrate.runtime import errors
from pymigrate.runtime.clients import Fields, Operation, Reply

AT_ONCE = 16
"""Descriptors in one answer; a message can carry so many (see control.MAX_DESCRIPTORS)."""
MOST = 16384


class DescriptorStore:
    """The store, and the operations of the control socket on it."""

    def __init__(self) -> None:
        """Begin empty."""
        self._held: dict[str, int] = {}

    def operations(self) -> dict[str, Operation]:
        """Return what clients may ask, by name."""
        return {"keep": self._keep, "kept": self._kept, "drop_kept": self._drop}

    def clear(self) -> None:
        """Close all that is held."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _keep(self, _client: socket.socket, fields: Fields, fds: list[int]) -> Reply:
        name = fields.get("name")
        if not isinstance(name, str) or len(fds) != 1:
            raise errors.ProtocolError("keep needs a name and one descriptor")
        if len(self._held) >= MOST:
            raise errors.HostError(f"{MOST} descriptors are held already")
        replaced = self._held.pop(name, None)
        if replaced is not None:
            os.close(replaced)
        self._held[name] = fds.pop()
        return Reply()

    def _kept(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        first = fields.get("first", 0)
        if not isinstance(first, int) or first < 0:
            raise errors.ProtocolError("kept needs a number to begin with")
        names = list(self._held)[first : first + AT_ONCE]
        duplicates = [os.dup(self._held[name]) for name in names]
        return Reply({"names": names, "count": len(self._held)}, duplicates)

    def _drop(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        self.clear()
        return Reply()
