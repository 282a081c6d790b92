"""Whoever clients wait for runs before those who do what can wait, where both need the processors.

What CRIU restores gets its own priority back from CRIU.
"""

from __future__ import annotations

import contextlib
import os

_FAVOURED = -10  # nice(2)


def favour(pid: int = 0) -> None:
    """Have a process run before others, or, by 0, the calling thread and threads that it makes.

    Nothing changes if it has ended, or for who may not do that.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, _FAVOURED)


def favour_no_more() -> None:
    """Have the calling thread run as others do."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
