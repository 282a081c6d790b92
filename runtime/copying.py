"""Copy files into, out of and between roots, one of which is a container's and may be hostile.

A path is resolved once, by openat2(RESOLVE_IN_ROOT) from a descriptor of its root; from there on
everything goes by descriptors and single names (tree_walk.py, tree_place.py). So a container that
swaps directories for symbolic links meanwhile reaches nothing but its own files.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.runtime import syscalls, tree
from pymigrate.runtime.errors import UsageError, WrongState
from pymigrate.runtime.namespaces import host_id
from pymigrate.runtime.settings import IdMapping
from pymigrate.runtime.state import Status
from pymigrate.runtime.tree_format import END, Kind, Member, encode, padding
from pymigrate.runtime.tree_place import Placer
from pymigrate.runtime.tree_source import Source
from pymigrate.runtime.tree_walk import Walk

if TYPE_CHECKING:
    from pymigrate.runtime.container import Container

_INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_PLACE = os.O_PATH | os.O_CLOEXEC
_SET_ID = stat.S_ISUID | stat.S_ISGID
_CAPABILITY = b"security.capability"


@dataclass(frozen=True)
class Root:
    """Where paths begin: a container's root, or (None) this host's, where we trust every link."""

    descriptor: int | None
    label: str  # for messages, such as "web:"
    uids: Sequence[IdMapping] = ()
    gids: Sequence[IdMapping] = ()

    def open(self, path: str) -> int:
        """Return an O_PATH descriptor of what is there, links followed; OSError if nothing is."""
        if self.descriptor is None:
            return os.open(path, _PLACE)
        return syscalls.openat2(self.descriptor, path, _PLACE, resolve=_INSIDE)


HOST = Root(None, "")


@contextlib.contextmanager
def container_root(container: Container) -> Iterator[Root]:
    """Open the root of a container, which is mounted for as long as that takes if it does not run.

    Raises:
        WrongState: it is being moved, or has no root of its own and does not run.

    """
    container.check_free()
    with contextlib.ExitStack() as undo:
        now = container.state()
        if now.status.may_start:
            if not container.spec.private("mount"):
                raise WrongState(f"{container.name} has no root of its own; nothing was copied")
            supervision = undo.enter_context(container.prepare(plugged=False))
            supervision.mount()
            path = f"/proc/{supervision.ping()}/root{container.rootfs}"
            undo.callback(supervision.release)
        elif now.status is Status.PREPARED or now.pid is None:
            raise container.wrong_state(now, "nothing was copied", hint="try again in a moment")
        else:
            path = f"/proc/{now.pid}/root"
        descriptor = os.open(path, _PLACE | os.O_DIRECTORY)
        undo.callback(os.close, descriptor)
        spec = container.spec
        yield Root(descriptor, f"{container.name}:", spec.uid_mappings, spec.gid_mappings)


def copy(source: Root, path: str, target: Root, destination: str, *, archive: bool) -> int:
    """Copy a file or a directory; return how many files were made.

    As cp(1) and podman: into a directory that is there, else to this very name; ``PATH/.`` is what
    a directory holds. Without ``archive`` the copies belong to the target's root and have neither
    set-user-id bits nor capabilities. A directory that is there keeps its owner and mode.

    Raises:
        UsageError: there is no such path, or the two do not fit.

    """
    with contextlib.ExitStack() as undo:
        found = _find(source, path)
        undo.callback(os.close, found)
        is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
        directory, name = _destination(target, destination, path, is_directory=is_directory)
        undo.callback(os.close, directory)
        adopt = _adopter(source, target, archive=archive)
        placer = undo.enter_context(_placer(directory, target.label + destination))
        for member, file in _members(found, name, sparse=True):
            placer.place(adopt(member), tree.content(member, file))
        placer.finish()
        return placer.files


def write_tar(source: Root, path: str, stream: tree.Writable) -> None:
    """Write a file or a directory as a tar whose names begin with the path's last one."""
    found = _find(source, path)
    try:
        adopt = _adopter(source, HOST, archive=True, numbers="inside")
        for member, file in _members(found, _last_name(path), sparse=False):
            _put(stream, encode(adopt(member)))
            for chunk in tree.content(member, file):
                _put(stream, chunk)
            _put(stream, bytes(padding(member.data_size)))
        _put(stream, END)
    finally:
        os.close(found)


def read_tar(stream: tree.Readable, target: Root, destination: str, *, archive: bool) -> int:
    """Unpack a tar into a directory that is there; return how many files were made.

    Raises:
        BadArchive: it is damaged or made to do harm; what came before is there.

    """
    with contextlib.ExitStack() as undo:
        directory = _find(target, destination)
        undo.callback(os.close, directory)
        if not stat.S_ISDIR(os.fstat(directory).st_mode):
            raise UsageError(f"{target.label}{destination} is no directory; nothing was copied")
        adopt = _adopter(HOST, target, archive=archive)
        members = Source(stream, hashed=False)
        placer = undo.enter_context(_placer(directory, target.label + destination))
        while (member := members.next_member()) is not None:
            placer.place(adopt(member), members.content(member))
        placer.finish()
        members.finish()
        return placer.files


def _find(root: Root, path: str) -> int:
    try:
        return root.open(path)
    except OSError as error:
        raise UsageError(
            f"{root.label}{path}: {error.strerror}; nothing was copied",
            hint="a path inside a container begins at its own /",
        ) from error


def _destination(root: Root, path: str, source: str, *, is_directory: bool) -> tuple[int, bytes]:
    """Return the directory to copy into, and the name there (none: into the directory itself)."""
    shown = f"{root.label}{path}"
    with contextlib.suppress(FileNotFoundError):
        found = _find_if_there(root, path)
        if stat.S_ISDIR(os.fstat(found).st_mode):
            return found, b"" if _is_contents(source) else _last_name(source)
        os.close(found)
        if is_directory or path.endswith("/"):
            raise UsageError(f"{shown} is no directory; nothing was copied")
    parent, name = posixpath.split(path.rstrip("/"))
    if name in ("", ".", "..") or (path.endswith("/") and not is_directory):
        raise UsageError(f"there is no directory {shown}; nothing was copied")
    directory = _find(root, parent or ("/" if path.startswith("/") else "."))
    if not stat.S_ISDIR(os.fstat(directory).st_mode):
        os.close(directory)
        raise UsageError(f"{root.label}{parent} is no directory; nothing was copied")
    return directory, os.fsencode(name)


def _find_if_there(root: Root, path: str) -> int:
    try:
        return root.open(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{root.label}{path}: {error.strerror}; nothing was copied") from error


def _is_contents(path: str) -> bool:
    return path == "." or path.endswith("/.")


def _last_name(path: str) -> bytes:
    name = posixpath.basename(posixpath.normpath(path).rstrip("/"))
    return b"" if _is_contents(path) or name in (".", "..") else os.fsencode(name)


def _members(found: int, name: bytes, *, sparse: bool) -> Iterator[tuple[Member, int]]:
    """Yield what is to be copied under its new names, each with an open file if it has content."""
    is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
    if not is_directory and not stat.S_ISREG(os.fstat(found).st_mode):
        raise UsageError("only files and directories are copied; nothing was copied")
    # By the descriptor that was looked at: what lies at the path by now may be a FIFO.
    opened = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        walk = Walk(opened, sparse=sparse)
        if not is_directory:
            yield walk.file(opened, name), opened
            return
        prefix = name + b"/" if name else b""
        for member, file in walk.members():
            target = prefix + member.target if member.kind is Kind.HARDLINK else member.target
            named = prefix + member.name if member.name else name
            yield member._replace(name=named, target=target), file
    finally:
        os.close(opened)


def _adopter(
    source: Root, target: Root, *, archive: bool, numbers: str = "host"
) -> Callable[[Member], Member]:
    """Return what gives a member its owners on the other side; numbers on disks are the host's."""

    def adopt(member: Member) -> Member:
        if not archive:
            kept = tuple(each for each in member.xattrs if each[0] != _CAPABILITY)
            mode, uid, gid = member.mode & ~_SET_ID, 0, 0
            member = member._replace(mode=mode, xattrs=kept)
        else:
            uid, gid = _inside(source.uids, member.uid), _inside(source.gids, member.gid)
        if numbers == "host":
            uid, gid = host_id(target.uids, uid), host_id(target.gids, gid)
        return member._replace(uid=uid, gid=gid)

    return adopt


def _inside(mappings: Sequence[IdMapping], number: int) -> int:
    """Return the container's number for one of the host's: as a process inside would see it."""
    if not mappings:
        return number
    for each in mappings:
        if 0 <= number - each.host_id < each.size:
            return each.container_id + number - each.host_id
    return 65534  # nobody


@contextlib.contextmanager
def _placer(directory: int, shown: str) -> Iterator[Placer]:
    opened = os.open(f"/proc/self/fd/{directory}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        limits = tree.Limits()
        with (
            tree.writing(Path(shown)),
            Placer(opened, limits, overlay=False, devices=False, merge=True) as placer,
        ):
            yield placer
    finally:
        os.close(opened)


def _put(stream: tree.Writable, data: bytes) -> None:
    while data:
        sent = stream.write(data)
        data = b"" if sent is None else data[sent:]
