"""The target's connections beside that for requests: made by the source, through one door.

::

    caller of the door    1st         2nd, if agreed      others, if agreed
    what it is for        bulk data   the lane (lane.py)  memory in turn with the 1st (rotation.py)

Who they are for is told by their order alone. So a source that cannot make one makes no other after
it: the lane comes second, for it is worth more than those after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pymigrate.runtime.errors import ProtocolError
from pymigrate.transport import messages as m
from pymigrate.transport import rotation, stream_count
from pymigrate.transport.channel import Channel
from pymigrate.transport.link import Link

if TYPE_CHECKING:
    from pymigrate.transport.direct import Door
    from pymigrate.transport.lane import Lane


class Beside:
    """Owns the door and what came in by it. For one thread; close it in the end."""

    def __init__(self, peer: str, watching: tuple[float, float], streams: int) -> None:
        """Serve ``peer``; ``watching`` is a link's interval and silence, in seconds.

        So many ``streams`` are let in for memory, unless the source insists on another number.
        """
        self.data: Link | None = None
        """The first connection, once something has come by it."""
        self._peer = peer
        self._watching = watching
        self._usual = streams
        self._door: Door | None = None
        self._lane: Lane | None = None
        self._further: list[Link] = []
        self._ahead = 1

    def open(self, request: m.OpenData) -> m.DataOpened:
        """Listen for the source's connections; earlier ones are given up."""
        from pymigrate.transport import direct  # cryptography takes 50 ms to load

        self.close()
        streams = stream_count.granted(request.streams, insists=request.insists, here=self._usual)
        self._ahead = rotation.read_ahead(streams)
        self._door = direct.open_door(
            request.address,
            request.certificate,
            self._watch,
            peer=self._peer,
            lane=request.lane,
            streams=streams,
        )
        return m.DataOpened(
            port=self._door.port,
            certificate=self._door.certificate,
            lane=request.lane,
            streams=streams,
        )

    def _watch(self, channel: Channel) -> Link:
        interval, silence = self._watching
        return Link(channel, interval=interval, silence=silence, ahead=self._ahead)

    def bulk(self) -> Link:
        """Give the connection by which what follows a request comes."""
        if self.data is None:
            self.data = None if self._door is None else self._door.link()
        if self.data is None:
            message = f"{self._peer} sends a stream over a connection that it never made"
            raise ProtocolError(message)
        return self.data

    def further(self, streams: int) -> Sequence[Link]:
        """Give the links beside `bulk` by which memory comes, ``streams`` together with that one.

        Raises ProtocolError if the source says that it uses more than it made.
        """
        made = self._door.further() if self._door is not None and streams > 1 else []
        self._further += [self._watch(channel) for channel in made]
        if streams > 1 + len(self._further):
            message = (
                f"{self._peer} sends memory by {streams} connections, of which it made"
                f" {1 + len(self._further)}"
            )
            raise ProtocolError(message)
        return self._further[: max(0, streams - 1)]

    def lane(self) -> Lane:
        """Give the connection for what is waited for."""
        from pymigrate.transport.lane import Lane

        channel = None if self._door is None else self._door.lane()
        if channel is None:
            message = f"{self._peer} speaks of a lane that it never made"
            raise ProtocolError(message)
        interval, silence = self._watching
        self._lane = Lane(channel, interval=interval, silence=silence)
        return self._lane

    def check(self) -> None:
        """Raise what ended the connection for bulk data: without it the others are of no use."""
        if self.data is not None:
            self.data.check()

    def close(self) -> None:
        """Stop listening, and hang up; may be repeated."""
        door, self._door = self._door, None
        data, self.data = self.data, None
        lane, self._lane = self._lane, None
        further, self._further = self._further, []
        for each in (door, data, lane, *further):
            if each is not None:
                each.close()
