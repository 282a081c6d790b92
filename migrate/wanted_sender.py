"""The process that sends the pages that somebody at the target waits for, and nothing else.

It is a program of its own, for in the one that moves the container a dozen threads read, compress
and send all other memory, and take turns at one interpreter. Each page that a restored process
waits for would wait for those too.

It knows the processes, which stand still, and nothing of what else is sent. So an answer is right
whenever it comes, until the target has everything: a page holds what it holds at the source. It may
come once more with the rest, and is then passed over.

From who started it (`lane_process.py`) it hears, by a connection, where to connect to and which
processes these are; it tells that it is connected, how often it was asked, and what failed. It ends
as soon as that connection does, so also when the other one is killed.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence

from pymigrate.runtime import daemon, priority, syscalls
from pymigrate.runtime.errors import MigrationError, ProtocolError, PymigrateError, TransportError
from pymigrate.runtime.memory import Memories, Memory, Range
from pymigrate.transport import pages
from pymigrate.transport.frames import Kind as Frames
from pymigrate.transport.lane import Lane, Way
from pymigrate.transport.pages import PAGE, Kind, News, Run, Runs, Stage

PROCESS_NAME = "pymigrate-lane"
CONNECTING = 1.0  # seconds for the target to let us in
LONGEST = 1 << 16  # bytes of one word from who started us
TOLD = 0.002  # seconds between two words of how often we were asked
WINDOW = 16  # pages from the one that is wanted on, which go with it: each costs 10 µs

_CONNECTED, _ASKED, _LOST, _FAILED = "connected", "asked", "lost", "failed"


def answer(memory: Memory, address: int, buffer: bytearray) -> int:
    """Put the page at an address, and some behind it, into a buffer as a batch; return its length.

    Raises MigrationError if the process has no such memory any more.
    """
    try:
        here = memory.has_pages(address, WINDOW)
    except ProcessLookupError as error:
        raise MigrationError(f"there is no memory of process {memory.inner}: {error}") from error
    count = alike(here)
    if not here[0]:
        zeros = Runs.of([Run(address, count, Kind.ZERO)])
        return pages.seal(buffer, 0, Stage.FINAL, memory.inner, zeros)
    view = memoryview(buffer)[: count * PAGE]
    got = memory.read([Range(address, address + len(view))], view) // PAGE
    if not got:
        raise MigrationError(f"memory of process {memory.inner} at {address:#x} cannot be read")
    content = Runs.of([Run(address, got, Kind.CONTENT)])
    return pages.seal(buffer, got, Stage.FINAL, memory.inner, content)


def alike(flags: Sequence[bool]) -> int:
    """Return how many at the beginning are as the first one is."""
    return next((at for at, each in enumerate(flags) if each != flags[0]), len(flags))


class WantedSender:
    """Answers by one lane; the processes are told later than the lane is there."""

    def __init__(self, lane: Lane, keeper: socket.socket) -> None:
        """Answer by the lane, tell the ``keeper``, and end with it."""
        self._lane = lane
        self._keeper = keeper
        self._memories = Memories()
        self._are_known = threading.Event()
        self._buffer = bytearray(WINDOW * PAGE + pages.TRAILER)
        self._asked = 0
        self._told = 0.0  # time.monotonic()

    def run(self) -> int:
        """Answer until the end, which is an exit code: we are killed where all goes well."""
        threading.Thread(target=self._obey, name="keeper", daemon=True).start()
        try:
            while True:
                told = pages.parse_news(self._lane.hear(Frames.EVENT))
                while not self._are_known.wait(1.0):
                    self._lane.keep_alive()
                for kind, inner, address in told:
                    self._answer(kind, inner, address)
                self._tell_asked()
        except TransportError as error:
            tell(self._keeper, _LOST, error.message)
        except PymigrateError as error:
            tell(self._keeper, _FAILED, error.message)
        return 1

    def _answer(self, kind: News, inner: int, address: int) -> None:
        memory = self._memories.by_inner.get(inner)
        if kind is not News.WANTED or address % PAGE or address >= pages.MAX_ADDRESS:
            raise ProtocolError(f"the target said {kind.name} {address:#x} where it asks for pages")
        if memory is None:
            raise MigrationError(
                f"the target asks for the memory of a process {inner}, there is none"
            )
        length = answer(memory, address, self._buffer)
        self._lane.say(Frames.DATA, memoryview(self._buffer)[:length])
        self._asked += 1

    def _tell_asked(self) -> None:
        """Tell how often we were asked, but not each time: who hears it has other work.

        Who does not listen hears it by the next word.
        """
        now = time.monotonic()
        if now - self._told < TOLD:
            return
        self._told = now
        try:
            tell(self._keeper, _ASKED, [self._asked, self._lane.sent], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return

    def _obey(self) -> None:
        """Hear of the processes; end at once, whatever is being done, when nobody keeps us."""
        pids: list[int] = []
        while word := self._keeper.recv(LONGEST):
            some = json.loads(word)
            pids += some
            if not some:  # that was all of them
                self._memories = Memories.of(pids)
                self._are_known.set()
        os._exit(0)


def tell(keeper: socket.socket, word: str, value: object, flags: int = 0) -> None:
    """Say one thing to who started us; nothing if it has gone, for then we end too."""
    try:
        keeper.send(json.dumps([word, value]).encode(), flags)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)


def main() -> int:
    """Be that process."""
    syscalls.set_name(PROCESS_NAME)
    keeper = socket.socket(fileno=daemon.CONNECTION_FD)
    keeper.set_inheritable(False)
    word = keeper.recv(LONGEST)
    if not word:
        return 0  # it was not needed
    way = Way.unpack(word)
    try:
        channel = way.connect(CONNECTING)
    except PymigrateError as error:
        tell(keeper, _FAILED, error.message)
        return 1
    sender = WantedSender(Lane(channel, interval=way.interval, silence=way.silence), keeper)
    tell(keeper, _CONNECTED, None)
    priority.favour()
    gc.freeze()
    return sender.run()


if __name__ == "__main__":
    sys.exit(main())
