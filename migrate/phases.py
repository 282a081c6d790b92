"""The phases of a migration, their order, and what may still be undone in each."""

from __future__ import annotations

import enum


class Phase(enum.IntEnum):
    """How far a migration has come; the order of the values is the order of the phases."""

    PLANNED = 0
    RESERVED = 1
    PRECOPIED = 2
    FROZEN = 3
    SHIPPED = 4
    RESTORED = 5
    COMMITTED = 6
    HANDED_OVER = 7
    FILLED = 8
    DONE = 9

    @property
    def may_roll_back(self) -> bool:
        """Whether the source may run again: true until the commit line is on disk, then never."""
        return self < Phase.COMMITTED

    @property
    def is_blackout(self) -> bool:
        """Whether the clients wait while this phase is worked towards."""
        return Phase.FROZEN <= self <= Phase.HANDED_OVER

    @property
    def label(self) -> str:
        """The name that people read: ``handed-over``."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def from_label(cls, label: str) -> Phase:
        """Read a label back; raises ValueError for a word that is no phase."""
        try:
            return cls[label.upper().replace("-", "_")]
        except KeyError:
            raise ValueError(label) from None
