"""An index of a tree: what stat(2) says of every name, as a value that can be compared.

A second look at a tree is made for the freeze of a migration, so it costs one stat(2) a name and
little else: the kernel changes a file's change time (ctime) with its content, mode, owner, links
and attributes, and a directory's with its names. So equal inode, size and ctime mean that nothing
changed, with exceptions that `tree_doubts` knows.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

from pymigrate.runtime.errors import HostError
from pymigrate.runtime.tree_below import Directories, join, split
from pymigrate.runtime.tree_format import MAX_DEPTH, MAX_NAME, shown

Key = tuple[int, int]
"""A device and an inode: what hard links to one file have in common."""

GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})


class Status(NamedTuple):
    """What stat(2) says; `kind` is S_IFREG and the like, `mode` has 12 bits, times are in ns."""

    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int
    links: int
    number: int
    """The device that a device node stands for, else 0."""

    @property
    def key(self) -> Key:
        """What hard links to one file have in common."""
        return self.device, self.inode

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.kind == stat.S_IFREG


Names = Mapping[bytes, Status]


@dataclass(frozen=True)
class Index:
    """A whole tree. ``directories`` lists each directory's names, parents before what is in them.

    Mount points are listed, what is mounted there is not. Where nothing in a directory changed
    between two looks, both indexes have the very same object for it.
    """

    root: Status
    directories: Mapping[bytes, Names]

    def get(self, name: bytes) -> Status | None:
        """Return what is known of a name, None if it is not there."""
        if not name:
            return self.root
        parent, _, base = name.rpartition(b"/")
        return self.directories.get(parent, {}).get(base)

    def entries(self) -> Iterator[tuple[bytes, Status]]:
        """Yield every name but the root's, parents before what is in them."""
        for directory, names in self.directories.items():
            for base, status in names.items():
                yield join(directory, base), status

    def but(self, changed: Mapping[bytes, Status | None]) -> Index:
        """Return the index with some names as they are given; None: not there."""
        if not changed:
            return self
        directories = dict(self.directories)
        copied: dict[bytes, dict[bytes, Status]] = {}
        for name, status in changed.items():
            parent, base = split(name)
            if parent not in directories:
                continue
            if parent not in copied:
                directories[parent] = copied[parent] = dict(directories[parent])
            if status is None:
                copied[parent].pop(base, None)
            else:
                copied[parent][base] = status
        return Index(self.root, directories)


def status_of(found: os.stat_result) -> Status:
    """Take what we need of a stat(2)."""
    mode = found.st_mode
    kind = stat.S_IFMT(mode)
    return Status(
        kind,
        stat.S_IMODE(mode),
        found.st_uid,
        found.st_gid,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_dev,
        found.st_ino,
        found.st_nlink,
        found.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
    )


def look(
    root: int, known: Index | None = None, doubtful: Set[bytes] = frozenset(), *, still: bool
) -> Index:
    """Return the index of the tree in the open directory ``root``.

    ``known`` is an earlier index: directories whose times are as in it are not listed again,
    except ``doubtful`` ones. ``still`` says that nobody should be changing the tree; what vanishes
    while we look is then an error, else it is left out.

    Raises:
        HostError: a name is too long to travel, or the tree changed although it should not.
        OSError: a directory cannot be read.

    """
    at = status_of(os.fstat(root))
    before = known.directories if known is not None else {}
    found: dict[bytes, Names] = {}
    waiting = [(b"", at, known.root if known is not None else None)]
    with Directories(root) as directories:
        while waiting:
            name, now, was = waiting.pop()
            listed = before.get(name) if now == was and name not in doubtful else None
            try:
                descriptor = directories.get(name)
                names = _names(name, descriptor, before.get(name, {}), listed, still=still)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                if still:
                    raise _changed(name) from error
                continue  # its parent's time tells the next look
            found[name] = names
            old = before.get(name, {})
            waiting += [
                (join(name, base), status, old.get(base))
                for base, status in names.items()
                if status.kind == stat.S_IFDIR and status.device == at.device
            ]
    return Index(at, found)


def _names(name: bytes, descriptor: int, old: Names, listed: Names | None, *, still: bool) -> Names:
    """Return what is in a directory: ``old`` itself, or its values, where nothing changed."""
    same = True
    found: dict[bytes, Status] = {}
    bases = list(listed) if listed is not None else _list(descriptor, name)
    look_at = os.stat
    for base in bases:
        try:
            now = look_at(base, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            if listed is not None:  # its time said otherwise: list it after all
                return _names(name, descriptor, old, None, still=still)
            if still:
                raise
            same = False
            continue
        was = old.get(base)
        if (
            was is not None
            and now.st_ctime_ns == was[6]  # by number: this line runs for every file
            and now.st_ino == was[8]
            and now.st_size == was[4]
        ):
            found[base] = was
        else:
            found[base] = status_of(now)
            same = False
    return old if same and len(found) == len(old) and old else found


def _list(descriptor: int, name: bytes) -> list[bytes]:
    """List a directory; raise what `tree.write` would raise where names are too long."""
    bases = sorted(map(os.fsencode, os.listdir(descriptor)))
    if len(name) + 1 + max(map(len, bases), default=0) > MAX_NAME:
        raise HostError(f"{shown(name[:60])}…: the name is too long to travel")
    if name.count(b"/") + 1 >= MAX_DEPTH:
        raise HostError(f"{shown(name[:60])}…: more than {MAX_DEPTH} directories deep")
    return bases


def _changed(name: bytes) -> HostError:
    return HostError(
        f"{shown(name)} changed while it was being read", hint="stop what writes there, then retry"
    )
