"""Whether the pieces of streams are compressed: by what moved more bytes when it was tried. Pure.

What is the bottleneck, nobody says: the link, our CPUs, or those of the other side. So after some
pieces one way the next go the other way, and then as what was faster, until it is tried again.
Streams begin compressed: that costs a fast link little, and the other way round a slow one much.
"""

from __future__ import annotations

TRIAL = 16  # pieces of 1 MiB, after which a rate is believed
STAY = 256  # pieces until the other way is tried again
GAIN = 1.1  # times as fast must it be to send them as they are: that is more for the link


class Choice:
    """Chooses for one link. One thread may ask for the level while another one tells."""

    def __init__(self, level: int | None, *, fixed: bool = False) -> None:
        """Begin with zstd's ``level``; ``fixed`` is for who knows better, as is no level."""
        self.level = level
        self._packed = level
        self._fixed = fixed or level is None
        self._rates: dict[int | None, float] = {}  # bytes a second, by level
        self._stay = 0
        self._forget()

    def _forget(self) -> None:
        self._since: float | None = None
        self._count = self._bytes = 0

    def begins(self) -> None:
        """Note that a stream begins: the time before says nothing."""
        self._forget()

    def sent(self, size: int, now: float, *, level: int | None) -> None:
        """Note that a piece of ``size`` bytes, asked for with this level, has gone by now."""
        if self._fixed or level != self.level:  # it was on its way when the choice changed
            return
        if self._since is None:
            self._since = now
            return
        self._count += 1
        self._bytes += size
        if self._stay:
            self._stay -= 1
            if not self._stay:
                self._rates.clear()
                self._forget()
        elif self._count >= TRIAL and now > self._since:
            self._rates[level] = self._bytes / (now - self._since)
            self._decide()
            self._forget()

    def _decide(self) -> None:
        if len(self._rates) == 1:
            self.level = None if self.level is not None else self._packed
            return
        raw, packed = self._rates[None], self._rates[self._packed]
        self.level = None if raw > GAIN * packed else self._packed
        self._stay = STAY
