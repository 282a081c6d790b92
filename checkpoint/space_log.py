"""What became of the memory of restored processes, for the pager after one that ends.

The kernel tells of a change once, and lets its process go on. So messages are read straight into
memory that the keeper holds, the inbox, which outlives who reads them. When they were followed, the
changes of one reading go into the log as one line, with its number, and the inbox is emptied: that
takes as long however many there were. Whoever comes next follows all lines once more, and then what
lies in the inbox and has no line: it knows what the one before it knew.

There may be one only: a message that is read by a pager that does not know yet that its line was
cut is one that the next pager never hears.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pymigrate.checkpoint.early_pages import Keeper
from pymigrate.checkpoint.space import Layout, Space
from pymigrate.runtime import lock, userfault
from pymigrate.runtime.errors import RestoreFailed
from pymigrate.runtime.state import Identity
from pymigrate.runtime.userfault import Event, Message

FILE = "pager.jsonl"
_INBOX = "inbox"  # what the keeper calls it
_HEAD = struct.Struct("=2Q")  # the number of a reading, and whose messages it reads
_SIZE = _HEAD.size + userfault.READ
_ENDING = 10.0  # seconds for a pager that was killed to be gone

Change = list[Any]
"""A word, the name of the memory that it is about, and what the word needs."""


class SpaceLog:
    """The log about one container, in its work directory. What is done here is written there.

    ``close`` may be repeated.
    """

    def __init__(self, directory: Path, keeper: Keeper, kept: dict[str, int]) -> None:
        """Go on with what is there, if anything is ``kept``; what is ours is taken out of that.

        Nobody else writes there any more. Raises RestoreFailed if what is missing is lost.
        """
        self._path = directory / FILE
        self._changes: list[Change] = []
        inbox = kept.pop(_INBOX, None)
        fd = os.memfd_create("pymigrate-inbox", os.MFD_CLOEXEC) if inbox is None else inbox
        try:
            os.ftruncate(fd, _SIZE)
            self._inbox = mmap.mmap(fd, _SIZE)
            if inbox is None:
                keeper.keep(_INBOX, fd)
        finally:
            os.close(fd)
        self._body = memoryview(self._inbox)[_HEAD.size :]
        self._lines = _lines(self._path) if kept else []
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        whole = self._path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(self._fd, whole if kept else 0)
        heard = [line[1] for line in self._lines if line[0] == "heard"]
        self._number = heard[-1] if heard else 0
        self._settle(kept)
        me = Identity.of(os.getpid())
        if me is not None:
            self._write("pager", me.pid, me.started)

    def _settle(self, kept: dict[str, int]) -> None:
        """Follow what the one before had read and not written down."""
        number, name = _HEAD.unpack_from(self._inbox)
        if number > self._number:
            count = len(follow(self._lines))
            for message in userfault.parse(bytes(self._body)):
                if message.event == Event.FORK:
                    if str(count) not in kept:
                        raise RestoreFailed(
                            "a process was forked when what fills its memory was killed, and has"
                            " lost what was missing",
                            hint="end the container: no other copy of it is whole any more",
                        )
                    self._changes.append(["forked", str(name), str(count)])
                    count += 1
                else:
                    self._changes += _changes(str(name), message)
            self._lines.append(["heard", number, list(self._changes)])
        self.heard()

    def spaces(self, kept: dict[str, int]) -> list[Space]:
        """Return the memory whose descriptors were kept, in the state that it was in.

        Of one about which nothing was written nothing is known: it is nobody's, which the source
        refuses as soon as a page of it is waited for.
        """
        known = follow(self._lines)
        return [Space(name, fd, *known.get(name, (0, Layout()))) for name, fd in kept.items()]

    def restored(self, space: Space) -> None:
        """Write that CRIU restores a process."""
        self._write("restored", space.name, space.inner)

    def hear(self, space: Space) -> list[Message]:
        """Read what the kernel tells of one; `heard` is to follow, once that was followed."""
        _HEAD.pack_into(self._inbox, 0, self._number + 1, int(space.name))
        return userfault.read(space.fd, self._body)

    def follow(self, space: Space, message: Message) -> None:
        """Do with its layout what a message says."""
        for change in _changes(space.name, message):
            if _apply(space.layout, change):
                self._changes.append(change)

    def forked(self, space: Space, child: Space) -> None:
        """Note that a process was forked."""
        self._changes.append(["forked", space.name, child.name])

    def heard(self) -> None:
        """Write down what was followed, and empty the inbox."""
        if self._changes:
            self._number += 1
            self._write("heard", self._number, self._changes)
            self._changes = []
        self._body[:] = bytes(userfault.READ)

    def _write(self, *line: Any) -> None:
        os.write(self._fd, json.dumps(line).encode("ascii") + b"\n")

    def close(self) -> None:
        """Leave it to the next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._body.release()
            self._inbox.close()

    def end(self) -> None:
        """Remove the log: all memory is there."""
        self._path.unlink(missing_ok=True)


def _changes(name: str, message: Message) -> list[Change]:
    """Return what a message says of a layout; nothing if it is not about one."""
    if message.event == Event.REMAP:
        return [["move", name, message.a, message.b, message.c]]
    if message.event == Event.UNMAP:
        return [["unmap", name, message.a, message.b]]
    if message.event == Event.REMOVE:
        return [["remove", name, message.a, message.b]]
    return []


def _apply(layout: Layout, change: Change) -> bool:
    word, _, *numbers = change
    if word == "move":
        return layout.move(*numbers)
    if word == "unmap":
        return layout.unmap(*numbers)
    return layout.remove(*numbers)


def follow(lines: Iterable[Change]) -> dict[str, tuple[int, Layout]]:
    """Return, by its name, whose memory each is made from, and what became of it. Pure."""
    found: dict[str, tuple[int, Layout]] = {}
    for word, *rest in lines:
        if word == "restored":
            found[rest[0]] = (rest[1], Layout())
        for change in rest[1] if word == "heard" else ():
            inner, layout = found[change[1]]
            if change[0] == "forked":
                found[change[2]] = (inner, layout.forked())
            else:
                _apply(layout, change)
    return found


def end_others(directory: Path) -> None:
    """End the pager that was here before, if it has not ended; it may have been stopped.

    It speaks by a line that its source has given up, or it would be the only one. To be called
    before anything is taken over. Raises RestoreFailed if it cannot be ended.
    """
    for word, *numbers in _lines(directory / FILE):
        before = Identity(*numbers) if word == "pager" else None
        if before is None or before.pid == os.getpid() or not before.is_alive:
            continue
        lock.send_signal(before, signal.SIGKILL)
        if not lock.await_end(before, _ENDING):
            raise RestoreFailed(f"process {before.pid}, which fills the memory, cannot be ended")


def _lines(path: Path) -> list[Change]:
    """Return what is written; who is killed while it writes has not written its last line."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
