"""A TCP connection of its own for bulk data, beside the SSH connection that vouches for it.

::

    source                                   target
    makes a certificate
    REQUEST OpenData (SSH)  ─────────────▶   makes one too, listens on one port
                            ◀─────────────   REPLY DataOpened: port, certificate
    TCP, TLS 1.3            ─────────────▶   lets in who has the key of the first; stops listening
                            ◀─────────────   PING (TLS)

For a lane (lane.py) the same door lets in a second caller with the same key, if both sides said
that they know of it: the first one is always the connection for bulk data. Those after it are as
many as were agreed upon for memory, which takes them and the first in turn (rotation.py).

A stranger who finds the port can keep the two apart, and then the data goes over SSH.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from pymigrate.runtime.errors import HostError, ProtocolError, PymigrateError
from pymigrate.transport import tls
from pymigrate.transport.link import Link

logger = logging.getLogger(__name__)

HANDSHAKE = 1.0  # seconds for one caller
WINDOW = 10.0  # seconds for which the port is open
CALLERS = 8  # connections that are looked at in this time, and one for each further stream

Watch = Callable[[tls.TlsChannel], Link]


class Door:
    """Listens for who has the key of one certificate, as often as agreed. Close it in the end."""

    def __init__(
        self,
        listener: socket.socket,
        pinned: bytes,
        watch: Watch,
        *,
        peer: str,
        window: float,
        lane: bool = False,
        streams: int = 1,
    ) -> None:
        """Use ``open_door``; owns the listener from the moment it is made."""
        identity = tls.Identity.make()
        self.port: int = listener.getsockname()[1]
        self.certificate = identity.certificate
        self._listener = listener
        self._context = identity.context(pinned, server=True)
        self._pinned = pinned
        self._peer = peer
        self._deadline = time.monotonic() + window
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch = watch
        self._link: Link | None = None
        self._lane: tls.TlsChannel | None = None
        self._wants_lane = lane
        self._streams = streams
        self._further: list[tls.TlsChannel] = []
        self._thread = threading.Thread(target=self._wait, name="data-door", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        with self._listener:
            for _ in range(CALLERS + self._streams - 1):
                line = self._next_caller()
                if line is None:
                    return
                try:
                    channel = tls.accept(
                        line, self._context, self._pinned, peer=self._peer, timeout=HANDSHAKE
                    )
                    self._let_in(channel)
                except PymigrateError as error:
                    logger.info("port %d: a caller was turned away: %s", self.port, error)
                    continue
                if self._all_are_in:
                    return

    def _let_in(self, channel: tls.TlsChannel) -> None:
        if self._link is None:
            self._link = self._watch(channel)
        elif self._wants_lane and self._lane is None:
            self._lane = channel
        else:
            self._further.append(channel)

    @property
    def _all_are_in(self) -> bool:
        has_lane = self._lane is not None or not self._wants_lane
        return has_lane and len(self._further) == self._streams - 1

    def _next_caller(self) -> socket.socket | None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while (left := self._deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(left * 1000)}
            if self._wake in ready:
                return None
            if ready:
                try:
                    return self._listener.accept()[0]
                except OSError as error:  # it hung up at once; see accept(2)
                    logger.debug("port %d: %s", self.port, error)
        return None

    def link(self) -> Link | None:
        """Give the connection to the one who was let in, and stop waiting; None if nobody was."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        link, self._link = self._link, None
        return link

    def lane(self) -> tls.TlsChannel | None:
        """Give the second connection, after the first; None if nobody made it."""
        lane, self._lane = self._lane, None
        return lane

    def further(self) -> list[tls.TlsChannel]:
        """Give those that came after these, after the first, in their order."""
        further, self._further = self._further, []
        return further

    def close(self) -> None:
        """Stop listening, hang up; may be repeated."""
        if self._wake < 0:
            return
        link, lane, further = self.link(), self.lane(), self.further()
        os.close(self._wake)
        self._wake = -1
        for each in (link, lane, *further):
            if each is not None:
                each.close()


def open_door(
    address: str,
    pinned: bytes,
    watch: Watch,
    *,
    peer: str,
    window: float = WINDOW,
    lane: bool = False,
    streams: int = 1,
) -> Door:
    """Listen on a free port of ``address``, one of this host's, for the owner of ``pinned``.

    ``watch`` makes a link of the connection, so that the caller hears from us at once. With
    ``lane`` they may call once more, see `Door.lane`; so they may for each of the ``streams`` but
    the first, see `Door.further`.

    Raises ProtocolError for what is no address or certificate, HostError if there is no such
    address on this host (where the source reached us by another one's, by NAT or a tunnel).
    """
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError as error:
        message = f"{address[:80]!r} is no address"
        raise ProtocolError(message) from error
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        try:
            listener.bind((address, 0))
            listener.listen(CALLERS)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            message = f"no port of {address} can be opened: {reason}"
            raise HostError(message) from error
        listener.setblocking(False)
        door = Door(listener, pinned, watch, peer=peer, window=window, lane=lane, streams=streams)
        undo.pop_all()
        return door
