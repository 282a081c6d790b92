"""How many connections memory takes in turn (rotation.py): who decides what. Pure.

The source asks for a number, by default for what suits its processors, and the target lets in as
many; of a number that nobody asked for, no more than suits its own.
"""

from __future__ import annotations

MOST = 8  # whatever is asked for
USUAL = 4  # at most, where nobody asked for a number


def usual(processors: int, *, limited: bool = False) -> int:
    """Return how many to use by default: half of the processors are for the rest of the work.

    What is ``limited`` to a rate waits for that and not for encryption; and it has no lane, so a
    page that is waited for would share the rate with what the other connections are sending.
    """
    return 1 if limited else max(1, min(USUAL, processors // 2))


def granted(asked: int, *, insists: bool, here: int) -> int:
    """Return how many a target lets in; any number may be asked for, and 0 is 1.

    ``here`` is what it would use itself, which is not exceeded unless somebody ``insists``.
    """
    return max(1, min(asked, MOST if insists else here))
