"""A lock whose holder is chosen: who somebody waits for goes before who nobody waits for.

A plain lock goes, most of the time, to who has just let go of it and takes it once more: in Python
that one still runs, and the others have to be woken first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """One holder at a time. Who is not urgent should let go of it often."""

    def __init__(self) -> None:
        """Begin free."""
        self._held = threading.Lock()
        self._changed = threading.Condition()
        self._urgent = 0  # who want it or have it

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        """Hold it as soon as the one who has it lets go."""
        with self._changed:
            self._urgent += 1
        try:
            with self._held:
                yield
        finally:
            with self._changed:
                self._urgent -= 1
                if not self._urgent:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def calm(self) -> Iterator[None]:
        """Hold it once nobody urgent wants it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._urgent)
        with self._held:
            yield
