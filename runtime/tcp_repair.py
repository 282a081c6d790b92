"""TCP connections in CRIU's repair mode, where it was killed amid a dump and left them in that.

Such a connection sends nothing, and who writes to it gets EINVAL; its owner closes it then, and
the client is reset. Kernel: tcp_sendmsg_locked in net/ipv4/tcp.c; CRIU: soccr/soccr.c.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pymigrate.runtime import syscalls
from pymigrate.runtime.proc_links import gone_if_ended

TCP_REPAIR = 19  # include/uapi/linux/tcp.h


def end(pids: Iterable[int]) -> int:
    """Have the connections of processes that stand still go on; return how many were halted."""
    seen: set[str] = set()
    ended = 0
    for pid in pids:
        # Gone, or this descriptor of it.
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            gone_if_ended(pid),
            ExitStack() as opened,
        ):
            process = os.pidfd_open(pid)
            opened.callback(os.close, process)
            for path in Path(f"/proc/{pid}/fd").iterdir():
                name = str(path.readlink())
                if name.startswith("socket:") and name not in seen:
                    seen.add(name)
                    ended += _end(syscalls.pidfd_getfd(process, int(path.name)))
    return ended


def _end(descriptor: int) -> bool:
    with socket.socket(fileno=descriptor) as one:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.proto != socket.IPPROTO_TCP:
            return False
        if not one.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
            return False
        one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        return True
