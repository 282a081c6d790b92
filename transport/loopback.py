"""Two ends of a channel in one process: for tests, and for a migration to this very host."""

from __future__ import annotations

import threading
import time
from collections import deque

from pymigrate.runtime.errors import Unreachable
from pymigrate.transport.channel import Ended, Timeout
from pymigrate.transport.frames import Decoder, Frame, encode
from pymigrate.transport.limit import RateLimit

CAPACITY = 4 << 20  # bytes on their way in one direction, before a sender has to wait


class _Lane:
    """One direction: encoded frames between a sender and a receiver."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.frames: deque[bytes] = deque()
        self.size = 0
        self.closed = False

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class LoopbackChannel:
    """One end. Frames go through the codec, so that nothing works here that fails on a wire."""

    def __init__(self, outgoing: _Lane, incoming: _Lane, *, peer: str) -> None:
        """Use ``pair`` instead."""
        self.peer = peer
        self.heard = time.monotonic()
        self.limit: RateLimit | None = None
        self._outgoing = outgoing
        self._incoming = incoming
        self._decoder = Decoder()
        self._gone = False

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        """Queue a copy of the frame, waiting while the other side has too much to read."""
        data = encode(frame)
        lane = self._outgoing
        if self.limit is not None:
            time.sleep(self.limit.reserve(len(data)))
        with lane.changed:
            room = lane.changed.wait_for(
                lambda: lane.closed or not lane.frames or lane.size + len(data) <= CAPACITY,
                timeout,
            )
            if lane.closed:
                raise self._lost()
            if not room:
                message = f"{self.peer} has taken nothing for {timeout:g} s"
                raise Unreachable(message)
            lane.frames.append(data)
            lane.size += len(data)
            lane.changed.notify_all()

    def receive(self, *, timeout: float | None = None) -> Frame:
        """Take the oldest frame; what was sent before the other side closed still arrives."""
        lane = self._incoming
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            with lane.changed:
                lane.changed.wait_for(lambda: lane.closed or lane.frames, left)
                if self._gone or (lane.closed and not lane.frames):
                    raise self._lost()
                if not lane.frames:
                    message = f"{self.peer} has sent nothing for {timeout:g} s"
                    raise Timeout(message)
                data = lane.frames.popleft()
                self.heard = time.monotonic()
                lane.size -= len(data)
                lane.changed.notify_all()
            for frame in self._decoder.feed(data):
                return frame

    def _lost(self) -> Unreachable:
        if self._gone:
            return Unreachable(f"the connection to {self.peer} is closed")
        return Ended(f"{self.peer}: connection lost")

    def close(self) -> None:
        """End both directions."""
        self._gone = True
        self._outgoing.close()
        self._incoming.close()


def pair(
    left_peer: str = "the right end", right_peer: str = "the left end"
) -> tuple[LoopbackChannel, LoopbackChannel]:
    """Make two connected ends."""
    there, back = _Lane(), _Lane()
    left = LoopbackChannel(there, back, peer=left_peer)
    right = LoopbackChannel(back, there, peer=right_peer)
    return left, right
