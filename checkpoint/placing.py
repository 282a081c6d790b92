"""Put pages in place in the memory of restored processes, and keep to what they change of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from pymigrate.checkpoint.space import Space
from pymigrate.checkpoint.turns import Turns
from pymigrate.runtime import userfault
from pymigrate.runtime.userfault import Changing, Gone

PIECE = 256 << 10
"""Bytes that are put in place at once: who waits for something else, waits for them."""

_AROUND = 64 << 10  # bytes, of which all that is one hole is cleared at once
_BACKOFF = 0.001  # seconds until a change of memory, whose message was read, is over


class Hole(NamedTuple):
    """An address at which a process waits, and there is nothing of the source."""

    space: Space
    address: int


class Places:
    """The memory of the processes of one container; owns their userfaultfds.

    ``changing`` is held while a message of theirs is read and followed, so that nothing is put in
    place in between.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        """Begin with none; ``check`` raises if their messages are not read any more."""
        self.spaces: list[Space] = []
        self.changing = Turns()
        self._check = check

    def add(self, space: Space) -> None:
        """Have one more."""
        with self.changing.urgent():
            self.spaces.append(space)

    @property
    def are_gone(self) -> bool:
        """Whether all processes have ended, as far as placing has shown."""
        with self.changing.urgent():
            return bool(self.spaces) and all(each.gone for each in self.spaces)

    def place(
        self, inner: int, address: int, length: int, source: int | None, *, is_urgent: bool = False
    ) -> None:
        """Place a range, from an address of ours or zeros, in every process made from this one.

        Also in those that are forked meanwhile: a child has what its parent had at the fork, and
        its parent may have got the range only after that. What somebody waits for is urgent; the
        rest goes in pieces, between which that takes its turn.
        """
        step = length if is_urgent or source is None else PIECE
        for at in range(0, length, step):
            size = min(step, length - at)
            begin = None if source is None else source + at
            for space in self.spaces:  # to which children are added at the end
                if space.inner == inner and not space.gone:
                    self._place(space, address + at, size, begin, is_urgent=is_urgent)

    def _place(
        self, space: Space, address: int, length: int, source: int | None, *, is_urgent: bool
    ) -> None:
        def act() -> None:
            for offset, at, size in space.layout.places(address, length):
                if source is None:
                    userfault.zero(space.fd, at, size)
                else:
                    userfault.copy(space.fd, at, source + offset, size)

        self._do(space, act, is_urgent=is_urgent)

    def clear(self, hole: Hole) -> None:
        """Have zeros at an address and in some of the hole around it, if it is one still.

        If not, what has changed has woken who waits there.
        """

        def act() -> None:
            begin = hole.address & -_AROUND
            begin, end = hole.space.layout.hole(hole.address, begin, begin + _AROUND)
            userfault.zero(hole.space.fd, hole.address, end - hole.address)
            userfault.zero(hole.space.fd, begin, hole.address - begin)

        self._do(hole.space, act, is_urgent=True)

    def _do(self, space: Space, act: Callable[[], None], *, is_urgent: bool) -> None:
        """Put something in place; a change of memory in between is heard first, then respected."""
        while True:
            with self.changing.urgent() if is_urgent else self.changing.calm():
                try:
                    act()
                except Changing:
                    pass  # from the start: what is in place stays as it is
                except Gone:
                    space.gone = True
                    return
                else:
                    return
            self._check()
            # Another thread reads the message; the process that changes its memory then goes on.
            threading.Event().wait(_BACKOFF)

    def close(self) -> None:
        """Close each; may be repeated."""
        while self.spaces:
            os.close(self.spaces.pop().fd)
