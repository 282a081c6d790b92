"""A container's cable while it is written down: out, and in again as if nothing had been.

Seen with a client of Redis: frozen for 0.15 s, the container was silent for 1.1 s. The client's
packet was lost and came again only later, and the container's kernel had asked for the client's
MAC address in vain, which it does again after a second. So packets are caught meanwhile and
delivered, and neighbours that were not reached are forgotten, as after a move.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from pymigrate.runtime import inflight, network
from pymigrate.runtime.announcing import Announcer
from pymigrate.runtime.container import Container


class Wire:
    """The cable of one container; ``unplug``, then ``plug``, then (once it runs) ``deliver``."""

    def __init__(self, container: Container) -> None:
        """Look up what will be needed, while the container still runs."""
        self._container = container
        self._settings = container.record.network
        self._capture: inflight.Capture | None = None
        self._announcer: Announcer | None = None
        if self._settings.has_cable:
            with container.supervision() as supervision:
                namespace = supervision.netns()
            try:
                self._announcer = Announcer(namespace, self._settings)
            finally:
                os.close(namespace)

    def unplug(self) -> None:
        """Let no packet pass, and catch those that come for it; of a frozen container."""
        mac = network.mac_of(self._settings) if self._settings.has_cable else None
        if mac is not None:
            self._capture = inflight.Capture(mac)
        self._container.unplug()

    def plug(self) -> None:
        """Let packets pass; a second time does nothing new."""
        self._container.plug()
        if self._announcer is not None:
            self._announcer.tell()

    def deliver(self) -> None:
        """Give it what was caught, once."""
        capture, self._capture = self._capture, None
        if capture is not None:
            with capture:
                inflight.deliver(self._container.host_interface, capture.frames())

    def close(self) -> None:
        """Let go of descriptors; may be repeated."""
        if self._capture is not None:
            self._capture.close()
            self._capture = None
        if self._announcer is not None:
            self._announcer.close()

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
