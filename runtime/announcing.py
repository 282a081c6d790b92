"""Tell everybody on a container's network where its address is now, once its cable is in again."""

from __future__ import annotations

import contextlib
import errno
import socket
from types import TracebackType
from typing import Self

from pymigrate.runtime import addresses, arp, rtnetlink
from pymigrate.runtime.errors import HostError
from pymigrate.runtime.netns import inside
from pymigrate.runtime.network import Settings, close_soon, mac_of, packet_socket
from pymigrate.runtime.rtnetlink import Links


class Announcer:
    """Speaks from the container's own end of its cable. Close it in the end; may be repeated.

    It is made beforehand, for clients wait when it is to speak. Bridges and switches on the way
    learn from it at which port the container is. Where there is no cable of ours, or no IPv4
    address, it has nothing to say.
    """

    def __init__(self, netns: int, settings: Settings) -> None:
        """Take the container's network namespace. Raises HostError if nothing can be sent there."""
        self._settings = settings
        self._frames: list[bytes] = []
        self._undo = contextlib.ExitStack()
        self._links: Links | None = None
        self._packets: socket.socket | None = None
        mac = mac_of(settings)
        if settings.mode != "bridge" or not settings.address or mac is None:
            return
        address = addresses.parse(settings.address).ip
        if address.version != 4:
            return
        self._frames = [each.frame() for each in arp.announcements(mac, str(address))]
        try:
            self._links = self._undo.enter_context(Links(inside(netns, rtnetlink.open_socket)))
            self._packets = inside(netns, packet_socket)
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def tell(self, times: int = 3) -> None:
        """Say that the address is here now.

        Does not wait: to be sure, call it again some time later. Unplugged, nobody hears it.

        And forget whom the container has asked for while it was unplugged: restored sockets do
        that, and the kernel would ask again only a second later (ip-sysctl.rst in the kernel's
        Documentation/networking, neigh/default/retrans_time_ms). Raises HostError.
        """
        if self._links is None or self._packets is None:
            return
        try:
            self._links.forget_unreached()
            for frame in self._frames * times:
                self._say(self._packets, frame)
        except OSError as error:
            raise self._failed(error) from error

    def _say(self, packets: socket.socket, frame: bytes) -> None:
        try:
            packets.sendto(frame, (self._settings.interface, arp.ETHERTYPE))
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.ENETDOWN):
                raise  # these two say that it is unplugged: nobody could hear it

    def _failed(self, error: OSError) -> HostError:
        return HostError(f"cannot announce {self._settings.address}: {error.strerror}")

    def close(self) -> None:
        """Let go of the sockets; may be repeated."""
        packets, self._links, self._packets = self._packets, None, None
        self._undo.close()
        if packets is not None:
            close_soon(packets)

    def __enter__(self) -> Self:
        """Let go at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go."""
        self.close()
