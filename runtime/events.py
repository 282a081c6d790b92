"""What happened to the containers of a host, one JSON object a line, in a file of bounded size.

Whoever does something writes it down: the command line what a person asked for, supervisors what
containers did. A line is appended by one write(2), so that lines never mix and no writer waits for
another. A file that has reached its size becomes ``events.1``, in place of the one before it. The
journal is for people and programs that watch; nothing of ours depends on it, so where it cannot be
written (a full disk) what it is about happens all the same, and the loss is told on stderr.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pymigrate.runtime import log
from pymigrate.runtime.host import Host
from pymigrate.runtime.state import Record
from pymigrate.runtime.values import dataclass, field

NAME = "events"
SIZE = 4 << 20  # bytes of the file before it is rotated


@dataclass(frozen=True)
class Event:
    """One thing that happened; ``time`` is RFC 3339 with nanoseconds, UTC."""

    time: str
    action: str
    name: str
    id: str
    attributes: Mapping[str, object] = field(default_factory=dict)

    def to_document(self) -> dict[str, object]:
        """Return what a line of the journal says."""
        return {
            "time": self.time,
            "action": self.action,
            "name": self.name,
            "id": self.id,
            **({"attributes": dict(self.attributes)} if self.attributes else {}),
        }


def note(host: Host, record: Record, action: str, **attributes: object) -> None:
    """Write down that something happened to a container just now."""
    event = Event(log.timestamp(time.time_ns()), action, record.name, record.id, attributes)
    try:
        append(host.root / NAME, event)
    except OSError as error:
        sys.stderr.write(f"pymigrate: {action} of {record.name} is not in the journal: {error}\n")


def append(path: Path, event: Event, size: int = SIZE) -> None:
    """Append an event; where the file has reached its size, begin a new one."""
    line = json.dumps(event.to_document(), separators=(",", ":"), ensure_ascii=False) + "\n"
    fd = _open(path)
    try:
        data = line.encode()
        before = os.fstat(fd).st_size
        if before and before + len(data) > size and _rotate(path, fd):
            os.close(fd)
            fd = _open(path)
        os.write(fd, data)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _rotate(path: Path, fd: int) -> bool:
    """Rotate the file unless another does; say whether a new one is to be opened."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False  # this line is one more of the old file
    try:
        if os.path.samestat(os.fstat(fd), path.stat()):
            path.rename(log.older(path))
    except FileNotFoundError:
        pass  # removed by a person
    return True


def parse(line: bytes) -> Event | None:
    """Read a line of the journal; None if it is not one."""
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    texts = [document.get(name) for name in ("time", "action", "name", "id")]
    attributes = document.get("attributes", {})
    if not all(isinstance(each, str) for each in texts) or not isinstance(attributes, dict):
        return None
    when, action, name, identifier = map(str, texts)
    return Event(when, action, name, identifier, attributes)


class Watcher:
    """Reads the journal, and waits for more of it."""

    def __init__(self, path: Path, *, from_now: bool) -> None:
        """Open the journal at its end or, not ``from_now``, at its begin; it is made if need be."""
        from pymigrate.runtime import syscalls  # ctypes, which who only writes does not need

        self._inotify = syscalls.inotify_init1()
        try:
            syscalls.inotify_add_watch(
                self._inotify, path.parent, syscalls.IN_MODIFY | syscalls.IN_CREATE
            )
            fd = _open(path)
            found = os.fstat(fd)
            os.close(fd)
            place = (found.st_size, found.st_ino) if from_now else (None, None)
            self._reader = log.Reader(path, *place)
        except BaseException:
            os.close(self._inotify)
            raise

    def events(self) -> Iterator[Event]:
        """Yield what is there and was not yet yielded."""
        for line in self._reader.lines():
            event = parse(line)
            if event is not None:
                yield event

    def fileno(self) -> int:
        """Return what is readable when there may be more; `take_note` is to follow."""
        return self._inotify

    def take_note(self) -> None:
        """Forget that there may be more: it is about to be read."""
        os.read(self._inotify, 65536)

    def close(self) -> None:
        """Close it."""
        self._reader.close()
        os.close(self._inotify)
