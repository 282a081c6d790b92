"""Restore a container before its memory is there: the command's side of a filler."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pymigrate.checkpoint import filling
from pymigrate.checkpoint.filling import Pages
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import BLOCK, clipped
from pymigrate.runtime import userfault
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import RestoreFailed

WORTH = 16 << 20
"""Bytes of memory from which on it pays: a filler costs as much as reading these."""

_SECONDS = 120.0  # for a filler to open a repository on another host, or for CRIU's last words


@dataclass(frozen=True)
class Skeleton:
    """A checkpoint without the memory that can come later, and what a filler needs to bring it.

    ``sums`` are the SHA-256 of members; the descriptors are 4, 5, … in the filler, and ours.
    """

    sums: dict[str, str]
    program: str
    plan: Mapping[str, object]
    descriptors: Sequence[int] = ()
    held: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Close the descriptors, and let go of what is held until a filler has its own."""
        self.held.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


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
                begin = number * BLOCK
                pieces = list(clipped(file.eager, begin, begin + BLOCK))
                if not pieces:
                    continue
                content = memoryview(pages.block(file, number))
                for piece in pieces:
                    start = piece.offset - begin
                    os.pwrite(stream.fileno(), content[start : start + piece.length], piece.offset)


class Filler:
    """A filler that has started; it goes on when this is closed."""

    def __init__(self, connection: socket.socket) -> None:
        """Take the command's end of its socket."""
        self._connection = connection
        self._unread = b""
        self._is_attached = False

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
        if said == filling.FAILED:
            raise RestoreFailed(f"the process that brings the memory failed: {more}")
        self._is_attached = said == filling.ATTACHED
        return str(said)


@contextmanager
def started(container: Container, skeleton: Skeleton) -> Iterator[Filler]:
    """Have the supervisor of a prepared container start a filler."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [sys.executable, "-I", "-m", skeleton.program]
        with container.supervision() as supervision:
            pid = supervision.spawn(argv, [theirs.fileno(), *skeleton.descriptors], in_cgroup=False)
            supervision.rely_on(pid)
        theirs.close()
        ours.settimeout(_SECONDS)
        plan = {**skeleton.plan, "directory": str(container.directory)}
        try:
            ours.sendall(json.dumps(plan).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise RestoreFailed("the process that brings the memory was killed") from error
        yield Filler(ours)
