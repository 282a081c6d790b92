"""Apply a stream of changes to a tree, whoever sent it, and touch nothing outside of the tree.

Names are resolved by the kernel below the root and through no symbolic link
(`tree_below`); the last part of a name is never followed either. Nothing that is there is replaced:
a name must have been removed, or put aside, before something else is made there, and all removing
comes first. Every number and length is bounded before it is used.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import BadArchive
from pymigrate.runtime.tree import Limits, opened, writing
from pymigrate.runtime.tree_below import DIRECTORY, Directories, split
from pymigrate.runtime.tree_format import Kind, shown
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
    Readable,
    Record,
    Remove,
    Truncate,
    Write,
    Zero,
    decode,
)
from pymigrate.runtime.tree_walk import attributes, travels

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NODES = {
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
_WHITEOUT = (0, 0)
_PUNCH = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True)
class Applied:
    """What was done: names made, and bytes of content."""

    made: int
    bytes: int


def apply(
    stream: Readable,
    into: Path,
    *,
    limits: Limits | None = None,
    overlay: bool = False,
    devices: bool = False,
) -> Applied:
    """Apply the changes in a stream; whatever goes wrong, the tree is then good for nothing.

    ``overlay`` and ``devices`` are those of `tree.read`. The limits are those of one stream.

    Raises:
        BadArchive: the stream is cut, damaged, over the limits, made to do harm, or for a tree
            that is not the one that is here; names the file.
        NoSpace: the disk is full.
        HostError: the files cannot be changed for another reason.

    """
    with (
        writing(into),
        opened(into) as root,
        _Applier(root, limits or Limits(), overlay=overlay, devices=devices) as applier,
    ):
        for record in decode(stream):
            applier.apply(record)
        return Applied(applier.made, applier.bytes)


class _Applier:
    def __init__(self, root: int, limits: Limits, *, overlay: bool, devices: bool) -> None:
        self.made = 0
        self.bytes = 0
        self._root = root
        self._limits = limits
        self._overlay = overlay
        self._devices = devices
        self._directories = Directories(root)
        self._stash: bytes | None = None
        self._stash_made = False
        self._order = 0  # of the kinds of records: header, keep, remove, the others
        self._file: int | None = None
        self._name = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        self._directories.forget()

    def apply(self, record: Record) -> None:
        """Do what a record says."""
        order = 0 if isinstance(record, Header) else _ORDER.get(type(record), 3)
        if order < self._order or (self._stash is None) != (order == 0):
            raise BadArchive("changes to files in an impossible order")
        if order != self._order:
            self._directories.forget()  # they may have gone
            self._order = order
        name = getattr(record, "name", self._name)
        try:
            self._apply(record)
        except OSError as error:
            raise _explained(error, name) from error

    def _apply(self, record: Record) -> None:  # noqa: PLR0912 - one line for each kind of record
        match record:
            case Write(offset, data):
                self._write(offset, memoryview(data))
            case Dress():
                self._dress(record)
            case MakeFile(name):
                self._make_file(name)
            case OpenFile(name):
                self._open_file(name)
            case Zero(offset, length):
                self._zero(offset, length)
            case Truncate(size):
                os.ftruncate(self._current(), size)
            case MakeDirectory(name):
                directory, base = self._at(name, makes=True)
                os.mkdir(base, 0o700, dir_fd=directory)
            case MakeNode():
                self._make_node(record)
            case Link(name, target):
                self._link(name, target)
            case Place(number, name):
                self._place(number, name)
            case Keep(number, name):
                self._keep(number, name)
            case Remove(name):
                self._remove(name)
            case Header(stash):
                self._stash = stash
            case End():
                self._end()

    def _at(self, name: bytes, *, makes: bool = False) -> tuple[int, bytes]:
        """Return the open directory of a name, and its last part; closes the open file."""
        self._close()
        if makes:
            self.made += 1
            if self.made > self._limits.max_files:
                raise BadArchive(f"{shown(name)}: more than {self._limits.max_files} files")
            if self._stash is not None and name.split(b"/", 1)[0] == self._stash:
                raise BadArchive(f"{shown(name)}: a name that is ours")
        parent, base = split(name)
        return self._directories.get(parent), base

    def _current(self) -> int:
        if self._file is None:
            raise BadArchive("content that belongs to no file")
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # What is there, put aside or removed

    def _keep(self, number: int, name: bytes) -> None:
        stash = self._stash or b""
        if not self._stash_made:
            os.mkdir(stash, 0o700, dir_fd=self._root)
            self._stash_made = True
        directory, base = self._at(name)
        if not stat.S_ISREG(os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode):
            raise _other(name)
        aside = os.open(stash, DIRECTORY, dir_fd=self._root)
        try:
            # rename(2) would replace a file that has the number already.
            os.link(base, b"%d" % number, src_dir_fd=directory, dst_dir_fd=aside,
                    follow_symlinks=False)  # fmt: skip
            os.unlink(base, dir_fd=directory)
        finally:
            os.close(aside)

    def _remove(self, name: bytes) -> None:
        directory, base = self._at(name)
        if stat.S_ISDIR(os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode):
            self._remove_tree(base, directory)
        else:
            os.unlink(base, dir_fd=directory)

    @staticmethod
    def _remove_tree(base: bytes, directory: int) -> None:
        # By descriptors: it follows no symbolic link (shutil.rmtree.avoids_symlink_attacks).
        shutil.rmtree(os.fsdecode(base), dir_fd=directory)

    def _end(self) -> None:
        self._close()
        if self._stash_made:
            self._remove_tree(self._stash or b"", self._root)
            self._stash_made = False

    # What is made

    def _make_file(self, name: bytes) -> None:
        directory, base = self._at(name, makes=True)
        self._file = os.open(base, _NEW_FILE, 0o600, dir_fd=directory)
        self._name = name

    def _open_file(self, name: bytes) -> None:
        directory, base = self._at(name)
        # Nobody else changes this tree, so what is looked at is what is opened.
        if not stat.S_ISREG(os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode):
            raise _other(name)
        self._file = os.open(base, _OLD_FILE, dir_fd=directory)
        self._name = name

    def _place(self, number: int, name: bytes) -> None:
        directory, base = self._at(name, makes=True)
        if not self._stash_made:
            raise BadArchive(f"{shown(name)}: nothing was put aside")
        aside = os.open(self._stash or b"", DIRECTORY, dir_fd=self._root)
        try:
            kept = b"%d" % number
            os.link(kept, base, src_dir_fd=aside, dst_dir_fd=directory, follow_symlinks=False)
            os.unlink(kept, dir_fd=aside)
        finally:
            os.close(aside)
        self._file = os.open(base, _OLD_FILE, dir_fd=directory)  # a regular file: _keep looked
        self._name = name

    def _link(self, name: bytes, target: bytes) -> None:
        parent, wanted = split(target)
        directory, base = self._at(name, makes=True)
        directory = os.dup(directory)  # finding the other one may close this one
        try:
            source = self._directories.get(parent)
            os.link(wanted, base, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(directory)

    def _make_node(self, record: MakeNode) -> None:
        directory, base = self._at(record.name, makes=True)
        if record.kind is Kind.SYMLINK:
            os.symlink(record.target, base, dir_fd=directory)
            return
        device = 0
        if record.kind in (Kind.CHARACTER, Kind.BLOCK):
            whiteout = record.kind is Kind.CHARACTER and record.device == _WHITEOUT
            if not (self._devices or (whiteout and self._overlay)):
                raise BadArchive(f"{shown(record.name)}: a device node, which is not allowed")
            device = os.makedev(*record.device)
        os.mknod(base, _NODES[record.kind] | 0o600, device, dir_fd=directory)

    # Content

    def _count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self._limits.max_bytes:
            raise BadArchive(f"{shown(self._name)}: more than {self._limits.max_bytes} bytes")

    def _write(self, offset: int, data: memoryview) -> None:
        descriptor = self._current()
        self._count(len(data))
        while data:
            written = os.pwrite(descriptor, data, offset)
            offset += written
            data = data[written:]

    def _zero(self, offset: int, length: int) -> None:
        descriptor = self._current()
        length = min(length, os.fstat(descriptor).st_size - offset)
        if length <= 0:
            return
        try:
            syscalls.fallocate(descriptor, _PUNCH, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            while length:
                piece = memoryview(_ZEROS)[:length]
                self._write(offset, piece)
                offset += len(piece)
                length -= len(piece)

    # All but content

    def _dress(self, record: Dress) -> None:
        if self._file is not None:
            if record.name != self._name:
                raise BadArchive(f"{shown(record.name)}: another file is open")
            self._dress_open(self._file, record)
            self._close()
            return
        if not record.name:
            self._end()  # what is removed changes the root's time, which is set now
            self._dress_open(self._root, record)
            return
        directory, base = self._at(record.name)
        mode = os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            self._dress_open(self._directories.get(record.name), record)
        elif stat.S_ISREG(mode):
            raise BadArchive(f"{shown(record.name)}: a file that is not open")
        else:
            self._dress_node(directory, base, record, link=stat.S_ISLNK(mode))

    def _dress_open(self, descriptor: int, record: Dress) -> None:
        """Set all of it. chown clears set-user-id bits and capabilities, so it is first."""
        os.fchown(descriptor, record.uid, record.gid)
        self._strip(descriptor, record)  # an ACL must go before the mode is set
        os.fchmod(descriptor, record.mode)
        for key, value in record.xattrs:
            if travels(key, overlay=self._overlay):
                os.setxattr(descriptor, key, value)
        os.utime(descriptor, ns=(record.mtime_ns, record.mtime_ns))

    def _dress_node(self, directory: int, base: bytes, record: Dress, *, link: bool) -> None:
        os.chown(base, record.uid, record.gid, dir_fd=directory, follow_symlinks=False)
        # The directory is known; the last part is not followed.
        path = b"/proc/self/fd/%d/%s" % (directory, base)
        self._strip(path, record)
        if not link:
            os.chmod(base, record.mode, dir_fd=directory)  # looked at just now: no link
        for key, value in record.xattrs:
            if travels(key, overlay=self._overlay):
                os.setxattr(path, key, value, follow_symlinks=False)
        times = (record.mtime_ns, record.mtime_ns)
        os.utime(base, ns=times, dir_fd=directory, follow_symlinks=False)

    def _strip(self, file: int | bytes, record: Dress) -> None:
        """Remove the attributes that are not among the new ones."""
        wanted = {key for key, _ in record.xattrs}
        for key, _ in attributes(file, overlay=self._overlay):
            if key not in wanted:
                os.removexattr(file, key, follow_symlinks=isinstance(file, int))


_ORDER: dict[type, int] = {Keep: 1, Remove: 2}


def _other(name: bytes) -> BadArchive:
    return BadArchive(f"{shown(name)}: changes to a file that is none here")


def _explained(error: OSError, name: bytes) -> Exception:
    """Return what the kernel's refusal means."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
        return BadArchive(f"{shown(name)}: changes to what is not here ({error.strerror})")
    if error.errno == errno.EEXIST:
        return BadArchive(f"{shown(name)}: is there already")
    named = OSError(error.errno, error.strerror)
    named.filename = name
    return named
