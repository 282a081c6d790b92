"""The process that brings the memory of a container that runs already: what it waits for, first.

It outlives the command that starts it, and the container's supervisor relies on it. It
reads blocks of pages from where the checkpoint lies (`Pages`), each verified, and gives them to
the pager: a block in which a page is waited for at once, then those that were waited for when this
was restored before, the others in the order of addresses.

It tells the command by a socket that it listens, that all processes are there, or what failed. It
listens before it has opened what it reads: that takes longer than CRIU takes to restore.
Later there is nobody to be told: then the supervisor ends the container and writes the reason down,
for a container without its memory cannot go on, and must not with another.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

from pymigrate.checkpoint import working_set
from pymigrate.checkpoint.early_pages import Keeper
from pymigrate.checkpoint.fill_words import (
    ATTACHED,
    BEGIN,
    FAILED,
    MAX_DESCRIPTORS,
    READY,
    Pages,
    Plan,
)
from pymigrate.checkpoint.memory_map import Extent, PageFile
from pymigrate.checkpoint.pager import Pager
from pymigrate.checkpoint.ready import PAGE
from pymigrate.checkpoint.working_set import Block
from pymigrate.runtime import daemon, launch, lock, priority, syscalls
from pymigrate.runtime.container import KILL_SECONDS, Container
from pymigrate.runtime.errors import HostError, PymigrateError
from pymigrate.runtime.host import Host
from pymigrate.runtime.supervision import Supervision, SupervisorEnded

PROCESS_NAME = "pymigrate-fill"
THREADS = 2
CALM = 0.001
"""Seconds without a block that is waited for, after which others are brought that nobody expects.

So who waits for one page after the other has the processors for itself. Each of these blocks is one
less to be brought, so it ends.
"""

AROUND = 16  # pages of zeros that go with a wanted one

Opened = Callable[[Plan, Sequence[int]], AbstractContextManager[Pages]]
"""Opens what is read, by what was told and the descriptors that came with it."""

Supervised = Callable[[Path], AbstractContextManager[Supervision]]
"""Connects to the supervisor of the container in a directory."""


class _Processes:
    """Where each address of each process lies in the files of pages."""

    def __init__(self, files: Sequence[PageFile]) -> None:
        self._extents: dict[int, tuple[PageFile, list[Extent]]] = {
            file.inner: (file, sorted((*file.lazy, *file.eager), key=lambda each: each.address))
            for file in files
            if file.inner is not None
        }

    def find(self, inner: int, address: int) -> tuple[PageFile, int] | int:
        """Return the file and the offset of a page; else how many bytes of zeros are there."""
        if inner not in self._extents:
            return PAGE  # it had no memory of its own at the dump
        file, extents = self._extents[inner]
        after = bisect.bisect_right(extents, address, key=lambda extent: extent.address)
        if after:
            before = extents[after - 1]
            if address < before.address + before.length:
                return file, before.offset + address - before.address
        if after < len(extents):
            return min(AROUND * PAGE, extents[after].address - address)
        return PAGE


class Filling:
    """Fills one container; `run` returns when nothing is missing, or nobody is left to miss it.

    The caller's thread brings what somebody waits for. Beside it some others bring the rest, each
    one block after the other: it reads, verifies and places it, and nothing is handed over.
    """

    _pages: Pages
    _processes: _Processes

    def __init__(
        self,
        work: Path,
        keeper: Keeper,
        attached: Callable[[], None],
        needed: Sequence[Block] = (),
    ) -> None:
        """Listen for CRIU in its work directory. Of the rest, ``needed`` come first."""
        self._needed = needed
        self.waited_for: list[Block] = []
        self.faults = 0  # pages, of those and of blocks that others were at
        self._attached = attached
        self._heard: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._is_attached = False
        self._expected: Iterator[tuple[PageFile, int]] = iter(())
        self._missing: Iterator[tuple[PageFile, int]] = iter(())
        self._done: set[tuple[str, int]] = set()  # or somebody is at it
        self._busy_until = 0.0  # time.monotonic()
        self._changed = threading.Condition()  # of these four, and of the next two
        self._at_work = 0  # threads that bring the rest
        self._failure: BaseException | None = None
        self._pager = Pager(
            work,
            keeper,
            wanted=lambda inner, address: self._heard.put((inner, address)),
            attached=self._hear_attached,
            failed=lambda: self._heard.put(None),
            room=0,
        )

    def _hear_attached(self, _count: int) -> None:
        self._is_attached = True
        self._heard.put(None)

    def run(self, pages: Pages) -> None:
        """Fill everything; who came before has waited."""
        self._pages = pages
        self._processes = _Processes(pages.files)
        while not self._is_attached:
            heard = self._heard.get()
            self._pager.check()
            self._serve(heard)  # CRIU's own restorer may already wait for a page
        self._be_busy()  # what they need first, they need soon
        self._attached()
        self._expected = working_set.first(pages.files, self._needed)
        self._missing = working_set.others(pages.files)
        others = [threading.Thread(target=self._bring, name="bring") for _ in range(THREADS)]
        self._at_work = len(others)
        try:
            for other in others:
                other.start()
            priority.favour()  # from now on: the others are not to have it from us
            while self._at_work:
                heard = self._heard.get()
                self._pager.check()
                self._serve(heard)
        finally:
            with self._changed:
                self._expected = self._missing = iter(())
                self._be_busy(0.0)
            for other in others:
                if other.ident is not None:  # it was started
                    other.join()
        if self._failure is not None:
            raise self._failure
        self._pager.finish()

    def _be_busy(self, seconds: float | None = None) -> None:
        with self._changed:
            self._busy_until = time.monotonic() + (CALM if seconds is None else seconds)
            self._changed.notify_all()

    def _bring(self) -> None:
        """Bring what nobody waits for, block by block; an error ends it for all."""
        try:
            while not self._pager.is_alone and (taken := self._take()) is not None:
                self._place(*taken, self._pages.block(*taken))
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._expected = self._missing = iter(())
        finally:
            with self._changed:
                self._at_work -= 1
            self._heard.put(None)

    def _take(self) -> tuple[PageFile, int] | None:
        """Return the next block that is missing; None at the end.

        What was waited for the last time is taken at once: who waits now will wait for it next. The
        others, once nobody waits.
        """
        with self._changed:
            while True:
                if (taken := self._new(self._expected)) is not None:
                    return taken
                if (busy := self._busy_until - time.monotonic()) <= 0:
                    return self._new(self._missing)
                self._changed.wait(busy)

    def _new(self, blocks: Iterator[tuple[PageFile, int]]) -> tuple[PageFile, int] | None:
        """Take the next of these that nobody has brought or is at, if there is one."""
        for file, number in blocks:
            if (file.name, number) not in self._done:
                self._done.add((file.name, number))
                return file, number
        return None

    def _serve(self, wanted: tuple[int, int] | None) -> None:
        """Place the page that is waited for, and then what else is in its block."""
        if wanted is None:
            return
        inner, address = wanted
        self.faults += 1
        found = self._processes.find(inner, address)
        if isinstance(found, int):
            self._pager.zero(inner, address, found)
            return
        file, offset = found
        number = file.block_of(offset)
        content = self._pages.block(file, number)
        start = offset - file.begin(number)
        # Also if it was done: what is there stays, and a process that was forked may lack it.
        self._pager.fill(inner, address, memoryview(content)[start : start + PAGE])
        with self._changed:
            is_new = (file.name, number) not in self._done
            self._done.add((file.name, number))
        if is_new:
            self.waited_for.append((file.name, number))
            self._place(file, number, content)
            self._be_busy()

    def _place(self, file: PageFile, number: int, content: bytes) -> None:
        if file.inner is None:
            return
        view = memoryview(content)
        for extent in file.within(number):
            start = extent.offset - file.begin(number)
            self._pager.fill(file.inner, extent.address, view[start : start + extent.length])

    def close(self) -> None:
        """Go away; if something is missing, the processes wait."""
        self._pager.close()


class _WhileSupervised:
    """A supervisor as the pager's keeper. Should it be killed, we are the only one who keeps."""

    def __init__(self, supervision: Supervision) -> None:
        self._supervision = supervision

    def keep(self, name: str, fd: int) -> None:
        with contextlib.suppress(SupervisorEnded):
            self._supervision.keep(name, fd)

    def kept(self) -> Mapping[str, int]:
        return self._supervision.kept()

    def drop_kept(self) -> None:
        with contextlib.suppress(SupervisorEnded):
            self._supervision.drop_kept()


def run(opened: Opened) -> int:
    """Be a filler, as a process."""
    syscalls.set_name(PROCESS_NAME)
    return fill(socket.socket(fileno=daemon.CONNECTION_FD), opened, _relied_on)


@contextlib.contextmanager
def _relied_on(directory: Path) -> Iterator[Supervision]:
    """Say in the supervisor's log what there is to say, and have it rely on us."""
    launch.open_log(directory)
    with Supervision.connect(directory) as supervision:
        supervision.rely()
        yield supervision
        supervision.rely_no_more()


def fill(connection: socket.socket, opened: Opened, supervised: Supervised) -> int:
    """Take the plan from the command, fill, and report; returns the exit code."""
    with connection as command:
        begin, descriptors, _, _ = socket.recv_fds(command, len(BEGIN), MAX_DESCRIPTORS)
        if begin != BEGIN:
            return 0  # the command has ended before it had anything restored
        plan = cast(dict[str, object], json.loads(command.makefile("rb").readline()))
        directory = Path(str(plan["directory"]))

        def tell(word: str, more: str = "") -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not listen
                command.sendall(json.dumps([word, more]).encode() + b"\n")

        def attached() -> None:
            priority.give_way()
            tell(ATTACHED)

        try:
            with supervised(directory) as supervision:
                keeper = _WhileSupervised(supervision)
                hint = Path(str(plan["working_set"]))
                needed = working_set.read(hint)
                filling = Filling(directory / "criu", keeper, attached, needed)
                try:
                    tell(READY)
                    with opened(plan, descriptors) as pages:
                        filling.run(pages)
                except BaseException as error:
                    tell(FAILED, _said(error))
                    # Before anything is closed: who waits for a page must not get zeros.
                    _end(directory, error)
                    raise
                finally:
                    filling.close()
                _keep(hint, [*needed, *filling.waited_for], filling.faults)
        except (OSError, PymigrateError) as error:
            traceback.print_exc(file=sys.stderr)  # the supervisor's log
            tell(FAILED, _said(error))
            return 1
    return 0


def _keep(hint: Path, blocks: Sequence[Block], faults: int) -> None:
    """Note for the next time what was waited for; a disk that is full costs nobody his memory."""
    try:
        working_set.write(hint, blocks, faults)
    except OSError:
        traceback.print_exc(file=sys.stderr)  # the supervisor's log


def _said(error: BaseException) -> str:
    return error.message if isinstance(error, PymigrateError) else str(error)


def _end(directory: Path, error: BaseException) -> None:
    """Have the container ended, with the reason written down."""
    try:
        with Supervision.connect(directory) as supervision:
            supervision.fail(f"its memory could not be brought: {_said(error)}")
    except PymigrateError:
        # The supervisor was killed: nobody but us knows.
        container = Container.open(Host.of_container(directory), directory.name)
        now = container.state()
        container.cgroup.kill()
        if now.init is not None and not lock.await_end(now.init, KILL_SECONDS):
            raise HostError(f"{directory.name} cannot be ended") from error
