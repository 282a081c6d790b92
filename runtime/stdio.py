"""The container's standard streams: the ends it gets, and the ends its supervisor keeps.

Without a terminal, stdout and stderr are pipes whose other ends the supervisor reads, so that
nothing of the host's files is open in the container (CRIU could not look it up). stdin is a pipe
with ``-i``; otherwise it is /dev/null, opened by the container's init in its own mounts.
"""

from __future__ import annotations

import contextlib
import os

from pymigrate.runtime.values import dataclass


@dataclass(frozen=True)
class Stdio:
    """The container's ends; ``stdin`` None means /dev/null of the container's own /dev.

    With a terminal all three are None: the streams are the terminal's slave.
    """

    stdin: int | None
    stdout: int | None
    stderr: int | None

    def items(self) -> dict[str, int]:
        """Return the descriptors that are there, by their names."""
        named = {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr}
        return {name: fd for name, fd in named.items() if fd is not None}

    def close(self) -> None:
        """Close the container's ends; the container keeps its own copies."""
        for fd in self.items().values():
            os.close(fd)


TERMINAL = Stdio(None, None, None)


@dataclass(frozen=True)
class Streams:
    """The supervisor's ends of the same pipes: ``stdin`` to write to, the others to read."""

    stdin: int | None
    stdout: int
    stderr: int


def make_pipes(*, with_stdin: bool) -> tuple[Stdio, Streams]:
    """Make the pipes of a container; the supervisor's ends do not block."""
    with contextlib.ExitStack() as undo:
        stdin_read, stdin_write = _pipe(undo) if with_stdin else (None, None)
        stdout_read, stdout_write = _pipe(undo)
        stderr_read, stderr_write = _pipe(undo)
        for fd in (stdin_write, stdout_read, stderr_read):
            if fd is not None:
                os.set_blocking(fd, False)
        undo.pop_all()
    return (
        Stdio(stdin_read, stdout_write, stderr_write),
        Streams(stdin_write, stdout_read, stderr_read),
    )


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    for fd in ends:
        undo.callback(os.close, fd)
    return ends
