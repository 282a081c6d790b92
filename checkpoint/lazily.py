"""Restore a container before its memory is there: the command's side of a filler."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from pymigrate.checkpoint import fill_words
from pymigrate.checkpoint.fill_words import Pages
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import clipped
from pymigrate.runtime import daemon, userfault
from pymigrate.runtime.errors import RestoreFailed
from pymigrate.runtime.values import dataclass, field

WORTH = 16 << 20
"""Bytes of memory from which on it pays: a filler costs as much as reading these."""

_SECONDS = 120.0  # for a filler to open a repository on another host, or for CRIU's last words


@dataclass(frozen=True)
class Told:
    """What a filler is told; the descriptors become its own, and stay the caller's."""

    plan: Mapping[str, object]
    descriptors: Sequence[int] = ()


@dataclass(frozen=True)
class Skeleton:
    """A checkpoint without its memory, which a filler brings.

    ``sums`` are the SHA-256 of members. ``complete`` makes CRIU's files of pages, and returns what
    the filler is told: it is called while CRIU starts, for it may take as long.
    ``held`` is closed when the filler has its own.
    """

    sums: dict[str, str]
    complete: Callable[[], Told]
    held: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Let go of what is held until a filler has its own."""
        self.held.close()


def is_possible(manifest: Manifest, memory: int) -> bool:
    """Say whether a container can run before so much of its memory is there, and gains by it.

    One with users of its own cannot: CRIU makes their userfaultfd as them, which the kernel's
    vm.unprivileged_userfaultfd forbids.
    """
    return memory >= WORTH and not manifest.spec.private("user") and userfault.is_here()


def lay_out_memory(pages: Pages, images: Path) -> None:
    """Make CRIU's files of pages: with what it reads itself, and holes for what comes later."""
    for file in pages.files:
        with (images / file.name).open("xb", buffering=0) as stream:
            stream.truncate(file.size)
            for number in range(file.blocks):
                begin = file.begin(number)
                pieces = list(clipped(file.eager, begin, file.begin(number + 1)))
                if not pieces:
                    continue
                content = memoryview(pages.block(file, number))
                for piece in pieces:
                    start = piece.offset - begin
                    os.pwrite(stream.fileno(), content[start : start + piece.length], piece.offset)


class Filler:
    """A filler that has started; once it was told, it goes on when this is closed."""

    def __init__(self, connection: socket.socket, pid: int | None = None) -> None:
        """Take the command's end of its socket, and the PID that is to be waited for."""
        self._connection = connection
        self._pid = pid
        self._unread = b""
        self._is_attached = False

    @classmethod
    @contextmanager
    def started(cls, program: str) -> Iterator[Self]:
        """Start the module that is a filler: it loads what it needs, and waits to be told."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = daemon.start(program, [], theirs, title="pymigrate: brings memory", fork=True)
            theirs.close()
            ours.settimeout(_SECONDS)
            self = cls(ours, pid)
            try:
                yield self
            finally:
                self._reap()

    def _reap(self) -> None:
        # It forked once, to be nobody's child: what we started has ended.
        pid, self._pid = self._pid, None
        if pid is not None:
            os.waitpid(pid, 0)

    def tell(self, directory: Path, told: Told, working_set: Path) -> None:
        """Have it begin, for the container in this directory. Raises RestoreFailed.

        ``working_set`` is where it notes what was waited for; see that module.
        """
        plan = {**told.plan, "directory": str(directory), "working_set": str(working_set)}
        try:
            socket.send_fds(self._connection, [fill_words.BEGIN], told.descriptors)
            self._connection.sendall(json.dumps(plan).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise RestoreFailed("the process that brings the memory was killed") from error

    def check(self) -> None:
        """Raise RestoreFailed if it has failed, by all that it has said up to now."""
        while b"\n" in self._unread or select.select([self._connection], [], [], 0)[0]:
            if self._hear() is None:
                return

    def await_word(self, word: str) -> None:
        """Wait until it says this. Raises RestoreFailed if it cannot."""
        while self._hear() != word:
            pass

    def _hear(self) -> str | None:
        """Return its next word; None at the end, if it had all processes before."""
        try:
            while b"\n" not in self._unread:
                data = self._connection.recv(4096)
                if not data:
                    if self._is_attached:
                        return None
                    raise RestoreFailed("the process that brings the memory was killed")
                self._unread += data
        except TimeoutError as error:
            raise RestoreFailed("the process that brings the memory said nothing") from error
        except ConnectionResetError as error:
            raise RestoreFailed("the process that brings the memory was killed") from error
        line, _, self._unread = self._unread.partition(b"\n")
        said, more = json.loads(line)
        if said == fill_words.FAILED:
            raise RestoreFailed(f"the process that brings the memory failed: {more}")
        self._is_attached = said == fill_words.ATTACHED
        return str(said)
