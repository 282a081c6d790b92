"""Walk a tree in its one canonical order, describing every member and opening the files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from pymigrate.runtime.errors import HostError
from pymigrate.runtime.tree_format import (
    MAX_DEPTH,
    MAX_EXTENTS,
    MAX_NAME,
    Kind,
    Member,
    shown,
)
from pymigrate.runtime.values import dataclass, field

# Other security attributes belong to the host: labels of its SELinux policy, keys of its IMA.
_CAPABILITY = b"security.capability"
_OVERLAY = b"trusted.overlay."
OPAQUE = _OVERLAY + b"opaque"  # "y" on a directory that hides what lower layers have there
# What overlayfs remembers about the lower file by file handle or by counting; on another disk it
# is wrong, and without it a file is simply not known to be a copy.
# Documentation/filesystems/overlayfs.rst, "Sharing and copying layers".
_OVERLAY_OF_THIS_DISK = frozenset(
    _OVERLAY + name for name in (b"origin", b"impure", b"nlink", b"uuid", b"upper")
)
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


def travels(xattr: bytes, *, overlay: bool, layer: bool = False) -> bool:
    """Return whether an extended attribute is part of a tree (of an overlay's upper directory).

    Of an image's ``layer`` only the mark of an opaque directory is: no other has a meaning there.
    """
    if xattr.startswith(_OVERLAY):
        if layer:
            return xattr == OPAQUE
        return overlay and xattr not in _OVERLAY_OF_THIS_DISK
    return not xattr.startswith(b"security.") or xattr == _CAPABILITY


def attributes(
    file: int | bytes, *, overlay: bool, layer: bool = False
) -> tuple[tuple[bytes, bytes], ...]:
    """Return the extended attributes that travel of an open file, or of a path not followed."""
    follow = isinstance(file, int)  # a descriptor knows no other way
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise
    if not names:
        return ()
    return tuple(
        (name, os.getxattr(file, name, follow_symlinks=follow))
        for name in sorted(map(os.fsencode, names))
        if travels(name, overlay=overlay, layer=layer)
    )


@dataclass()
class _Level:
    """A directory being walked; the descriptor belongs to the walk."""

    descriptor: int
    prefix: bytes
    names: Iterator[bytes]


@dataclass()
class Walk:
    """A walk over the tree in the open directory ``root``, which stays the caller's.

    Directories come before what is in them, names in the order of their bytes. Of hard links the
    first one is the file. Mount points are listed, what is mounted there is not.
    """

    root: int
    overlay: bool = False
    sparse: bool = False
    layer: bool = False
    _levels: list[_Level] = field(default_factory=list)
    _linked: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _device: int = 0

    def members(self) -> Iterator[tuple[Member, int]]:
        """Yield each member and, for a file with content, a descriptor (else -1).

        The descriptor is closed when the next member is asked for.

        Raises:
            HostError: a file changed meanwhile, or cannot travel (its name is too long).
            OSError: a file cannot be read.

        """
        status = os.fstat(self.root)
        self._device = status.st_dev
        yield self._describe(b"", Kind.DIRECTORY, status, self._xattrs(self.root)), -1
        try:
            self._enter(os.dup(self.root), b"")
            while self._levels:
                level = self._levels[-1]
                name = next(level.names, None)
                if name is None:
                    os.close(self._levels.pop().descriptor)
                    continue
                yield from self._member(level, name)
        finally:
            while self._levels:
                os.close(self._levels.pop().descriptor)

    def file(self, descriptor: int, name: bytes) -> Member:
        """Describe one open regular file that is copied by itself.

        Raises:
            HostError: it is something else.

        """
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise HostError(f"{shown(name)} is neither a file nor a directory")
        extents = _extents(descriptor, status) if self.sparse else None
        return self._describe(name, Kind.FILE, status, self._xattrs(descriptor), extents=extents)

    def _enter(self, descriptor: int, prefix: bytes) -> None:
        names = sorted(map(os.fsencode, os.listdir(descriptor)))
        self._levels.append(_Level(descriptor, prefix, iter(names)))
        if len(self._levels) > MAX_DEPTH:
            raise HostError(f"{shown(prefix[:60])}…: more than {MAX_DEPTH} directories deep")

    def _member(self, level: _Level, name: bytes) -> Iterator[tuple[Member, int]]:
        path = level.prefix + name
        if len(path) > MAX_NAME:
            raise HostError(f"{shown(path[:60])}…: the name is too long to travel")
        try:
            status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
        except FileNotFoundError as error:
            raise _changed(path) from error
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind is not Kind.DIRECTORY and status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                yield self._describe(path, Kind.HARDLINK, status, (), target=first), -1
                return
        if kind in (Kind.DIRECTORY, Kind.FILE):
            yield from self._opened(level, name, kind, status)
            return
        target = os.readlink(name, dir_fd=level.descriptor) if kind is Kind.SYMLINK else b""
        # There is no getxattrat before Linux 6.13, and opening a device has effects.
        xattrs = self._xattrs(b"/proc/self/fd/%d/%s" % (level.descriptor, name))
        yield self._describe(path, kind, status, xattrs, target=target), -1

    def _opened(
        self, level: _Level, name: bytes, kind: Kind, before: os.stat_result
    ) -> Iterator[tuple[Member, int]]:
        path = level.prefix + name
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        if kind is Kind.DIRECTORY:
            flags |= os.O_DIRECTORY
        try:
            descriptor = _open_quietly(name, flags, level.descriptor)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise _changed(path) from error
            raise
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (before.st_dev, before.st_ino):
                raise _changed(path)
            xattrs = self._xattrs(descriptor)
            if kind is Kind.DIRECTORY:
                yield self._describe(path, kind, status, xattrs), -1
                if status.st_dev == self._device:
                    self._enter(os.dup(descriptor), path + b"/")
                return
            extents = _extents(descriptor, status) if self.sparse else None
            yield self._describe(path, kind, status, xattrs, extents=extents), descriptor
        finally:
            os.close(descriptor)

    def _xattrs(self, file: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
        return attributes(file, overlay=self.overlay, layer=self.layer)

    @staticmethod
    def _describe(
        path: bytes,
        kind: Kind,
        status: os.stat_result,
        xattrs: tuple[tuple[bytes, bytes], ...],
        *,
        target: bytes = b"",
        extents: tuple[tuple[int, int], ...] | None = None,
    ) -> Member:
        number = status.st_rdev if kind in (Kind.CHARACTER, Kind.BLOCK) else 0
        return Member(
            name=path,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            size=status.st_size if kind is Kind.FILE else 0,
            target=target,
            device=(os.major(number), os.minor(number)),
            xattrs=xattrs,
            extents=extents,
        )


def _open_quietly(name: bytes, flags: int, directory: int) -> int:
    """Open without touching the access time, which only root and the owner may ask for."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(name, flags, dir_fd=directory)


def _extents(descriptor: int, status: os.stat_result) -> tuple[tuple[int, int], ...] | None:
    """Return the pieces of a file that are not holes; None if it has no holes worth a map."""
    if status.st_blocks * 512 >= status.st_size:
        return None
    found: list[tuple[int, int]] = []
    position = 0
    while position < status.st_size and len(found) < MAX_EXTENTS - 1:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), status.st_size)
        if start >= end:
            break
        found.append((start, end - start))
        position = end
    else:
        if position < status.st_size:  # shattered beyond a map's size: zeros are cheaper
            return None
    if found == [(0, status.st_size)]:
        return None
    # GNU tar ends a map so; without it a hole at the end would be lost on older readers.
    return (*found, (status.st_size, 0))


def _changed(path: bytes) -> HostError:
    return HostError(
        f"{shown(path)} changed while it was being read", hint="stop what writes there, then retry"
    )
