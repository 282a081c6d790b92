"""A container's root directory: the overlay, the files that say who it is, the change of root."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from pymigrate.runtime import mounting, syscalls
from pymigrate.runtime.errors import HostError, MissingFeature, UsageError

# mount(2) takes one page of options.
_OPTION_BYTES = 4000
# The upper directory travels, so it must say everything by itself: no renamed directory that only
# points at a lower one, no file that is all metadata, no index of inodes of this disk.
_SELF_CONTAINED = "redirect_dir=off,metacopy=off,index=off,xino=off"
_SLASH = Path("/")
# What mount_setattr(2) says of a filesystem without FS_ALLOW_IDMAP, or one shifted already.
_CANNOT_SHIFT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class Kernel(mounting.Kernel, Protocol):
    """The calls that changing the root takes; see runtime/syscalls.py."""

    def mount(
        self,
        source: str | None,
        target: str,
        filesystem: str | None,
        flags: int = 0,
        data: str | None = None,
    ) -> None:
        """See mount(2)."""

    def pivot_root(self, new_root: str, put_old: str) -> None:
        """See pivot_root(2)."""

    def umount2(self, target: str, flags: int = 0) -> None:
        """See umount2(2)."""


def overlay(
    lower: Sequence[Path],
    upper: Path,
    work: Path,
    target: Path,
    kernel: Kernel = syscalls,
    *,
    users: int | None = None,
) -> None:
    """Mount an overlay: ``lower`` directories, lowest first, under ``upper``; see overlayfs.rst.

    ``upper`` and ``work`` must be on one filesystem. OSError with ``target`` on failure. With
    ``users``, a user namespace, the lower files show as owned by its users, and what is written
    belongs on the disk to whom they are on the host. Then the caller must be in a mount namespace
    of its own, and MissingFeature says that the kernel or a layer's filesystem cannot.
    """
    with ExitStack() as undo:
        if users is not None:
            places = {each: each for each in lower}
            if _SLASH in places:
                # The caller's own root is looked up below whatever covers it.
                places[_SLASH] = target.with_name("lower")
                places[_SLASH].mkdir()
                undo.callback(places[_SLASH].rmdir)
            for directory, place in places.items():
                _cover_shifted(os.fspath(directory), os.fspath(place), users, kernel)
                # The overlay holds its layers by mounts of its own.
                undo.callback(kernel.umount2, os.fspath(place), syscalls.MNT_DETACH)
            lower = [places[each] for each in lower]
        try:
            _mount_overlay(lower, upper, work, target, kernel)
        except OSError as error:
            if users is None or error.errno != errno.EINVAL:
                raise
            raise MissingFeature(
                "this kernel cannot put an overlay on layers with shifted owners",
                hint="Linux 5.19 can; or leave --userns out",
            ) from error


def _cover_shifted(directory: str, place: str, users: int, kernel: Kernel) -> None:
    """Mount a directory with shifted owners at a place, itself as a rule, in our namespace only."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    tree = kernel.open_tree(syscalls.AT_FDCWD, directory, flags)
    try:
        try:
            shift_owners(tree, users, kernel)
        except OSError as error:
            if error.errno not in _CANNOT_SHIFT:
                raise
            raise MissingFeature(
                f"the filesystem of {directory} cannot show its files as other users'",
                hint="ext4, xfs, btrfs and, from Linux 6.3 on, tmpfs can; or leave --userns out",
            ) from error
        to_flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH
        kernel.move_mount(tree, "", syscalls.AT_FDCWD, place, to_flags)
    finally:
        os.close(tree)


def _mount_overlay(
    lower: Sequence[Path], upper: Path, work: Path, target: Path, kernel: Kernel
) -> None:
    names = [os.fspath(each) for each in reversed(lower)]
    opened: list[int] = []
    try:
        if sum(len(os.fsencode(name)) + 1 for name in names) > _OPTION_BYTES // 2:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            opened.extend(os.open(name, flags) for name in names)
            names = [f"/proc/self/fd/{fd}" for fd in opened]
        lowers = ":".join(_escaped(name, ":") for name in names)
        data = (
            f"lowerdir={lowers},upperdir={_escaped(os.fspath(upper))},"
            f"workdir={_escaped(os.fspath(work))},{_SELF_CONTAINED}"
        )
        if len(os.fsencode(data)) > _OPTION_BYTES:
            raise HostError(f"{len(lower)} layers are more than one overlay can take")
        kernel.mount("overlay", os.fspath(target), "overlay", 0, data)
    finally:
        for fd in opened:
            os.close(fd)


def _escaped(path: str, also: str = "") -> str:
    for character in "\\," + also:
        path = path.replace(character, "\\" + character)
    return path


def write_identity(
    rootfs: Path,
    hostname: str | None = None,
    hosts: str | None = None,
    resolv: str | None = None,
    *,
    owner: tuple[int, int] = (0, 0),
    kernel: Kernel = syscalls,
) -> None:
    """Write /etc/hostname, hosts and resolv.conf into a root; None leaves the file as it is.

    ``owner`` is the container's root as the host numbers it, (uid, gid). Each is written beside
    and renamed, so a symbolic link of the image is replaced and never followed, and /etc itself is
    looked up inside the root.
    """
    line = None if hostname is None else f"{hostname}\n"
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        etc = mounting.make_destination(root, "etc", directory=True, kernel=kernel)
        try:
            if os.fstat(etc).st_uid == 0 != owner[0]:  # made just now
                os.chown(f"/proc/self/fd/{etc}", *owner)
            for name, text in (("hostname", line), ("hosts", hosts), ("resolv.conf", resolv)):
                if text is not None:
                    _replace(etc, name, text, owner)
        finally:
            os.close(etc)
    finally:
        os.close(root)


def make_directories(
    rootfs: Path,
    paths: Sequence[str],
    *,
    owner: tuple[int, int] = (0, 0),
    kernel: Kernel = syscalls,
) -> None:
    """Make these directories of a root, looked up inside it, where they are not there yet."""
    if not paths:
        return
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            made = mounting.make_destination(root, path.lstrip("/"), directory=True, kernel=kernel)
            try:
                if os.fstat(made).st_uid == 0 != owner[0]:
                    os.chown(f"/proc/self/fd/{made}", *owner)
            finally:
                os.close(made)
    finally:
        os.close(root)


def _replace(directory: int, name: str, text: str, owner: tuple[int, int]) -> None:
    beside = f".{name}.pymigrate"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(beside, flags, 0o644, dir_fd=directory)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        os.fchmod(fd, 0o644)
        os.fchown(fd, *owner)
        stream.write(text)
    os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)


def open_root(path: str, kernel: Kernel = syscalls, *, slave: bool = False) -> int:
    """Return a detached, private copy of the mounts at a directory; closing it undoes it.

    A ``slave`` still gets what the host mounts there later.
    """
    whole = syscalls.AT_RECURSIVE
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | whole
    try:
        root = kernel.open_tree(syscalls.AT_FDCWD, path, flags)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"root directory {path}: {error.strerror}") from error
    try:
        propagation = syscalls.MS_SLAVE if slave else syscalls.MS_PRIVATE
        kernel.mount_setattr(root, "", syscalls.AT_EMPTY_PATH | whole, propagation=propagation)
    except OSError:
        os.close(root)
        raise
    return root


def shift_owners(tree: int, users: int, kernel: Kernel = syscalls) -> None:
    """Show a detached mount's files as owned by the users of a user namespace.

    OSError with an errno of ``_CANNOT_SHIFT`` where the filesystem cannot, as an overlay as a
    whole cannot; see mount_setattr(2), "ID-mapped mounts".
    """
    kernel.mount_setattr(
        tree, "", syscalls.AT_EMPTY_PATH, syscalls.MOUNT_ATTR_IDMAP, userns_fd=users
    )


def shift_root(root: int, path: str, users: int, host_root: int, kernel: Kernel = syscalls) -> None:
    """Shift the owners in a container's root, a detached mount of ``path``, where that helps.

    Not where the files belong to the host's number of the container's root already, as those of our
    overlays do, nor where the filesystem cannot: then the host's owners show as nobody.
    """
    if os.stat(path).st_uid == host_root:  # noqa: PTH116
        return
    try:
        shift_owners(root, users, kernel)
    except OSError as error:
        if error.errno not in _CANNOT_SHIFT:
            raise


def cover(root: int, kernel: Kernel = syscalls) -> None:
    """Attach the detached root over the caller's "/": a place that every user may reach."""
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounting.move_onto(root, top, kernel)
    finally:
        os.close(top)


def pivot(root: int, kernel: Kernel = syscalls) -> None:
    """Make the attached root the caller's "/" and let go of the old one.

    pivot_root(".", ".") puts the old root on top of the new one, where it is unmounted by name; so
    no directory is needed for it. See pivot_root(2), NOTES.
    """
    os.fchdir(root)
    kernel.pivot_root(".", ".")
    kernel.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
