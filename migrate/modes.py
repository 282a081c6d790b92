"""The ways to move memory: whether it goes in rounds before the freeze, and whether all of it does.

::

                     all of it before the target runs      the rest after the target runs
    no rounds        stop                                  post
    rounds           pre                                   hybrid

The last three are one: rounds, freeze, restore without memory, fill. What differs is whether there
are rounds, and on which side of the commit the filling ends. In stop, CRIU's images have it.
"""

from __future__ import annotations

import enum


class Mode(enum.Enum):
    """How memory moves; the values are what a person types."""

    STOP = "stop"
    PRE = "pre"
    POST = "post"
    HYBRID = "hybrid"

    @property
    def has_rounds(self) -> bool:
        """Whether memory is sent while the container still runs."""
        return self in (Mode.PRE, Mode.HYBRID)

    @property
    def fills_later(self) -> bool:
        """Whether the target runs before all memory is there."""
        return self in (Mode.POST, Mode.HYBRID)
