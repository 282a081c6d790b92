"""Fill the memory of processes that CRIU restores lazily, while they run and change it.

CRIU gives us a userfaultfd for each process, by a socket in its work directory; so a restore is
complete, and its processes may run, while their memory is still on its way. The pager hears which
pages they wait for and tells whoever has them (`wanted`); what arrives is put in place by `fill`
and `zero`. Pages that arrived before there were processes lie aside (`put_aside`), also if the line
is cut and another pager goes on. Once it is said that they hold (`ready.settle`), which may be
before the restore, they need nobody else: see ``ready_placer.py``.

Memory that nobody fills would read as zeros as soon as the last userfaultfd is closed. So each is
also given to a keeper (the container's supervisor): if we are killed, the processes wait, and the
next pager goes on. Until `finish` nothing is closed.

CRIU: criu/uffd.c for the socket's protocol. Kernel: what each event asks of its reader is in
``runtime/userfault.py``.
"""

from __future__ import annotations

import array
import contextlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.checkpoint import space_log
from pymigrate.checkpoint.early_pages import EarlyPages, Keeper
from pymigrate.checkpoint.placing import Hole, Places
from pymigrate.checkpoint.ready import PAGE
from pymigrate.checkpoint.ready_placer import ReadyPlacer
from pymigrate.checkpoint.space import Space
from pymigrate.checkpoint.space_log import SpaceLog
from pymigrate.runtime import priority, syscalls, userfault
from pymigrate.runtime.errors import ProtocolError, RestoreFailed
from pymigrate.runtime.userfault import Event

if TYPE_CHECKING:
    from pymigrate.checkpoint.known_pages import Addresses

Buffer = bytes | memoryview
SOCKET = "lazy-pages.socket"
_PID = struct.Struct("=i")
_FINISHED = 0x52535446  # LAZY_PAGES_RESTORE_FINISHED


class _Closed(Exception):
    """The pager was closed before it had finished."""


class Pager:
    """Fills the memory of one restored container.

    `fill`, `zero` and `answer` are for any thread, `put_aside`, `finish` and what the source says
    to ``ready`` for one; of ours, one hears the processes, one puts in place what is ready.
    ``wanted(inner, address)`` and ``attached(count)`` are called in ours.
    """

    def __init__(
        self,
        directory: Path,
        keeper: Keeper,
        wanted: Callable[[int, int], None],
        attached: Callable[[int], None],
        *,
        room: int,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Listen for CRIU in its work directory; ``room`` bounds what may lie aside, in bytes.

        ``failed`` is called, in our thread, when there is something for `check` to raise.
        """
        self.faults = 0  # times that a process waited
        self._filled = 0  # pages put in place as they came
        self._counting = threading.Lock()
        self._directory = directory
        self._keeper = keeper
        self._wanted = wanted
        self._attached = attached
        self._failed = failed
        self._failure: BaseException | None = None
        self._early = EarlyPages(keeper, room)
        self._places = Places(self.check)
        self.ready = ReadyPlacer(self._places, self._early, self._fail, room=room)
        """What holds already, and is put in place as soon as there are processes."""
        self._socket = 0  # its inode
        self._count = 0
        self._selector = selectors.PollSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._hear, name="pager", daemon=True)
        self._resume_or_listen()
        self._thread.start()
        self.ready.start()

    # The processes.

    def _resume_or_listen(self) -> None:
        """Take up what a pager before us has left with the keeper; else wait for CRIU."""
        space_log.end_others(self._directory)
        kept = dict(self._keeper.kept())
        self._early.take_over(kept)
        self._log = SpaceLog(self._directory, self._keeper, kept)
        if kept:
            for space in self._log.spaces(kept):
                self._add(space)
            self._count = len(kept)
            self._attach()
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (self._directory / SOCKET).unlink(missing_ok=True)  # of a pager that was killed
            # A path through /proc: those of sockets may only have 107 bytes (unix(7)).
            listener.bind(f"/proc/self/fd/{directory}/{SOCKET}")
            listener.listen(1)
            self._socket = (self._directory / SOCKET).stat().st_ino
        finally:
            os.close(directory)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._selector.unregister(listener)
        listener.close()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, self._take_process)

    def _take_process(self, connection: socket.socket) -> None:
        """Take what CRIU says: a PID and then its userfaultfd, or that the restore is finished."""
        data = connection.recv(_PID.size)
        if not data:
            self._selector.unregister(connection)
            connection.close()
            return
        if len(data) != _PID.size:
            raise ProtocolError("criu's words to its pager were cut")
        (pid,) = _PID.unpack(data)
        if pid == _FINISHED:
            self._attach()
        elif pid > 0:  # of a zombie, which has no memory, it is negative
            space = Space(str(self._count), _receive_descriptor(connection), pid)
            self._add(space)
            self._count += 1
            self._log.restored(space)

    def _attach(self) -> None:
        self.ready.attach()
        self._attached(self._count)

    def _add(self, space: Space) -> None:
        os.set_blocking(space.fd, False)
        self._keeper.keep(space.name, space.fd)
        self._places.add(space)
        self._selector.register(space.fd, selectors.EVENT_READ, space)

    def _hear(self) -> None:
        priority.favour()
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is None:
                        return
                    if isinstance(key.data, Space):
                        self._read_messages(key.data)
                    else:
                        key.data(key.fileobj)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error  # raised by `check`, in the thread that fills
        self._failed()
        self.ready.stop()

    def _read_messages(self, space: Space) -> None:
        """Do what the messages ask for; a change of memory is over before anything is filled.

        The kernel lets a process go on, and us fill, once the message of its change was read: so
        nothing may be filled between the reading and the doing.
        """
        wanted = []
        with self._places.changing.urgent():
            for message in self._log.hear(space):
                if message.event == Event.PAGEFAULT:
                    address = message.b & -PAGE
                    wanted.append((address, space.layout.origin(address)))
                else:
                    self._change(space, message)
            self._log.heard()
        for here, origin in wanted:
            self.faults += 1
            if origin is None:
                self.ready.clear(Hole(space, here))
            elif not self.ready.want(space.inner, origin):
                self._wanted(space.inner, origin)

    def _change(self, space: Space, message: userfault.Message) -> None:
        """Follow a change.

        What it concerns still has a userfaultfd, or may have one again: a mapping that grows in
        place keeps it for all that it grows over. What is a hole is answered by zeros, and never by
        what the source had there. Who waits for a page there waits for one that was asked for
        before: it tries again.
        """
        a, b, length = message.a, message.b, message.c
        if message.event == Event.FORK:
            self._follow_fork(space, a & 0xFFFFFFFF)
            return
        # What was given back stays registered, or it would be a mapping of its own from now on: and
        # mremap() refuses (EFAULT) what is more than one.
        self._log.follow(space, message)
        if message.event == Event.REMAP:
            userfault.wake(space.fd, a, length)
            userfault.wake(space.fd, b, length)
        else:
            userfault.wake(space.fd, a, b - a)

    def _follow_fork(self, space: Space, descriptor: int) -> None:
        child = Space(str(self._count), descriptor, space.inner, space.layout.forked())
        self._count += 1
        os.set_blocking(child.fd, False)
        # First: what nobody holds reads as zeros, and what nothing is known of is refused.
        self._keeper.keep(child.name, child.fd)
        self._places.spaces.append(child)
        self._selector.register(child.fd, selectors.EVENT_READ, child)
        self._log.forked(space, child)

    # What arrives.

    def check(self) -> None:
        """Raise what went wrong while the processes were heard."""
        if self._failure is not None:
            raise RestoreFailed(
                f"the memory cannot be filled any more: {self._failure}"
            ) from self._failure

    def put_aside(self, inner: int, address: int, content: memoryview) -> None:
        """Keep pages that may still change where they come from. Raises NoSpace over the bound."""
        self._early.put(inner, address, content)

    def holds(self, inner: int) -> bool:
        """Say whether anything of a process lies aside."""
        return self._early.holds(inner)

    def fill(self, inner: int, address: int, content: memoryview) -> None:
        """Put pages in place, wherever they belong by now."""
        source = syscalls.address_of(content)
        self.ready.has_come(inner, address)
        self._places.place(inner, address, len(content), source)
        self._count_filled(len(content))

    def fill_all(
        self, inner: int, addresses: Addresses, pages: Addresses, content: memoryview
    ) -> None:
        """Do so for runs of pages of one process, whose content is one behind the other."""
        source = syscalls.address_of(content)
        for address, length in zip(addresses.tolist(), (pages * PAGE).tolist(), strict=True):
            self.ready.has_come(inner, address)
            self._places.place(inner, address, length, source)
            source += length
        self._count_filled(len(content))

    def zero(self, inner: int, address: int, length: int) -> None:
        """Put pages of zeros in place."""
        self.ready.has_come(inner, address)
        self._places.place(inner, address, length, None)
        self._count_filled(length)

    def answer(self, inner: int, address: int, length: int, content: memoryview | None) -> None:
        """Put pages in place that were waited for, or zeros, before all else; in any thread.

        They are not counted, and need not be the only ones to come: where no memory is registered
        yet they are passed over, and what is in place already stays as it is.
        """
        source = None if content is None else syscalls.address_of(content)
        self._places.place(inner, address, length, source, is_urgent=True)
        for at in range(address, address + length, PAGE):
            self.ready.has_come(inner, at)

    def _count_filled(self, length: int) -> None:
        with self._counting:
            self._filled += length // PAGE

    @property
    def filled(self) -> int:
        """Pages put in place so far."""
        return self._filled + self.ready.placed

    @property
    def is_alone(self) -> bool:
        """Whether all processes have ended, as far as filling them has shown."""
        return self._places.are_gone

    def finish(self) -> None:
        """Let go: everything is in place, and what is still absent is zeros."""
        self.ready.finish()  # first: it needs to be told of changes
        self._stop()
        self.check()
        self._keeper.drop_kept()
        self._places.close()
        self._log.end()

    def _stop(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()

    def close(self) -> None:
        """Go away without having finished; the processes wait for the next pager."""
        if self._wake < 0:
            return
        self._failure = self._failure or _Closed()  # what is being put in place gives up
        self.ready.stop()
        self.ready.join()
        self._stop()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._wake)
        self._wake = -1
        self._early.close()
        self._places.close()
        self._log.close()
        path = self._directory / SOCKET
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == self._socket:  # not that of a pager after us
                path.unlink()


def _receive_descriptor(connection: socket.socket) -> int:
    connection.settimeout(5.0)
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(4))
    connection.setblocking(False)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found = array.array("i")
            found.frombytes(data[: found.itemsize])
            return found[0]
    raise ProtocolError("criu announced a userfaultfd and sent none")
