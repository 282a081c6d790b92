"""The contents of the tmpfs that we carry: read at the dump, made anew for the restore.

What is mounted in them hides some of it: so each is read by a clone of its mount alone, which is in
no namespace. Such clones are made from inside the container's mounts, before the freeze.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pymigrate.checkpoint.tmpfs import Found, Tmpfs, find
from pymigrate.runtime import mounting, syscalls, tree
from pymigrate.runtime.errors import BadArchive, HostError
from pymigrate.runtime.mount_options import Options
from pymigrate.runtime.mounts import Filesystem

_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLONE = syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC


class Kernel(Protocol):
    """The calls that looking into another's mounts takes; see runtime/syscalls.py."""

    def open_tree(self, fd: int, path: str, flags: int) -> int:
        """See open_tree(2)."""

    def setns(self, fd: int, kinds: int) -> None:
        """See setns(2)."""

    def unshare(self, flags: int) -> None:
        """See unshare(2)."""


class Contents:
    """What a container's carried tmpfs hold, to be read when it stands still."""

    def __init__(self, mountinfo: str, carried: Sequence[tuple[Tmpfs, int]]) -> None:
        """Take the clones, each with what it is a clone of; use `open_of`."""
        self._mountinfo = mountinfo
        self._carried = carried

    @property
    def carried(self) -> tuple[Tmpfs, ...]:
        """What CRIU is to leave to us."""
        return tuple(each for each, _ in self._carried)

    def is_current(self, pid: int) -> bool:
        """Say whether the container's mounts are still those that were looked at."""
        return _mountinfo(pid) == self._mountinfo

    def write(self, images: Path) -> None:
        """Write a file for each beside CRIU's images. HostError or OSError on failure."""
        for number, (_, clone) in enumerate(self._carried):
            with (images / _name(number)).open("xb", buffering=0) as stream:
                os.fchmod(stream.fileno(), 0o600)
                tree.write(Path(f"/proc/self/fd/{clone}"), stream, sparse=True, hashed=False)

    def close(self) -> None:
        """Let go of the clones; may be repeated."""
        carried, self._carried = self._carried, ()
        for _, clone in carried:
            os.close(clone)

    def __enter__(self) -> Self:
        """Let go at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go."""
        self.close()


def open_of(pid: int, left_out: Collection[str], kernel: Kernel = syscalls) -> Contents:
    """Choose among the mounts of a process, and clone what is chosen; for `left_out` see `find`.

    What is covered by another mount is not chosen: it cannot be reached by its path.
    """
    mountinfo = _mountinfo(pid)
    carried: list[tuple[Tmpfs, int]] = []
    with ExitStack() as places, ExitStack() as clones:
        for found, place, clone in _look_inside(pid, find(mountinfo, left_out), kernel):
            places.callback(os.close, place)
            if _mount_of(place) == found.mount:
                clones.callback(os.close, clone)
                carried.append((found.tmpfs, clone))
            else:
                places.callback(os.close, clone)
        clones.pop_all()
    return Contents(mountinfo, carried)


def _look_inside(
    pid: int, wanted: Sequence[Found], kernel: Kernel
) -> Sequence[tuple[Found, int, int]]:
    """Return descriptors of each place and of a clone of its mount; the caller closes both."""
    seen: list[tuple[Found, int, int]] = []
    failures: list[OSError] = []

    def look() -> None:
        try:
            # Only who has a root and a working directory of his own may enter: threads share them.
            kernel.unshare(syscalls.CLONE_FS)
            kernel.setns(theirs, syscalls.CLONE_NEWNS)
        except OSError as error:
            failures.append(error)
            return
        for each in wanted:
            with suppress(OSError):  # it is covered, or gone by now
                place = os.open(each.tmpfs.place, _FLAGS)
                try:
                    seen.append((each, place, kernel.open_tree(place, "", _CLONE)))
                except OSError:
                    os.close(place)

    theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A thread that ends: nobody else is ever in there.
        thread = threading.Thread(target=look, name="in-their-mounts")
        thread.start()
        thread.join()
    finally:
        os.close(theirs)
    for error in failures:
        raise HostError(f"cannot look into the mounts of process {pid}: {error}") from error
    return seen


def _mountinfo(pid: int) -> str:
    path = Path(f"/proc/{pid}/mountinfo")
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _mount_of(descriptor: int) -> int:
    """Return the number of the mount that a descriptor is on: proc_pid_fdinfo(5)."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    return -1


@contextmanager
def made_anew(carried: Sequence[Tmpfs], images: Path) -> Iterator[Sequence[int]]:
    """Make each with what was in it; gives descriptors of mounts that are in no namespace.

    BadArchive for contents that are none; HostError or OSError if they cannot be made.
    """
    with ExitStack() as opened:
        trees = []
        for number, each in enumerate(carried):
            words = (word.partition("=") for word in each.options)
            parameters = tuple((name, value if equals else None) for name, equals, value in words)
            fd = mounting.make_tree(
                Filesystem(each.place, "tmpfs", each.source, Options(parameters=parameters))
            )
            opened.callback(os.close, fd)
            trees.append(fd)
            try:
                stream = (images / _name(number)).open("rb", buffering=0)
            except FileNotFoundError as error:
                raise BadArchive(f"there are no contents of {each.place}") from error
            with stream:
                # Its own size bounds what it takes.
                tree.read(stream, Path(f"/proc/self/fd/{fd}"), devices=True, hashed=False)
        yield trees


def _name(number: int) -> str:
    return f"tmpfs-{number}.tar"
