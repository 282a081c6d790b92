"""What became of the memory of restored processes, a line each, for the pager after one that ends.

To write a line takes as long however many there are. Whoever reads them does it all once more, so
it knows what the one before it knew. There may be one only: a message that is read by a pager that
does not know yet that its line was cut is one that the next pager never hears.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pymigrate.checkpoint.space import Layout, Space
from pymigrate.runtime import lock
from pymigrate.runtime.errors import RestoreFailed
from pymigrate.runtime.state import Identity

FILE = "pager.jsonl"
_ENDING = 10.0  # seconds for a pager that was killed to be gone


class SpaceLog:
    """The lines about one container, in its work directory; what is done is written there.

    ``close`` may be repeated.
    """

    def __init__(self, directory: Path, *, fresh: bool) -> None:
        """Begin a new file, or go on behind the last whole line of what is there."""
        self._path = directory / FILE
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        os.ftruncate(self._fd, 0 if fresh else self._path.read_bytes().rfind(b"\n") + 1)
        me = Identity.of(os.getpid())
        if me is not None:
            self._write("pager", me.pid, me.started)

    def restored(self, space: Space) -> None:
        """Write that CRIU restores a process."""
        self._write("restored", space.name, space.inner)

    def forked(self, space: Space, child: Space) -> None:
        """Write that a process was forked."""
        self._write("forked", space.name, child.name)

    def move(self, space: Space, start: int, to: int, length: int) -> None:
        """Have memory moved, and write it."""
        if space.layout.move(start, to, length):
            self._write("move", space.name, start, to, length)

    def unmap(self, space: Space, start: int, end: int) -> None:
        """Have memory unmapped, and write it."""
        if space.layout.unmap(start, end):
            self._write("unmap", space.name, start, end)

    def remove(self, space: Space, start: int, end: int) -> None:
        """Have memory given back, and write it."""
        if space.layout.remove(start, end):
            self._write("remove", space.name, start, end)

    def _write(self, *words: str | int) -> None:
        os.write(self._fd, json.dumps(words).encode("ascii") + b"\n")

    def close(self) -> None:
        """Leave the file for the next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def end(self) -> None:
        """Remove the file: all memory is there."""
        self._path.unlink(missing_ok=True)


def end_others(directory: Path) -> None:
    """End the pager that was here before, if it has not ended; it may have been stopped.

    It speaks by a line that its source has given up, or it would be the only one. To be called
    before anything is taken over. Raises RestoreFailed if it cannot be ended.
    """
    if not (directory / FILE).exists():
        return
    for word, *numbers in _lines(directory):
        before = Identity(*numbers) if word == "pager" else None
        if before is None or before.pid == os.getpid() or not before.is_alive:
            continue
        lock.send_signal(before, signal.SIGKILL)
        if not lock.await_end(before, _ENDING):
            raise RestoreFailed(f"process {before.pid}, which fills the memory, cannot be ended")


def _lines(directory: Path) -> list[list[Any]]:
    """Return what is written; who is killed while it writes has not written its last line."""
    lines = (directory / FILE).read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def read(directory: Path, kept: Mapping[str, int]) -> list[Space]:
    """Return the memory whose descriptors were kept, in the state that it was in.

    Of one about which nothing was written yet nothing is known: it is nobody's, which the source
    refuses as soon as a page of it is waited for. Raises FileNotFoundError.
    """
    known = follow(_lines(directory))
    return [Space(name, fd, *known.get(name, (0, Layout()))) for name, fd in kept.items()]


def follow(lines: Iterable[list[Any]]) -> dict[str, tuple[int, Layout]]:
    """Return, by its name, whose memory each is made from, and what became of it. Pure."""
    found: dict[str, tuple[int, Layout]] = {}
    for word, name, *numbers in lines:
        if word == "pager":
            continue
        if word == "restored":
            found[name] = (numbers[0], Layout())
        elif word == "forked":
            inner, layout = found[name]
            found[numbers[0]] = (inner, layout.forked())
        elif word == "move":
            found[name][1].move(*numbers)
        elif word == "unmap":
            found[name][1].unmap(*numbers)
        else:
            found[name][1].remove(*numbers)
    return found
