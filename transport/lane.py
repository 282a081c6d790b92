"""A connection beside that for bulk data, for what somebody waits for: nothing lies before it.

::

    source's own process                     target
    TCP, TLS 1.3           ─────────────▶    the second caller of the door (direct.py)
                           ◀─────────────    EVENT: a page is wanted
    DATA                   ─────────────▶    that page, and what is beside it
    (either side: PING while it has nothing else to say)

The words are those of the conversation about memory (pages.py), each in a frame of its own. Nothing
is handed from thread to thread: who has a word writes it, and one thread hears. It also says PING
and notices silence, as a link's two threads do.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import Self

from pymigrate.runtime.errors import ProtocolError, Unreachable
from pymigrate.transport import messages
from pymigrate.transport.channel import Channel, Timeout
from pymigrate.transport.frames import HEADER_SIZE, Buffer, Frame, Kind
from pymigrate.transport.link import INTERVAL, OVERSLEPT, SILENCE
from pymigrate.transport.tls import Identity, TlsChannel, connect


@dataclass(frozen=True)
class Way:
    """Where a lane begins, and who may take it: what another process of ours connects by."""

    address: tuple[str, int]
    identity: Identity
    pinned: bytes  # the target's certificate, DER
    peer: str
    interval: float = INTERVAL
    silence: float = SILENCE

    def connect(self, timeout: float) -> TlsChannel:
        """Connect within so many seconds; raises what `tls.connect` raises."""
        return connect(self.address, self.identity, self.pinned, peer=self.peer, timeout=timeout)

    def pack(self) -> bytes:
        """Write it down, with the key, for a process that nobody else can hear."""
        document = {
            "address": self.address,
            "identity": [_text(part) for part in self.identity.pack()],
            "pinned": _text(self.pinned),
            "peer": self.peer,
            "watching": [self.interval, self.silence],
        }
        return json.dumps(document).encode()

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Read what `pack` wrote."""
        document = json.loads(packed)
        host, port = document["address"]
        interval, silence = document["watching"]
        return cls(
            (host, port),
            Identity.unpack(*map(base64.b64decode, document["identity"])),
            base64.b64decode(document["pinned"]),
            document["peer"],
            interval,
            silence,
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Lane:
    """Owns a channel. `hear` is for one thread, which is in it nearly all of the time."""

    def __init__(
        self, channel: Channel, *, interval: float = INTERVAL, silence: float = SILENCE
    ) -> None:
        """``interval`` is the seconds until we say PING, ``silence`` those until they are lost."""
        self.peer = channel.peer
        self.sent = 0  # bytes, without PING and what TLS adds
        self._channel = channel
        self._interval = interval
        self._silence = silence
        self._said = time.monotonic()
        self._since = self._said  # from when on silence counts

    def say(self, kind: Kind, payload: Buffer) -> None:
        """Send a word at once. Raises Unreachable if they have read nothing for too long."""
        self._channel.send(Frame(kind, payload), timeout=self._silence)
        self._said = time.monotonic()
        self.sent += HEADER_SIZE + len(payload)

    def hear(self, kind: Kind) -> Buffer:
        """Wait for the next word, which must be of this kind.

        Raises PeerError for their last word, Unreachable if they are silent or gone, ProtocolError.
        """
        while True:
            self.keep_alive()
            asked = time.monotonic()
            try:
                frame = self._channel.receive(timeout=self._interval)
            except Timeout:
                self._check_silence(asked)
                continue
            if frame.kind is kind:
                return frame.payload
            if frame.kind is Kind.ERROR:
                raise messages.unpack_error(frame.payload)[1]
            if frame.kind is not Kind.PING:
                message = f"{self.peer} sent {frame.kind.name} where pages are waited for"
                raise ProtocolError(message)

    def keep_alive(self) -> None:
        """Say PING if nothing was said for a while."""
        if time.monotonic() - self._said >= self._interval / 2:
            self._channel.send(Frame(Kind.PING), timeout=self._silence)
            self._said = time.monotonic()

    def _check_silence(self, asked: float) -> None:
        now = time.monotonic()
        if now - asked > self._interval + OVERSLEPT:
            # It was we who did not run: what came meanwhile is still unread.
            self._since = now - max(0.0, self._silence - self._interval)
        elif now - max(self._since, self._channel.heard) >= self._silence:
            message = f"{self.peer}: no sign of life for {self._silence:g} s"
            raise Unreachable(message)

    def close(self) -> None:
        """Hang up; wakes who hears. May be repeated."""
        self._channel.close()
