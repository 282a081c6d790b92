"""One tree on its way to another host, in rounds: each sends what changed since the last.

A `Sender` knows what the other side has: the index of the tree as it was sent, and a hash of every
block. While the container runs, a round sends what it finds, and what changes under it the next
round sends again; in the last one everything stands still, and afterwards both trees are equal.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import time_ns

from pymigrate.runtime import tree_doubts
from pymigrate.runtime.errors import HostError
from pymigrate.runtime.tree_below import Directories, split
from pymigrate.runtime.tree_blocks import Blocks, Scan
from pymigrate.runtime.tree_changes import Action, Plan, Step, compare
from pymigrate.runtime.tree_doubts import Stamp
from pymigrate.runtime.tree_format import Kind, shown
from pymigrate.runtime.tree_index import GONE, Index, Key, Status, look, status_of
from pymigrate.runtime.tree_records import (
    Dress,
    End,
    Header,
    Keep,
    Link,
    MakeDirectory,
    MakeFile,
    MakeNode,
    OpenFile,
    Place,
    Record,
    Remove,
    Truncate,
    Write,
    Zero,
)
from pymigrate.runtime.tree_walk import attributes

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NODES = {
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
_MOVERS = (Keep, Remove, MakeDirectory, MakeFile, MakeNode, Place, Link)
_NO_LINK = GONE | {errno.EINVAL}  # it is something else now
_NO_FILE = GONE | {errno.ENXIO, errno.ENODEV}  # a socket, or a whiteout
_UNKNOWN = -1  # a ctime that no file has: to be looked at again


@dataclass(frozen=True)
class _Round:
    """What holds for a whole round: when it began, who wrote then, whether it is the last."""

    began_ns: int
    written: frozenset[Stamp] | None
    last: bool


class Sender:
    """The tree in the open directory ``root``, which stays the caller's."""

    def __init__(
        self, root: int, *, overlay: bool, times_tell: bool | None = None, seed: int | None = None
    ) -> None:
        """Begin with an empty tree at the other side.

        ``overlay`` is that of `tree.write`. ``times_tell`` is what `tree_doubts.times_tell` says,
        and ``seed`` is of the hashes: tests give both.
        """
        self._root = root
        self._overlay = overlay
        self._tells = tree_doubts.times_tell(root) if times_tell is None else times_tell
        self._seed = secrets.randbits(64) if seed is None else seed
        self._sent: Index | None = None
        self._blocks: dict[Key, Blocks] = {}  # of every name that was sent and is no directory
        self._unsettled: dict[Key, Dress] = {}  # what was said of files that may change unseen
        self._targets: dict[Key, bytes] = {}  # of those of them that are symbolic links
        self._written: dict[Key, bytes] = {}
        self._doubtful_directories: dict[bytes, Dress | None] = {}  # and what was said of them
        self._directories = Directories(root)
        # Of the round that is under way
        self._corrections: dict[bytes, Status | None] = {}
        self._instead: dict[bytes, bytes] = {}
        self._linked: dict[bytes, bytes] = {}
        self._touched: set[bytes] = set()
        self.changed = 0
        """How many names the newest round was about."""

    def close(self) -> None:
        """Close descriptors."""
        self._directories.forget()

    def records(
        self,
        written: frozenset[Stamp] | None,
        *,
        last: bool,
        clock: Callable[[], int] = time_ns,
    ) -> Iterator[Record]:
        """Yield a round's records, none if nothing changed; the round counts when all were taken.

        ``written`` is what `tree_doubts.written` returned, after the round before and before this
        call. In the ``last`` round nothing may change any more.

        Raises:
            HostError: a file changed in the last round, or cannot travel.
            OSError: a file cannot be read.

        """
        this = _Round(clock(), written, last)
        self._directories.forget()
        self._corrections.clear()
        self._touched.clear()
        self._instead.clear()
        self._linked.clear()
        index = look(self._root, self._sent, self._doubtful_directories.keys(), still=last)
        old = self._sent or Index(index.root._replace(ctime_ns=_UNKNOWN), {})
        old = old.but({name: was._replace(inode=-1) for name, was in self._other_links(old)})
        plan = compare(old, index, self._doubtful(index, this), self._blocks)
        self.changed = len(plan.steps) + len(plan.remove)
        header: Header | None = Header(_stash(index, old))
        for record in self._all(plan, old, index, this):
            if header is not None:
                yield header
                header = None
            if isinstance(record, _MOVERS):
                self._touched.add(split(record.name)[0])
            yield record
        if header is None:
            yield End()
        # A new name has what the other name of the file has, at the end of the round. The index
        # may be wrong: if a file was removed and another one got its inode while it was made.
        for name, source in self._linked.items():
            self._corrections[name] = self._corrections.get(source) or old.get(source)
        self._sent = self._corrected(index)

    def _other_links(self, old: Index) -> Iterator[tuple[bytes, Status]]:
        """Yield the symbolic links that may have changed unseen, and lead elsewhere now."""
        for key, target in self._targets.items():
            name = self._unsettled[key].name
            was = old.get(name)
            if was is None or was.key != key:
                continue
            parent, base = split(name)
            try:
                found = os.readlink(base, dir_fd=self._directories.get(parent))
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                continue  # the index shows that
            if found != target:
                yield name, was

    def _doubtful(self, index: Index, this: _Round) -> Iterator[bytes]:
        """Yield the names whose times do not say that they are as they were sent."""
        yield from self._doubtful_directories
        yield from (dress.name for dress in self._unsettled.values())
        if this.last and not self._tells:
            yield from (name for name, status in index.entries() if status.is_file)
            return
        for key, name in self._written.items():
            status = index.get(name)
            if this.last or status is None or status.key != key:
                yield name
            elif this.written is not None and tree_doubts.stamp(status) not in this.written:
                yield name  # nobody writes now: what is read now is what it is

    def _all(self, plan: Plan, old: Index, index: Index, this: _Round) -> Iterator[Record]:
        for number, name in enumerate(plan.keep):
            yield Keep(number, name)
        for name in plan.remove:
            yield Remove(name)
        self._forget(plan, old, index)
        numbers = {name: number for number, name in enumerate(plan.keep)}
        for step in plan.steps:
            yield from self._step(step, old, numbers, this)
        for name in plan.directories:
            yield from self._directory(name, plan, index, this)

    def _forget(self, plan: Plan, old: Index, index: Index) -> None:
        """Drop what is known of files that are gone for good."""
        for name in plan.remove:
            was = old.get(name)
            if was is not None and was.links == 1 and was.is_file:
                self._unsettled.pop(was.key, None)
                self._written.pop(was.key, None)
        for name in self._doubtful_directories.keys() - index.directories.keys():
            del self._doubtful_directories[name]

    def _step(
        self, step: Step, old: Index, numbers: dict[bytes, int], this: _Round
    ) -> Iterator[Record]:
        if step.action is Action.LINK:
            source = self._instead.get(step.source, step.source)
            if self._corrections.get(source, step.status) is not None:
                yield Link(step.name, source)
                self._linked[step.name] = source
                return
            self._instead[step.source] = step.name  # the first one vanished: this one is it now
        if step.status.is_directory:
            yield MakeDirectory(step.name)
        elif step.status.is_file:
            first: Record | None = MakeFile(step.name)
            if step.action is Action.CHANGE:
                first = None
            elif step.action is Action.PLACE:
                first = Place(numbers[step.source], step.name)
            yield from self._file(step, first, old.get(step.name), this)
        else:
            yield from self._node(step, old.get(step.name), this)

    def _file(
        self, step: Step, first: Record | None, was: Status | None, this: _Round
    ) -> Iterator[Record]:
        """Send a file's content where it differs. ``first`` opens it at the other side."""
        if isinstance(first, Place):
            yield first  # whatever becomes of it here: it must not stay put aside
        descriptor = self._open(step, this)
        if descriptor is None:
            self._missed(step, was, there=not isinstance(first, MakeFile))
            return
        try:
            status = status_of(os.fstat(descriptor))
            if status.key != step.status.key or not status.is_file:
                if this.last:
                    raise _changed(step.name)
                self._missed(step, was, there=not isinstance(first, MakeFile))
                return
            yield from self._content(step.name, descriptor, status, first, was, this)
        finally:
            os.close(descriptor)

    def _content(
        self,
        name: bytes,
        descriptor: int,
        status: Status,
        first: Record | None,
        was: Status | None,
        this: _Round,
    ) -> Iterator[Record]:
        fresh = isinstance(first, MakeFile)
        before = None if fresh else self._blocks[status.key]
        allocated = os.fstat(descriptor).st_blocks * 512
        scan = Scan(descriptor, status.size, self._seed, before, not this.last, allocated)
        opened = first is not None
        if fresh:
            yield MakeFile(name)
        for record in _contents(scan):
            if not opened:
                yield OpenFile(name)
                opened = True
            yield record
        if this.last and status_of(os.fstat(descriptor)) != status:
            raise _changed(name)
        dress = _dress(name, status, attributes(descriptor, overlay=self._overlay))
        if opened or was != status or self._differs(status, dress):
            if not opened:
                yield OpenFile(name)
            yield dress
        self._took(status, scan.blocks, dress, this)

    def _node(self, step: Step, was: Status | None, this: _Round) -> Iterator[Record]:
        name, status = step.name, step.status
        parent, base = split(name)
        made: MakeNode | None = None
        try:
            directory = self._directories.get(parent)
            if step.action is not Action.DRESS:
                target = b""
                if status.kind == stat.S_IFLNK:
                    target = os.readlink(base, dir_fd=directory)
                device = (os.major(status.number), os.minor(status.number))
                made = MakeNode(name, _NODES[status.kind], device, target)
            # There is no getxattrat before Linux 6.13, and opening a device has effects.
            path = b"/proc/self/fd/%d/%s" % (directory, base)
            dress = _dress(name, status, attributes(path, overlay=self._overlay))
        except OSError as error:
            if error.errno not in _NO_LINK or this.last:
                raise
            self._missed(step, was, there=step.action is Action.DRESS)
            return
        if made is not None:
            yield made
        if made is not None or was != status or self._differs(status, dress):
            yield dress
        self._took(status, Blocks(), dress, this)
        if made is not None and made.target and status.key in self._unsettled:
            self._targets[status.key] = made.target

    def _directory(self, name: bytes, plan: Plan, index: Index, this: _Round) -> Iterator[Record]:
        status = index.get(name)
        if status is None or not status.is_directory:
            return
        if name not in index.directories:
            # What is mounted there does not travel, or it vanished and the next round sees that.
            yield _dress(name, status, ())
            return
        try:
            found = attributes(self._directories.get(name), overlay=self._overlay)
        except OSError as error:
            if error.errno not in GONE or this.last:
                raise
            self._doubtful_directories[name] = None
            return
        dress = _dress(name, status, found)
        # Keeping and placing changes the root, and so does what is kept there for that.
        touched = name in self._touched or (not name and plan.keep)
        if touched or dress != self._doubtful_directories.get(name):
            yield dress
        if tree_doubts.settled(status, this.began_ns):
            self._doubtful_directories.pop(name, None)
        else:
            self._doubtful_directories[name] = dress

    def _open(self, step: Step, this: _Round) -> int | None:
        """Open a file; None if it is there no more."""
        parent, base = split(step.name)
        try:
            directory = self._directories.get(parent)
            try:
                return os.open(base, _FILE | os.O_NOATIME, dir_fd=directory)
            except PermissionError:  # only root and the owner may ask for O_NOATIME
                return os.open(base, _FILE, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NO_FILE:
                error.filename = step.name
                raise
            if this.last:
                raise _changed(step.name) from error
            return None

    def _differs(self, status: Status, dress: Dress) -> bool:
        """Return whether attributes changed without a new ctime; by whichever name of the file."""
        said = self._unsettled.get(status.key)
        return said is not None and replace(said, name=dress.name) != dress

    def _took(self, status: Status, blocks: Blocks, dress: Dress, this: _Round) -> None:
        """Note what the other side has now."""
        key, name = status.key, dress.name
        self._blocks[key] = blocks
        self._corrections[name] = status
        if tree_doubts.settled(status, this.began_ns):
            self._unsettled.pop(key, None)
            self._targets.pop(key, None)
        else:
            self._unsettled[key] = dress
            if status.kind != stat.S_IFLNK:
                self._targets.pop(key, None)
        if status.is_file and (this.written is None or tree_doubts.stamp(status) in this.written):
            self._written[key] = name
        else:
            self._written.pop(key, None)

    def _missed(self, step: Step, was: Status | None, *, there: bool) -> None:
        """Note that a name could not be sent: the other side has it as it was, or not at all."""
        before = step.status if step.action is Action.PLACE else was
        if there and before is not None:
            self._corrections[step.name] = before._replace(ctime_ns=_UNKNOWN)
        else:
            self._corrections[step.name] = None

    def _corrected(self, index: Index) -> Index:
        """Return the index as the other side has it."""
        changed = {
            name: status for name, status in self._corrections.items() if status != index.get(name)
        }
        for name, status in changed.items():
            if status is None:
                # Listed again, although the directory's own time may say nothing.
                self._doubtful_directories.setdefault(split(name)[0], None)
        return index.but(changed)


def _contents(scan: Scan) -> Iterator[Record]:
    """Yield what makes the other side's open file into what is read here."""
    expected = scan.size
    size = scan.before.size if scan.before is not None else 0
    if scan.before is not None and size != expected:
        yield Truncate(expected)  # first: what is behind the end must be zeros if it grows again
        size = expected
    for piece in scan.pieces():
        if piece.data is None:
            yield Zero(piece.offset, piece.length)
        else:
            yield Write(piece.offset, piece.data)
            size = max(size, piece.offset + piece.length)
    # A hole at the end; or it became shorter, and what the other side has there is not known.
    if size < scan.size or scan.size < expected:
        yield Truncate(scan.size)


def _dress(name: bytes, status: Status, xattrs: tuple[tuple[bytes, bytes], ...]) -> Dress:
    return Dress(name, status.mode, status.uid, status.gid, status.mtime_ns, xattrs)


def _stash(index: Index, old: Index) -> bytes:
    """Return a name for what is put aside that neither tree has in its root."""
    while True:
        name = b".pymigrate-" + secrets.token_hex(8).encode()
        if index.get(name) is None and old.get(name) is None:
            return name


def _changed(name: bytes) -> HostError:
    return HostError(
        f"{shown(name)} changed while it was being read", hint="stop what writes there, then retry"
    )
