"""Layers that a build makes: of files that are copied, and of what a command changed."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime import compressed, tree
from pymigrate.runtime.build_context import Item
from pymigrate.runtime.errors import BadArchive, UsageError
from pymigrate.runtime.images import LIMITS
from pymigrate.runtime.tree_format import BLOCK, Kind, Member, decode_block
from pymigrate.runtime.tree_layer import Below
from pymigrate.runtime.tree_place import Placer
from pymigrate.runtime.tree_source import Source

_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
_MOUNT_POINTS = ("dev", "proc", "sys")  # defaults.MOUNTS
_IDENTITY = ("hostname", "hosts", "resolv.conf")  # rootfs.write_identity


@dataclass(frozen=True)
class Dress:
    """Whom copied files belong to, and their mode where --chmod gives one."""

    uid: int = 0
    gid: int = 0
    mode: int | None = None

    def on(self, member: Member) -> Member:
        """Return the member so dressed."""
        mode = member.mode if self.mode is None or member.kind is Kind.SYMLINK else self.mode
        return member._replace(uid=self.uid, gid=self.gid, mode=mode)


def resolve(below: Below, path: str) -> str:
    """Return where an absolute path leads in an image, relative to its root.

    Symbolic links of the image are followed inside it; what is not there yet is taken as named.

    Raises:
        UsageError: its links go round in circles.

    """
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        target = below.link("/".join((*done, part)).encode())
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise UsageError(f"{path}: its symbolic links go round in circles; no image was made")
        text = os.fsdecode(target)
        if text.startswith("/"):
            done = []
        waiting += reversed(text.split("/"))
    return "/".join(done)


def is_directory(below: Below, path: str) -> bool:
    """Tell whether there is a directory under a path that `resolve` returned."""
    return not path or below.directory(os.fsencode(path)) is not None


def copied(items: Sequence[Item], below: Below, dress: Dress) -> Callable[[Path], tree.Summary]:
    """Return what makes a layer of these files in an empty directory; see Store.add_layer."""

    def make(into: Path) -> tree.Summary:
        with (
            tree.writing(into),
            tree.opened(into) as descriptor,
            Placer(
                descriptor,
                LIMITS,
                overlay=False,
                devices=True,
                layer=True,
                inherited=below.directory,
            ) as placer,
        ):
            for item in items:
                if item.unpack:
                    _unpack(item, placer)
                else:
                    _copy(item, placer, below, dress)
            placer.finish()
        return tree.digest(into, layer=True)

    return make


def made_directory(
    path: str, below: Below, owner: tuple[int, int]
) -> Callable[[Path], tree.Summary]:
    """Return what makes a layer with one more directory."""

    def make(into: Path) -> tree.Summary:
        with (
            tree.opened(into) as descriptor,
            Placer(
                descriptor,
                LIMITS,
                overlay=False,
                devices=False,
                layer=True,
                inherited=below.directory,
            ) as placer,
        ):
            member = Member(os.fsencode(path), Kind.DIRECTORY, 0o755, *owner, mtime_ns=0)
            placer.place(member, iter(()))
            placer.finish()
        return tree.digest(into, layer=True)

    return make


def changed(upper: Path, below: Below) -> Callable[[Path], tree.Summary]:
    """Return what makes a layer of a container's upper directory, but for what we wrote there."""

    def make(into: Path) -> tree.Summary:
        tree.copy(upper, into, layer=True)
        _drop_mount_points(into, below)
        _drop_identity(into, below)
        return tree.digest(into, layer=True)

    return make


def _copy(item: Item, placer: Placer, below: Below, dress: Dress) -> None:
    target = os.fsencode(item.target)
    for member, file in item.context.members(item.path):
        name = posixpath.join(target, member.name) if member.name else target
        if member.kind is Kind.DIRECTORY and not member.name and is_directory(below, item.target):
            continue  # a directory's content goes into one that is there, which stays as it is
        if not name and member.kind is not Kind.DIRECTORY:
            raise UsageError(f"{item.path}: cannot be copied over the root; no image was made")
        link = posixpath.join(target, member.target) if member.kind is Kind.HARDLINK else None
        placed = dress.on(member)._replace(name=name, target=link or member.target)
        placer.place(placed, _content(placed, file))


def _content(member: Member, file: int) -> Iterator[bytes]:
    left = member.data_size
    while left:
        piece = os.read(file, min(left, tree.CHUNK))
        if not piece:
            raise UsageError("a file became shorter while it was copied; no image was made")
        left -= len(piece)
        yield piece


def _unpack(item: Item, placer: Placer) -> None:
    target = os.fsencode(item.target)
    with item.context.opened(item.path) as file, os.fdopen(os.dup(file), "rb", 0) as stream:
        source = Source(compressed.plain(stream), hashed=False)
        while (member := source.next_member()) is not None:
            name = posixpath.join(target, member.name) if member.name else target
            link = member.target
            if member.kind is Kind.HARDLINK:
                link = posixpath.join(target, link)
            if member.name or member.kind is not Kind.DIRECTORY:
                placed = member._replace(name=name, target=link)
                placer.place(placed, source.content(member))
        source.finish()


def is_archive(item: Item) -> bool:
    """Tell whether ADD unpacks a file: whether it begins as a tar, compressed or not."""
    with item.context.opened(item.path) as file:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        with os.fdopen(os.dup(file), "rb", 0) as stream:
            plain = compressed.plain(stream)
            block = b""
            try:
                while len(block) < BLOCK and (piece := plain.read(BLOCK - len(block))):
                    block += piece
                return len(block) == BLOCK and any(block) and bool(decode_block(block).name)
            except BadArchive:
                return False


def _drop_mount_points(layer: Path, below: Below) -> None:
    """Take away the directories that were made for a container's mounts."""
    for name in _MOUNT_POINTS:
        place = layer / name
        made = below.find(name.encode()) is None and place.is_dir() and not place.is_symlink()
        if made and not any(place.iterdir()):
            place.rmdir()


def _drop_identity(layer: Path, below: Below) -> None:
    """Take away /etc/hostname, hosts and resolv.conf, which each container gets anew."""
    etc = layer / "etc"
    try:
        status = etc.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        return
    for name in _IDENTITY:
        with suppress(FileNotFoundError):
            (etc / name).unlink()
    was = below.directory(b"etc")
    same = was is not None and (was.mode, was.uid, was.gid) == (
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
    )
    if same and not any(etc.iterdir()) and not os.listxattr(etc):
        etc.rmdir()
    else:
        os.utime(etc, ns=(status.st_mtime_ns, status.st_mtime_ns))
