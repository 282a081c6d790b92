"""Following the links in /proc/PID of processes that may end meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def gone_if_ended(pid: int) -> Iterator[None]:
    """Raise FileNotFoundError where the kernel refuses to follow a link of who has ended.

    It says EACCES then, as if it were not allowed: proc_pid_readlink() and proc_pid_get_link() in
    fs/proc/base.c.
    """
    try:
        yield
    except PermissionError:
        os.stat(f"/proc/{pid}")  # noqa: PTH116 - raises it
        raise
