"""Start a process of ours that outlives who starts it: a supervisor, or who brings memory.

One that ends with who starts it, as who sends wanted pages does, is started so too: it does not
call ``detach``.

It is a module with ``main(arguments) -> exit code``, which finds its end of a connection as
``CONNECTION_FD`` and calls ``detach`` first. It does nothing that can be seen from outside before
it is told to by the connection, and ends when that is closed instead.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib import import_module

from pymigrate.runtime import priority

CONNECTION_FD = 3
_LAST_FD = (1 << 32) - 1
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
_ENVIRONMENT = {
    "PATH": os.defpath + ":/usr/local/sbin:/usr/sbin:/sbin",
    "LANG": "C.UTF-8",
    **priority.ONE_THREAD,
}


def start(
    program: str,
    arguments: Sequence[str],
    connection: socket.socket,
    *,
    title: str,
    fork: bool,
    aside: bool = False,
) -> int | None:
    """Start the module with its end of a connection; returns the PID, to be waited for, at once.

    An interpreter of its own takes 50 ms of processor time. With ``fork`` it is a fork of the
    caller instead; of a caller with threads, which a fork would lose, it is not. ``title`` is what
    the fork is then called in lists of processes. It may use all processors, but with ``aside``
    only those that the caller uses now: see priority.py.

    Raises:
        OSError: there can be no more processes.

    """
    with contextlib.nullcontext() if aside else priority.wholly():
        if fork and _has_one_thread():
            return _fork(program, arguments, connection, title)
        return _spawn(program, arguments, connection.fileno())


def detach() -> None:
    """Be nobody's child, in no directory: whoever started us waits for the process before."""
    if os.fork() != 0:
        os._exit(0)
    os.chdir("/")
    os.umask(0o022)


def _spawn(program: str, arguments: Sequence[str], connection: int) -> int | None:
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-m", program, *arguments],
        _ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, connection, CONNECTION_FD),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE],
    )


def _fork(
    program: str, arguments: Sequence[str], connection: socket.socket, title: str
) -> int | None:
    """Do as ``_spawn``; nothing of the caller's is left in the child but what it has imported."""
    # Until it has handlers of its own, no Ctrl-C may run the caller's in it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    pid = os.fork()
    if pid != 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    exit_code = 1
    try:
        os.setsid()
        from pymigrate.runtime import syscalls

        # At once: some of the caller's are locks, and end with their last descriptor.
        os.dup2(connection.detach(), CONNECTION_FD, inheritable=False)
        syscalls.close_range(CONNECTION_FD + 1, _LAST_FD)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        for number in _STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Nobody's variables and passwords shall stay, nor look as if `run` were still at work.
        os.environ.clear()
        os.environ.update(_ENVIRONMENT)
        syscalls.set_command_line(title)
        gc.freeze()  # or the collector would touch, and so copy, all that the two still share
        exit_code = import_module(program).main(arguments)
    except BaseException:  # it must not return into the caller's stack
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(exit_code)


def _has_one_thread() -> bool:
    return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 - names are numbers
