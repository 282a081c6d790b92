"""Which pages of running processes were written since they were last asked about.

Kernels without soft-dirty bits can tell it too, since Linux 6.7: memory that is registered with a
userfaultfd for write protection, in its asynchronous mode, takes the first write to each protected
page by itself and remembers it; PAGEMAP_SCAN tells what was written and protects it again, in one
step (admin-guide/mm/pagemap.rst, admin-guide/mm/userfaultfd.rst). The descriptor must be made by
the process itself, see ``tracee.py``.

It fails to the safe side: memory that is new, was moved or belongs to a process that could not be
asked counts as written. So does all memory of a process into which a device may still write what
was asked for before: one with rings of asynchronous I/O, or with files open past the page cache
(O_DIRECT). Pages that the kernel holds on to for that are written without any fault.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pymigrate.runtime import syscalls, tracee, userfault
from pymigrate.runtime.memory import Area, Memory, Range, Regions
from pymigrate.runtime.proc_links import gone_if_ended

_NOWHERE: Regions = np.zeros((0, 2), np.uint64)
_PROGRAM = (sys.executable, "-I", "-m", tracee.__name__)
_FLAGS = re.compile(r"^flags:\s*([0-7]+)$", re.MULTILINE)
_PATIENCE = 5.0  # seconds for one process to be asked

_UNTRACKED = (errno.EBUSY, errno.EINVAL, errno.ENOMEM, errno.EPERM, errno.ESRCH, errno.ENOTTY)


class WriteTracking:
    """Watches the memory of processes from `watch` until it is closed. For one thread at a time."""

    def __init__(self) -> None:
        """Watch nobody yet."""
        self._descriptors: dict[int, int] = {}
        self._asked: set[int] = set()

    def watch(self, pids: Collection[int]) -> None:
        """Begin with those that were not asked before; each stands still for about a millisecond.

        Nothing is wrong with those that cannot be watched: all they have counts as written.
        """
        self.mistrust()
        fresh = sorted(pid for pid in set(pids) - self._asked if not _reads_directly(pid))
        if not fresh or not is_here():
            return
        self._asked.update(fresh)
        for pid, fd in _ask(fresh):
            try:
                userfault.agree(fd, userfault.WP_ASYNC)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EINVAL:
                    raise
            else:
                self._descriptors[pid] = fd

    def mistrust(self) -> None:
        """Watch no more who has files open past the page cache.

        To be called before and after one has looked: a device that wrote into a page after it was
        protected, and even after it was read, did so for a file that was open then.
        """
        for pid in [pid for pid in self._descriptors if _reads_directly(pid)]:
            os.close(self._descriptors.pop(pid))

    def written(self, memory: Memory, area: Area) -> Iterable[Range]:
        """Return where pages were written since the last time, all at the first; begin anew.

        What is written to them from now on is told the next time: they are protected on return,
        and were not read yet.
        """
        fd = self._descriptors.get(memory.pid, -1)
        if fd < 0 or memory.has_rings:
            return memory.pages(area)
        try:
            found = memory.written(area, all_of_it=False)
            # If it is ours, this does nothing; if it is another's (after execve(), say), it fails.
            userfault.track(fd, area.start, area.length)
        except OSError as error:
            if error.errno != errno.EPERM:
                return _unless_strange(error, memory, area)
        else:
            return found
        try:
            userfault.track(fd, area.start, area.length)
            # All: before Linux 6.13, memory that was moved kept marks which mean nothing.
            return memory.written(area, all_of_it=True)
        except OSError as error:
            return _unless_strange(error, memory, area)

    def begin(self, memory: Memory, area: Area) -> None:
        """Begin anew, for one who reads all of it."""
        for _ in self.written(memory, area):
            pass

    def sort(self, memory: Memory, area: Area) -> tuple[Regions, Iterable[Range]]:
        """Return where a frozen process has pages that were not written since, and others."""
        fd = self._descriptors.get(memory.pid, -1)
        if fd < 0 or memory.has_rings:
            return _NOWHERE, memory.pages(area)
        try:
            found = memory.sorted_pages(area)
            userfault.track(fd, area.start, area.length)  # fails if it was another's
        except OSError as error:
            return _NOWHERE, _unless_strange(error, memory, area)
        else:
            return found

    def close(self) -> None:
        """Watch nobody any more; may be repeated."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def is_here() -> bool:
    """Say whether this kernel can do it, and we can on this machine."""
    return syscalls.MACHINE in tracee.MACHINES and userfault.is_here(userfault.WP_ASYNC)


def _reads_directly(pid: int) -> bool:
    """Say whether a process has a file or a disk open with O_DIRECT; also if it cannot be told."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as found, gone_if_ended(pid):
            return any(_is_direct(pid, each) for each in found)
    except (FileNotFoundError, ProcessLookupError):
        return True


def _is_direct(pid: int, descriptor: os.DirEntry[str]) -> bool:
    try:
        mode = descriptor.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return False
        facts = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False  # closed while we looked
    return bool(int(_FLAGS.findall(facts)[0], 8) & os.O_DIRECT)


def _unless_strange(error: OSError, memory: Memory, area: Area) -> Iterable[Range]:
    """Return all pages of an area that cannot be tracked; raise what says nothing of that."""
    if error.errno not in _UNTRACKED:
        raise error
    return memory.pages(area)


def _ask(pids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Have each process make a userfaultfd; yields those that did, and their descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            child = subprocess.Popen(
                [*_PROGRAM, str(theirs.fileno()), str(tracee.PATIENCE), *map(str, pids)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # who ends us must not end it amid its work
            )
        try:
            ours.settimeout(_PATIENCE)
            while True:
                answer, descriptors, _, _ = socket.recv_fds(ours, tracee.ANSWER.size, 1)
                if len(answer) < tracee.ANSWER.size:
                    return
                pid, _ = tracee.ANSWER.unpack(answer)
                for fd in descriptors:
                    yield pid, fd
        except TimeoutError:
            return  # it ends by itself; what it has not told is not tracked
        finally:
            child.wait()
