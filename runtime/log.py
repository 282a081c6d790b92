r"""The container's output on disk, in the format of podman's ctr.log ("k8s-file").

A line is ``TIME STREAM TAG CONTENT\n``: TIME is RFC 3339 with nanoseconds in UTC, STREAM is stdout
or stderr, TAG is F where the output had a newline after CONTENT and P where it had not (yet).
So the output can be told exactly from the log, and the log is what attached clients read: a slow
client holds up nobody, but after two rotations what it has not read is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from pymigrate.runtime.values import dataclass

STREAMS = ("stdout", "stderr")
SIZE = 16 << 20  # bytes of a log before it is rotated, unless the container has its own
LEAST_SIZE = 4096
_BLOCK = 64 * 1024


@dataclass(frozen=True)
class Entry:
    """One line of the log; ``output`` has its newline again if it had one."""

    time: str
    stream: str
    output: bytes


def format_entries(time_text: str, stream: str, data: bytes) -> bytes:
    """Turn a piece of output into lines of the log."""
    head = f"{time_text} {stream} ".encode("ascii")
    lines = data.split(b"\n")
    last = lines.pop()
    parts = [part for line in lines for part in (head, b"F ", line, b"\n")]
    if last:
        parts += (head, b"P ", last, b"\n")
    return b"".join(parts)


def parse_entry(line: bytes) -> Entry | None:
    """Read one line of the log, without its newline; None if it is not one."""
    fields = line.split(b" ", 3)
    if len(fields) != 4 or fields[2] not in (b"F", b"P") or fields[1] not in (b"stdout", b"stderr"):
        return None
    output = fields[3] + (b"\n" if fields[2] == b"F" else b"")
    return Entry(fields[0].decode("ascii", "replace"), fields[1].decode("ascii"), output)


def timestamp(nanoseconds: int) -> str:
    """Return a time since the epoch as RFC 3339 with nanoseconds, UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


class Writer:
    """Appends to the log; a full disk loses output, never the container.

    A log that has reached its size becomes ``log.1``, in place of the one before it, and a new one
    is begun: there are ``size`` bytes and a line less at least, and twice as many at most.
    """

    def __init__(self, path: Path, size: int = SIZE) -> None:
        """Open the log at its end; a line that a killed supervisor left torn is ended."""
        self._path = path
        self._size = size
        self._lost = 0
        self._open()
        if self._length and os.pread(self._fd, 1, self._length - 1) != b"\n":
            self._length += os.write(self._fd, b"\n")

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._length = os.fstat(self._fd).st_size

    @property
    def length(self) -> int:
        """How many bytes the log has."""
        return self._length

    @property
    def inode(self) -> int:
        """Which file the length is of; it is another one after the next rotation."""
        return os.fstat(self._fd).st_ino

    def write(self, stream: str, data: bytes) -> bool:
        """Append output; False if it could not be written."""
        text = timestamp(time.time_ns())
        entries = format_entries(text, stream, data)
        if self._lost:
            note = f"[{self._lost} bytes of output were lost: the disk was full]\n"
            entries = format_entries(text, "stderr", note.encode()) + entries
        try:
            while self._length + len(entries) > self._size:
                # As many whole lines as there is room for: short ones are ten times as long here.
                room = max(self._size - self._length, 0)
                cut = entries.rfind(b"\n", 0, room) + 1
                if not cut and not self._length:
                    break  # one line that is longer than a log is to be
                self._append(entries[:cut])
                entries = entries[cut:]
                self._rotate()
            self._append(entries)
        except OSError:
            self._lost += len(data)
            return False
        self._lost = 0
        return True

    def _rotate(self) -> None:
        self._path.rename(older(self._path))
        before = self._fd
        self._open()
        os.close(before)

    def _append(self, entries: bytes) -> None:
        view = memoryview(entries)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._length)  # no half lines
            raise
        self._length += len(entries)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Reader:
    """Reads the log from an offset on, also while it grows, is rotated, and after it was removed.

    ``since``: entries before this time, as `timestamp` writes it, are passed over.
    """

    def __init__(
        self, path: Path, offset: int | None = None, inode: int | None = None, since: str = ""
    ) -> None:
        """Open the log at an offset of the file with this inode; without one, at the very begin.

        Raises:
            FileNotFoundError: the container never ran.

        """
        self._path = path
        self._since = since
        self._torn = b""
        self._offset = offset or 0
        self._fd = self._first(inode, whole=offset is None)

    def _first(self, inode: int | None, *, whole: bool) -> int:
        while True:
            current = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            if not whole and inode in (None, os.fstat(current).st_ino):
                return current
            try:
                before = os.open(older(self._path), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return current
            # Between the two a rotation may have put the first in the place of the second.
            if os.fstat(before).st_ino == os.fstat(current).st_ino:
                os.close(before)
                os.close(current)
                continue
            os.close(current)
            if not whole and os.fstat(before).st_ino != inode:
                self._offset = 0  # it was rotated more than once: the oldest that is left
            return before

    def entries(self) -> Iterator[Entry]:
        """Yield what is there and was not yet yielded, whole lines only."""
        for line in self.lines():
            entry = parse_entry(line)
            if entry is not None and entry.time >= self._since:
                yield entry

    def lines(self) -> Iterator[bytes]:
        """Yield the same as it is written, without newlines."""
        while True:
            yield from self._rest()
            following = self._next()
            if following is None:
                return
            yield from self._rest()  # what came between reading its end and its rotation
            os.close(self._fd)
            self._fd, self._offset, self._torn = following, 0, b""

    def _rest(self) -> Iterator[bytes]:
        while block := os.pread(self._fd, _BLOCK, self._offset):
            self._offset += len(block)
            lines = (self._torn + block).split(b"\n")
            self._torn = lines.pop()
            yield from lines

    def _next(self) -> int | None:
        """Open the file that follows ours; None while ours is the last, or all are removed."""
        mine = os.fstat(self._fd).st_ino
        found = None
        for path in (self._path, older(self._path)):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if os.fstat(fd).st_ino == mine:
                os.close(fd)
                return found
            if found is not None:
                os.close(found)
            found = fd
        return found

    def seek_tail(self, count: int) -> None:
        """Go to where the last ``count`` lines of output begin."""
        current = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        offset, found = _tail(current, count)
        if found < count and os.fstat(current).st_ino != os.fstat(self._fd).st_ino:
            os.close(current)
            offset, _ = _tail(self._fd, count - found)
        else:
            os.close(self._fd)
            self._fd = current
        self._torn = b""
        self._offset = offset

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def older(path: Path) -> Path:
    """Return where a log is after it was rotated."""
    return path.with_name(f"{path.name}.1")


def _tail(fd: int, count: int) -> tuple[int, int]:
    """Return where the last lines of output begin in a file, and how many of them it has."""
    end = position = os.fstat(fd).st_size
    text = b""
    while position > 0 and _full_lines(text) <= count:
        start = max(0, position - _BLOCK)
        text = os.pread(fd, position - start, start) + text
        position = start
    whole_from = 0 if position == 0 else text.index(b"\n") + 1
    begin, found = _tail_begin(text, whole_from, count)
    return end - len(text) + begin, found


def _full_lines(text: bytes) -> int:
    return text.count(b" F ")


def _tail_begin(text: bytes, begin: int, count: int) -> tuple[int, int]:
    """Return the offset in ``text`` of the last ``count`` lines of output, and how many they are.

    Pieces marked P belong to the line of output that the next F ends, so a line of output begins
    after the F before it. What comes after the last F is a line of its own.
    """
    starts = [begin]
    position = begin
    for line in text[begin:].split(b"\n")[:-1]:
        position += len(line) + 1
        entry = parse_entry(line)
        if entry is not None and entry.output.endswith(b"\n"):
            starts.append(position)
    if starts[-1] == len(text):
        starts.pop()  # nothing after the last newline
    if count <= 0:
        return len(text), 0
    return (starts[-count], count) if count <= len(starts) else (begin, len(starts))
