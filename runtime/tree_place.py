"""Make the members of an untrusted archive in a directory, and nothing anywhere else.

Every name is resolved one component at a time from descriptors of directories made here, with
O_NOFOLLOW: a symbolic link may point anywhere, but nothing is made through one. Nothing is ever
replaced, so what was checked when it was made stays true; but for ``merge``, where files of the
same name make room, and where a container may change the directory meanwhile: then each step is
safe by itself, since it goes by a descriptor and one name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pymigrate.runtime.errors import BadArchive, UsageError
from pymigrate.runtime.tree_format import Kind, Member, shown
from pymigrate.runtime.tree_walk import OPAQUE, travels

if TYPE_CHECKING:
    from types import TracebackType

    from pymigrate.runtime.tree import Limits

_OPEN_DIRECTORIES = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLE = 1 << 16  # smaller holes save little and shatter the file
_ZEROS = bytes(_HOLE)
_NODES = {
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
WHITEOUT = (0, 0)  # an overlay's mark of a deleted name: a character device 0:0


class Placer:
    """Makes members below the directory ``root``, a descriptor that stays the caller's."""

    def __init__(
        self,
        root: int,
        limits: Limits,
        *,
        overlay: bool,
        devices: bool,
        layer: bool = False,
        merge: bool = False,
        inherited: Callable[[bytes], Member | None] = lambda _: None,
    ) -> None:
        """Nothing is touched yet.

        With ``merge`` the directory need not be empty. ``inherited`` tells how a directory is to
        look that the archive does not mention.
        """
        self.files = 0
        self.bytes = 0
        self._size = 0
        self._root = root
        self._limits = limits
        self._overlay = overlay
        self._devices = devices
        self._merge = merge
        self._layer = layer
        self._inherited = inherited
        self._open: OrderedDict[bytes, int] = OrderedDict()
        # Applied last: making what is in a directory changes its time, and may need its mode.
        self._directories: dict[bytes, Member] = {}

    def __enter__(self) -> Placer:
        """Own the descriptors of directories."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close them."""
        while self._open:
            os.close(self._open.popitem()[1])

    def require_empty(self) -> None:
        """Raise ValueError unless the directory is empty: else its links could lead out."""
        if os.listdir(self._root):  # noqa: PTH208 - a descriptor is no path
            raise ValueError("a tree is only unpacked into an empty directory")

    def place(self, member: Member, content: Iterator[bytes]) -> None:
        """Make one member.

        Raises:
            BadArchive: it would replace or leave something, or exceeds the limits.
            OSError: the kernel refused; carries the name.

        """
        self.count(member)
        if member.kind is Kind.DIRECTORY:
            self._make_directory(member)
            return
        if not member.name:
            raise BadArchive("the root is not a directory")
        parent, _, base = member.name.rpartition(b"/")
        directory = self._directory(parent, member.name)
        try:
            if self._merge:
                _make_room(member.name, base, directory)
            if member.kind is Kind.FILE:
                self._make_file(member, base, directory, content)
            elif member.kind is Kind.HARDLINK:
                self._make_link(member, base, directory)
            else:
                self._make_other(member, base, directory)
        except OSError as error:
            raise _explained(error, member.name) from error

    def count(self, member: Member) -> None:
        """Count a member; BadArchive when it is one too many."""
        self.files += bool(member.name)
        self.bytes += member.data_size
        # The holes of a layer are hashed as zeros, so they cost time; an upper directory's cost
        # nothing.
        self._size += member.data_size if self._overlay else member.size
        if self.files > self._limits.max_files:
            raise BadArchive(f"{shown(member.name)}: more than {self._limits.max_files} files")
        if self._size > self._limits.max_bytes:
            raise BadArchive(f"{shown(member.name)}: more than {self._limits.max_bytes} bytes")

    def find(self, name: bytes) -> os.stat_result | None:
        """Return what was made under a name, None if nothing was."""
        parent, _, base = name.rpartition(b"/")
        if parent and parent not in self._directories:
            return None
        try:
            directory = self._directory(parent, name)
            return os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def white_out(self, name: bytes) -> None:
        """Hide a name of the layers below, as overlayfs does: by a character device 0:0."""
        parent, _, base = name.rpartition(b"/")
        directory = self._directory(parent, name)
        try:
            os.mknod(base, stat.S_IFCHR, os.makedev(*WHITEOUT), dir_fd=directory)
            os.utime(base, ns=(0, 0), dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            raise _explained(error, name) from error

    def make_opaque(self, name: bytes) -> None:
        """Let a directory hide all that the layers below have in it; it is made if need be."""
        self._directory(name, name)
        member = self._directories.get(name) or self._unmentioned(name)
        marked = (*(each for each in member.xattrs if each[0] != OPAQUE), (OPAQUE, b"y"))
        self._directories[name] = member._replace(xattrs=tuple(sorted(marked)))

    def finish(self) -> None:
        """Give the directories their owners, modes, attributes and times, the deepest first."""
        if not self._merge:
            self._directories.setdefault(b"", self._unmentioned(b""))
        for name in sorted(self._directories, reverse=True):  # a name sorts before what is in it
            member = self._directories[name]
            descriptor = self._directory(name, name)
            try:
                self._dress(descriptor, member)
            except OSError as error:
                raise _explained(error, name) from error

    def _directory(self, name: bytes, member: bytes) -> int:
        """Return a descriptor of a directory, making those that the archive did not mention."""
        if not name:
            return self._root
        known = self._open.get(name)
        if known is not None:
            self._open.move_to_end(name)
            return known
        # From the nearest open ancestor down, holding only the last one: a name may be 500 deep.
        parts = name.split(b"/")
        depth = len(parts) - 1
        descriptor = self._root
        while depth:
            nearest = self._open.get(b"/".join(parts[:depth]))
            if nearest is not None:
                descriptor = nearest
                break
            depth -= 1
        for index in range(depth, len(parts)):
            path = b"/".join(parts[: index + 1])
            descriptor = self._step(descriptor, parts[index], path, member)
            self._remember(path, descriptor)
        return descriptor

    def _step(self, parent: int, base: bytes, path: bytes, member: bytes) -> int:
        try:
            return os.open(base, _DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise BadArchive(
                    f"{shown(member)}: its name goes through {shown(path)}, which is no directory"
                ) from error
            raise _explained(error, member) from error
        self._mkdir(base, parent, path)
        self._directories[path] = self._unmentioned(path)
        return os.open(base, _DIRECTORY, dir_fd=parent)

    def _unmentioned(self, path: bytes) -> Member:
        return self._inherited(path) or _usual_directory(path)

    def _remember(self, path: bytes, descriptor: int) -> None:
        self._open[path] = descriptor
        if len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])

    @staticmethod
    def _mkdir(base: bytes, parent: int, path: bytes) -> None:
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except OSError as error:
            raise _explained(error, path) from error

    def _make_directory(self, member: Member) -> None:
        if self._merge and not member.name:
            return
        if member.name:
            parent, _, base = member.name.rpartition(b"/")
            directory = self._directory(parent, member.name)
            try:
                os.mkdir(base, 0o700, dir_fd=directory)
            except FileExistsError as error:
                found = os.stat(base, dir_fd=directory, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    raise _twice(member.name) from error
                if self._merge:
                    return  # it is theirs, and stays as it is
            except OSError as error:
                raise _explained(error, member.name) from error
        self._directories[member.name] = member

    def _make_file(
        self, member: Member, base: bytes, directory: int, content: Iterator[bytes]
    ) -> None:
        descriptor = os.open(base, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            if member.extents is not None:
                _write_extents(descriptor, member, content)
            elif member.size >= _HOLE and not self._overlay:
                _write_without_zeros(descriptor, member, content)
            else:
                _write_plainly(descriptor, content)
            self._dress(descriptor, member)
        finally:
            os.close(descriptor)

    def _make_link(self, member: Member, base: bytes, directory: int) -> None:
        parent, _, target = member.target.rpartition(b"/")
        wanted = shown(member.target)
        if parent and parent not in self._directories and not self._merge:
            raise BadArchive(f"{shown(member.name)}: a hard link to {wanted}, which is not there")
        directory = os.dup(directory)  # finding the other one may close this one
        try:
            source = self._directory(parent, member.name)
            os.link(target, base, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError as error:
            raise BadArchive(
                f"{shown(member.name)}: a hard link to {wanted}, which is not there"
            ) from error
        except PermissionError as error:
            raise BadArchive(
                f"{shown(member.name)}: a hard link to {wanted}, which cannot have one"
            ) from error
        finally:
            os.close(directory)

    def _make_other(self, member: Member, base: bytes, directory: int) -> None:
        if member.kind is Kind.SYMLINK:
            os.symlink(member.target, base, dir_fd=directory)
        else:
            device = 0
            if member.kind in (Kind.CHARACTER, Kind.BLOCK):
                whiteout = member.kind is Kind.CHARACTER and member.device == WHITEOUT
                if not (self._devices or (whiteout and self._overlay)):
                    raise BadArchive(f"{shown(member.name)}: a device node, which is not allowed")
                device = os.makedev(*member.device)
            os.mknod(base, _NODES[member.kind] | 0o600, device, dir_fd=directory)
        os.chown(base, member.uid, member.gid, dir_fd=directory, follow_symlinks=False)
        if member.kind is not Kind.SYMLINK:
            _chmod(base, member.mode, directory)
        if member.xattrs:
            # The directory is known; the last component is not followed.
            path = b"/proc/self/fd/%d/%s" % (directory, base)
            for key, value in self._xattrs(member):
                os.setxattr(path, key, value, follow_symlinks=False)
        times = (member.mtime_ns, member.mtime_ns)
        os.utime(base, ns=times, dir_fd=directory, follow_symlinks=False)

    def _dress(self, descriptor: int, member: Member) -> None:
        """Set all but the content. chown clears set-user-id bits and capabilities: it is first."""
        os.fchown(descriptor, member.uid, member.gid)
        os.fchmod(descriptor, member.mode)
        for key, value in self._xattrs(member):
            os.setxattr(descriptor, key, value)
        os.utime(descriptor, ns=(member.mtime_ns, member.mtime_ns))

    def _xattrs(self, member: Member) -> Iterator[tuple[bytes, bytes]]:
        for key, value in member.xattrs:
            if travels(key, overlay=self._overlay, layer=self._layer):
                yield key, value


def _usual_directory(name: bytes) -> Member:
    """Return a directory that an archive does not mention; no time makes it repeatable."""
    return Member(name, Kind.DIRECTORY, 0o755, os.geteuid(), os.getegid(), 0)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]


def _write_plainly(descriptor: int, content: Iterator[bytes]) -> None:
    position = 0
    for chunk in content:
        _write(descriptor, memoryview(chunk), position)
        position += len(chunk)


def _write_extents(descriptor: int, member: Member, content: Iterator[bytes]) -> None:
    os.ftruncate(descriptor, member.size)
    waiting = memoryview(b"")
    for start, length in member.extents or ():
        offset, end = start, start + length
        while offset < end:
            waiting = waiting or memoryview(next(content))
            piece = waiting[: end - offset]
            _write(descriptor, piece, offset)
            offset += len(piece)
            waiting = waiting[len(piece) :]


def _write_without_zeros(descriptor: int, member: Member, content: Iterator[bytes]) -> None:
    """Write a file, leaving holes where 64 KiB of it are zeros."""
    position = 0
    for chunk in content:
        view = memoryview(chunk)
        start = 0  # of what is not yet written
        # Blocks of the file, not of the chunk: chunks come as the stream has them.
        for block in range(-position % _HOLE, len(chunk) - _HOLE + 1, _HOLE):
            if chunk.startswith(_ZEROS, block):
                _write(descriptor, view[start:block], position + start)
                start = block + _HOLE
        _write(descriptor, view[start:], position + start)
        position += len(chunk)
    os.ftruncate(descriptor, member.size)


def _chmod(base: bytes, mode: int, directory: int) -> None:
    """Set the mode of what was just made; a link that was put in its place is not followed."""
    descriptor = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISLNK(os.fstat(descriptor).st_mode):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101 - as above
    finally:
        os.close(descriptor)


def _make_room(name: bytes, base: bytes, directory: int) -> None:
    """Remove what is not a directory; one of those is never replaced by something else."""
    try:
        os.unlink(base, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError as error:
        raise UsageError(
            f"{shown(name)} is a directory there, which a file does not replace; "
            "what came before it is copied"
        ) from error


def _twice(name: bytes) -> BadArchive:
    return BadArchive(f"{shown(name)}: is there twice")


def _explained(error: OSError, name: bytes) -> Exception:
    """Return what the kernel's refusal of a member means."""
    if error.errno == errno.EEXIST:
        return _twice(name)
    named = OSError(error.errno, error.strerror)
    named.filename = name
    return named
