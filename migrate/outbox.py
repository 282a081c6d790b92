"""What is ready to be sent, or being compressed: a fixed set of buffers that go round.

One thread reads memory into a buffer and puts it here; a pool compresses it; another thread takes
the oldest and sends it. What somebody waits for overtakes the rest, and has a buffer kept for it.
Whoever uses an outbox holds the lock that all of its users share.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

BUFFERS = 4
FURTHER = 1  # for each stream but the first: what it is sending
SPARE = 1  # kept for what somebody waits for


@dataclass(frozen=True)
class Piece:
    """So many bytes at the beginning of a buffer; ``packing`` gives them compressed, or None."""

    buffer: bytearray
    length: int
    packing: Future[bytes | None] | None = None

    @property
    def plain(self) -> memoryview:
        """The bytes as they are."""
        return memoryview(self.buffer)[: self.length]


def buffers(streams: int) -> int:
    """Return how many are of use where so many connections send at once."""
    return BUFFERS + FURTHER * (streams - 1)


class Outbox:
    """Buffers that are free, filled, or being sent."""

    def __init__(self, size: int, count: int = BUFFERS) -> None:
        """Make ``count`` buffers of ``size`` bytes, and one to spare; see `buffers`."""
        self._count = count + SPARE
        self._free = [bytearray(size) for _ in range(self._count)]
        self._urgent: deque[Piece] = deque()
        self._waiting: deque[Piece] = deque()

    @property
    def has_room(self) -> bool:
        """Whether a buffer can be taken for what nobody waits for."""
        return len(self._free) > SPARE

    @property
    def has_any(self) -> bool:
        """Whether a buffer can be taken at all."""
        return bool(self._free)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is filled or being sent."""
        return len(self._free) == self._count

    def take(self) -> bytearray:
        """Take a free buffer, to `put` it or to `give_back`."""
        return self._free.pop()

    def give_back(self, buffer: bytearray) -> None:
        """Let a buffer be filled again."""
        self._free.append(buffer)

    def put(self, piece: Piece, *, urgent: bool) -> None:
        """Have it sent."""
        (self._urgent if urgent else self._waiting).append(piece)

    @property
    def has_piece(self) -> bool:
        """Whether there is something to send."""
        return bool(self._urgent or self._waiting)

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits for what is to be sent next."""
        return bool(self._urgent)

    def next(self) -> Piece:
        """Take out what is to be sent next; its buffer comes back by `give_back`."""
        return (self._urgent or self._waiting).popleft()
