"""Make a container's mounts inside its root, as mounts.py has decided.

Destinations are resolved inside the root by openat2(RESOLVE_IN_ROOT) and mounts are attached to the
descriptor that was found, so a symbolic link in an image can never lead a mount onto the host.
Uses the mount API of Linux 5.12: fsopen(2), open_tree(2), move_mount(2), mount_setattr(2).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from pathlib import Path
from typing import Protocol

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import HostError
from pymigrate.runtime.mount_options import options
from pymigrate.runtime.mounts import (
    Bind,
    Filesystem,
    Link,
    Mask,
    Node,
    Operation,
    ReadOnly,
    ReadOnlyMount,
    ReadOnlyRoot,
    Sysctl,
)
from pymigrate.runtime.settings import Device

_IN_ROOT = syscalls.RESOLVE_IN_ROOT
_PATH_FD = os.O_PATH | os.O_CLOEXEC


class Kernel(Protocol):
    """The calls that making mounts takes; see runtime/syscalls.py."""

    def fsconfig(
        self, fd: int, command: int, key: str | None, value: str | None = None, aux: int = 0
    ) -> None:
        """See fsconfig(2)."""

    def fsmount(self, fd: int, flags: int, attributes: int) -> int:
        """See fsmount(2)."""

    def fsopen(self, filesystem: str, flags: int = ...) -> int:
        """See fsopen(2)."""

    def mknodat(self, fd: int, path: str, mode: int, device: int = 0) -> None:
        """See mknodat(2)."""

    def mkdirat(self, fd: int, path: str, mode: int) -> None:
        """See mkdirat(2)."""

    def mount_setattr(
        self,
        fd: int,
        path: str,
        flags: int,
        attr_set: int = 0,
        attr_clr: int = 0,
        propagation: int = 0,
        userns_fd: int = 0,
    ) -> None:
        """See mount_setattr(2)."""

    def move_mount(
        self, from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int
    ) -> None:
        """See move_mount(2)."""

    def open_tree(self, fd: int, path: str, flags: int) -> int:
        """See open_tree(2)."""

    def openat2(self, fd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
        """See openat2(2)."""

    def symlinkat(self, target: str, fd: int, path: str) -> None:
        """See symlinkat(2)."""


def make_tree(operation: Filesystem | Bind, kernel: Kernel = syscalls) -> int:
    """Return a descriptor of the detached mount; closing it before it is attached undoes it."""
    if isinstance(operation, Bind):
        return _bind_tree(operation, kernel)
    fd = kernel.fsopen(operation.type)
    try:
        kernel.fsconfig(fd, syscalls.FSCONFIG_SET_STRING, "source", operation.source)
        for name, value in operation.options.parameters:
            command = syscalls.FSCONFIG_SET_FLAG if value is None else syscalls.FSCONFIG_SET_STRING
            kernel.fsconfig(fd, command, name, value)
        kernel.fsconfig(fd, syscalls.FSCONFIG_CMD_CREATE, None)
        attributes = operation.options.attr_set | operation.options.recursive_set
        tree = kernel.fsmount(fd, syscalls.FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        _add_kernel_words(error, fd)
        raise
    finally:
        os.close(fd)
    propagation = operation.options.propagation
    if propagation not in (0, syscalls.MS_PRIVATE, syscalls.MS_SLAVE):  # a new one has no master
        try:
            kernel.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, propagation=propagation)
        except OSError:
            os.close(tree)
            raise
    return tree


def _add_kernel_words(error: OSError, fd: int) -> None:
    """Add what the filesystem says about a bad option, which it keeps in its descriptor."""
    try:
        words = os.read(fd, 1024).decode(errors="replace").strip()
    except OSError:
        return  # it has nothing to say
    if words:
        error.add_note(words)


def _bind_tree(operation: Bind, kernel: Kernel) -> int:
    recursive = syscalls.AT_RECURSIVE if operation.recursive else 0
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | recursive
    tree = kernel.open_tree(syscalls.AT_FDCWD, operation.source, flags)
    try:
        given = operation.options
        kernel.mount_setattr(
            tree,
            "",
            syscalls.AT_EMPTY_PATH | recursive,
            given.recursive_set,
            propagation=syscalls.MS_PRIVATE if given.propagation == 0 else 0,
        )
        if given.attr_set or given.attr_clr:
            kernel.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, given.attr_set, given.attr_clr)
        if given.propagation:
            reach = syscalls.AT_RECURSIVE if given.recursive_propagation else 0
            kernel.mount_setattr(
                tree, "", syscalls.AT_EMPTY_PATH | reach, propagation=given.propagation
            )
    except OSError:
        os.close(tree)
        raise
    return tree


def attach(tree: int, root: int, destination: str, kernel: Kernel = syscalls) -> None:
    """Mount a tree inside the root, making the destination if it is missing."""
    directory = stat.S_ISDIR(os.fstat(tree).st_mode)
    target = make_destination(root, destination, directory=directory, kernel=kernel)
    try:
        move_onto(tree, target, kernel)
    finally:
        os.close(target)


def move_onto(tree: int, target: int, kernel: Kernel = syscalls) -> None:
    """Attach a detached tree to the directory or file of a descriptor."""
    flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
    kernel.move_mount(tree, "", target, "", flags)


def make_destination(
    root: int, path: str, *, directory: bool, kernel: Kernel = syscalls, mode: int = 0o755
) -> int:
    """Return a descriptor (O_PATH) of a place inside the root, made if it is missing.

    Nothing outside the root is reached, whatever links the root holds.
    """
    path = posixpath.normpath("/" + path).lstrip("/") or "."
    try:
        return kernel.openat2(root, path, _PATH_FD, resolve=_IN_ROOT)
    except FileNotFoundError:
        parent_path, name = posixpath.split(path)
    parent = make_destination(root, parent_path, directory=True, kernel=kernel)
    try:
        try:
            if directory:
                kernel.mkdirat(parent, name, mode)
            else:
                kernel.mknodat(parent, name, stat.S_IFREG | 0o644)
        except FileExistsError as error:
            # Somebody else's symbolic link to nowhere; following it to make its target is the
            # one thing not to do.
            raise HostError(f"/{path} in the container's root leads nowhere") from error
        return kernel.openat2(
            parent, name, _PATH_FD, resolve=_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        )
    finally:
        os.close(parent)


def execute(
    operation: Operation, root: int, tree: int | None = None, kernel: Kernel = syscalls
) -> None:
    """Do one operation inside the root; ``tree`` is its mount if it was made before.

    The caller must be in the container's namespaces, with umask 0. OSError or HostError on failure.
    """
    match operation:
        case Filesystem() | Bind():
            made = make_tree(operation, kernel) if tree is None else tree
            try:
                if operation.options.copy_up:
                    _copy_up(made, root, operation.destination, kernel)
                attach(made, root, operation.destination, kernel)
            finally:
                if tree is None:
                    os.close(made)
        case Node(device):
            _make_node(device, root, kernel)
        case Link(path, target):
            _at_parent(root, path, kernel, lambda fd, name: kernel.symlinkat(target, fd, name))
        case Sysctl(name, value):
            _set_sysctl(name, value, root, kernel)
        case ReadOnly(path):
            _make_read_only(path, root, kernel)
        case ReadOnlyMount(path):
            _set_read_only(path, root, kernel)
        case Mask(paths):
            _mask(paths, root, kernel)
        case ReadOnlyRoot():
            flags = syscalls.AT_EMPTY_PATH
            kernel.mount_setattr(root, "", flags, syscalls.MOUNT_ATTR_RDONLY)


def _copy_up(tree: int, root: int, destination: str, kernel: Kernel) -> None:
    """Copy what is at a place of the root into what will cover it, unless that has something."""
    from pymigrate.runtime import tree as trees  # loaded by plan(): here nothing can be any more

    into = f"/proc/self/fd/{tree}"
    if os.listdir(into):  # noqa: PTH208
        return  # a volume that was used before
    place = _find(destination, root, kernel)
    if place is None:
        return  # it will be made for the mount
    try:
        trees.copy(Path(f"/proc/self/fd/{place}"), Path(into))
    finally:
        os.close(place)


class _AtParent(Protocol):
    def __call__(self, fd: int, name: str, /) -> None: ...


def _at_parent(root: int, path: str, kernel: Kernel, act: _AtParent) -> None:
    """Act on a name in its directory, which is made if missing; what is there already stays."""
    parent_path, name = posixpath.split(path)
    parent = make_destination(root, parent_path, directory=True, kernel=kernel)
    try:
        act(parent, name)
    except FileExistsError:
        pass
    finally:
        os.close(parent)


_TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def _make_node(device: Device, root: int, kernel: Kernel) -> None:
    def make(fd: int, name: str) -> None:
        number = os.makedev(device.major, device.minor)
        kernel.mknodat(fd, name, _TYPES[device.type] | device.file_mode, number)
        if device.uid or device.gid:
            os.chown(name, device.uid, device.gid, dir_fd=fd, follow_symlinks=False)

    _at_parent(root, device.path, kernel, make)


def _set_sysctl(name: str, value: str, root: int, kernel: Kernel) -> None:
    path = "proc/sys/" + name.replace(".", "/")
    fd = kernel.openat2(root, path, os.O_WRONLY | os.O_CLOEXEC, resolve=_IN_ROOT)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def _find(path: str, root: int, kernel: Kernel) -> int | None:
    try:
        return kernel.openat2(root, path.lstrip("/"), _PATH_FD, resolve=_IN_ROOT)
    except OSError as error:
        # Masks and read-only paths name what some kernels have; others lack them.
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


def _make_read_only(path: str, root: int, kernel: Kernel) -> None:
    target = _find(path, root, kernel)
    if target is None:
        return
    try:
        whole = syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
        flags = whole | syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        tree = kernel.open_tree(target, "", flags)
        try:
            kernel.mount_setattr(tree, "", whole, syscalls.MOUNT_ATTR_RDONLY)
            move_onto(tree, target, kernel)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def _set_read_only(path: str, root: int, kernel: Kernel) -> None:
    target = kernel.openat2(root, path.lstrip("/"), _PATH_FD, resolve=_IN_ROOT)
    try:
        kernel.mount_setattr(target, "", syscalls.AT_EMPTY_PATH, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(target)


_EMPTY = Filesystem(
    "", "tmpfs", "masked", options(("ro", "nosuid", "nodev", "noexec", "nr_inodes=1", "mode=755"))
)


def _mask(paths: tuple[str, ...], root: int, kernel: Kernel) -> None:
    null = kernel.openat2(root, "dev/null", _PATH_FD, resolve=_IN_ROOT)
    try:
        status = os.fstat(null)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
            raise HostError("/dev/null in the container's root is not the null device")
        empty: str | None = None  # the first of the directories, by now masked
        for path in paths:
            if _mask_one(path, root, null, empty, kernel):
                empty = empty or path
    finally:
        os.close(null)


def _mask_one(path: str, root: int, null: int, empty: str | None, kernel: Kernel) -> bool:
    """Mask a path, if it is there; return whether it is a directory."""
    target = _find(path, root, kernel)
    if target is None:
        return False
    try:
        is_directory = stat.S_ISDIR(os.fstat(target).st_mode)
        if not is_directory:
            tree = _clone(null, kernel)
        elif empty is None:
            tree = make_tree(_EMPTY, kernel)
        else:
            # All show one filesystem: CRIU runs tar for each that it saves, and for each that it
            # brings back. Cloned from where it is attached, as kernels before 6.15 must have it.
            tree = _clone_at(empty, root, kernel)
        try:
            move_onto(tree, target, kernel)
        finally:
            os.close(tree)
    finally:
        os.close(target)
    return is_directory


def _clone_at(path: str, root: int, kernel: Kernel) -> int:
    mounted = kernel.openat2(root, path.lstrip("/"), _PATH_FD, resolve=_IN_ROOT)
    try:
        return _clone(mounted, kernel)
    finally:
        os.close(mounted)


def _clone(mounted: int, kernel: Kernel) -> int:
    flags = syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    return kernel.open_tree(mounted, "", flags)
