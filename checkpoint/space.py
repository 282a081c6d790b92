"""The memory of one restored process, and where its source's pages belong in it by now. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Space:
    """The memory of one process: whose memory it is made from, and what was moved in it since."""

    name: str
    fd: int
    inner: int
    moves: list[tuple[int, int, int]] = field(default_factory=list)  # from, to, bytes
    gone: bool = False

    def places(self, address: int, length: int) -> list[tuple[int, int, int]]:
        """Say where a range belongs now: offset in the range, address, bytes."""
        pieces = [(0, address, length)]
        for origin, to, size in self.moves:
            pieces = [part for piece in pieces for part in _moved(piece, origin, to, size)]
        return pieces

    def origin(self, address: int) -> int:
        """Say which address of the source a page has come from."""
        for origin, to, size in reversed(self.moves):
            if to <= address < to + size:
                address += origin - to
        return address


def _moved(
    piece: tuple[int, int, int], origin: int, to: int, size: int
) -> list[tuple[int, int, int]]:
    offset, start, length = piece
    begin, end = max(start, origin), min(start + length, origin + size)
    if begin >= end:
        return [piece]
    parts = [
        (offset, start, begin - start),
        (offset + begin - start, begin + to - origin, end - begin),
    ]
    parts.append((offset + end - start, end, start + length - end))
    return [part for part in parts if part[2]]
