"""What became of the memory of restored processes, a line each, for the pager after one that ends.

To write a line takes as long however many there are. Whoever reads them does it all once more, so
it knows what the one before it knew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pymigrate.checkpoint.space import Layout, Space

FILE = "pager.jsonl"


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


def read(directory: Path, kept: Mapping[str, int]) -> list[Space]:
    """Return the memory whose descriptors were kept, in the state that it was in.

    Of one about which nothing was written yet nothing is known: it is nobody's, which the source
    refuses as soon as a page of it is waited for. Raises FileNotFoundError.
    """
    lines = (directory / FILE).read_bytes().splitlines(keepends=True)
    # Who is killed while it writes has not written: only the last line can be cut.
    known = follow(json.loads(line) for line in lines if line.endswith(b"\n"))
    return [Space(name, fd, *known.get(name, (0, Layout()))) for name, fd in kept.items()]


def follow(lines: Iterable[list[Any]]) -> dict[str, tuple[int, Layout]]:
    """Return, by its name, whose memory each is made from, and what became of it. Pure."""
    found: dict[str, tuple[int, Layout]] = {}
    for word, name, *numbers in lines:
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
