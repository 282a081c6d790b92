"""Layers as OCI images carry them, and as overlayfs uses them: the two ways to say "deleted".

An image's layer says so by names (OCI image-spec, layer.md): an empty file ``.wh.NAME`` removes
NAME, ``.wh..wh..opq`` removes all that lower layers have in its directory. overlayfs
(Documentation/filesystems/overlayfs.rst) has a character device 0:0 called NAME, and the attribute
``trusted.overlay.opaque``.

A mark is made only where there is something to hide. In a directory that one layer alone has,
overlayfs shows the layer's own entries as they are, and a whiteout would be seen as a broken file.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime import tree
from pymigrate.runtime.errors import BadArchive, HostError
from pymigrate.runtime.tree_format import Kind, Member, shown
from pymigrate.runtime.tree_place import WHITEOUT, Placer
from pymigrate.runtime.tree_source import Source
from pymigrate.runtime.tree_walk import OPAQUE, Walk, travels

_PREFIX = b".wh."
_META = b".wh..wh."  # notes of aufs to itself, but for the next one
_OPAQUE_NAME = b".wh..wh..opq"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Below:
    """The layers under one, lowest first, as overlayfs would show them."""

    layers: Sequence[Path]

    def find(self, name: bytes) -> os.stat_result | None:
        """Return what is there under a relative name, None if nothing is."""
        parts = name.split(b"/")
        for layer in reversed(self.layers):
            found, hides = self._look(layer, parts)
            if found is not None or hides:
                return found
        return None

    def directory(self, name: bytes) -> Member | None:
        """Return a directory as it looks from above, None if there is none."""
        for layer in reversed(self.layers):
            found, hides = self._look(layer, name.split(b"/") if name else [])
            if found is not None and stat.S_ISDIR(found.st_mode):
                return _describe(layer, name)
            if found is not None or hides:
                return None
        return None

    def link(self, name: bytes) -> bytes | None:
        """Return the target of a symbolic link, None if there is none of this name."""
        parts = name.split(b"/")
        for layer in reversed(self.layers):
            found, hides = self._look(layer, parts)
            if found is not None and stat.S_ISLNK(found.st_mode):
                with opened_below(layer, parts[:-1]) as directory:
                    return os.readlink(parts[-1], dir_fd=directory)
            if found is not None or hides:
                return None
        return None

    def top(self) -> set[bytes]:
        """Return the names in the root."""
        names = {os.fsencode(name) for layer in self.layers for name in os.listdir(layer)}  # noqa: PTH208
        return {name for name in names if self.find(name) is not None}

    @staticmethod
    def _look(layer: Path, parts: Sequence[bytes]) -> tuple[os.stat_result | None, bool]:
        """Look into one layer; also tell whether it hides what those below it have there."""
        hides = False
        descriptor = os.open(layer, _DIRECTORY)
        try:
            found = os.fstat(descriptor)
            for index, part in enumerate(parts):
                try:
                    found = os.stat(part, dir_fd=descriptor, follow_symlinks=False)
                except FileNotFoundError:
                    return None, hides
                if is_whiteout(found):
                    return None, True
                if index == len(parts) - 1:
                    break
                if not stat.S_ISDIR(found.st_mode):
                    return None, True
                inner = os.open(part, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
                hides = hides or _is_opaque(descriptor)
            return found, hides
        finally:
            os.close(descriptor)


class HashedStream:
    """A stream whose bytes are counted and hashed as they are read."""

    def __init__(self, stream: tree.Readable) -> None:
        """Read from the stream, which stays the caller's."""
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """Return between 1 and ``size`` bytes, or none at the end."""
        data = self._stream.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    @property
    def digest(self) -> str:
        """The SHA-256 of what was read, in hexadecimal digits."""
        return self._hash.hexdigest()


def is_whiteout(status: os.stat_result) -> bool:
    """Tell whether a file of a layer is overlayfs's mark of a deleted name."""
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return stat.S_ISCHR(status.st_mode) and device == WHITEOUT


def read(
    stream: tree.Readable, into: Path, below: Below, *, limits: tree.Limits
) -> tuple[tree.Summary, str]:
    """Unpack an image's layer from an untrusted source into an empty directory.

    Returns what it became, and the SHA-256 of the stream to its very end. Directories that the
    layer does not mention look as they do below. Raises as `tree.read`, and as there the caller
    then removes ``into``.
    """
    hashed = HashedStream(stream)
    source = Source(hashed, hashed=False)
    with (
        tree.writing(into),
        tree.opened(into) as descriptor,
        Placer(
            descriptor,
            limits,
            overlay=False,
            devices=True,
            layer=True,
            inherited=below.directory,
        ) as placer,
    ):
        placer.require_empty()
        marks = _Marks()
        while (member := source.next_member()) is not None:
            content = source.content(member)
            if marks.take(member):
                placer.count(member)
            else:
                placer.place(_unmarked(member), content)
        marks.make(placer, below)
        placer.finish()
        source.finish()
    return tree.digest(into, layer=True), hashed.digest


def write(layer: Path, stream: tree.Writable) -> tree.Summary:
    """Write a layer as an image carries it; the same layer gives the same bytes.

    Raises:
        HostError: a file cannot be read, or has a name that means "deleted" in an image.

    """
    with tree.opened(layer) as descriptor:
        return tree.write_members(_packed(Walk(descriptor, layer=True).members()), stream)


def _packed(members: Iterator[tuple[Member, int]]) -> Iterator[tuple[Member, int]]:
    for member, file in members:
        parent, _, base = member.name.rpartition(b"/")
        if base.startswith(_PREFIX):
            raise HostError(
                f"{shown(member.name)}: in an image this name means that another was deleted",
                hint="rename it",
            )
        if member.kind is Kind.CHARACTER and member.device == WHITEOUT:
            yield _mark(posixpath.join(parent, _PREFIX + base)), -1
            continue
        kept = tuple(each for each in member.xattrs if each[0] != OPAQUE)
        yield member._replace(xattrs=kept), file
        if kept != member.xattrs:
            yield _mark(posixpath.join(member.name, _OPAQUE_NAME)), -1


def _mark(name: bytes) -> Member:
    return Member(name, Kind.FILE, 0o644, 0, 0, 0)


def _unmarked(member: Member) -> Member:
    """Drop an overlay's own marks, which no image may bring: they come from names only."""
    return member._replace(xattrs=tuple(each for each in member.xattrs if each[0] != OPAQUE))


class _Marks:
    """The names by which a layer says what it deletes; they hold for the layers below only."""

    def __init__(self) -> None:
        self._removed: set[bytes] = set()
        self._opaque: set[bytes] = set()

    def take(self, member: Member) -> bool:
        """Take the member if it is a mark; BadArchive if it is an impossible one."""
        parent, _, base = member.name.rpartition(b"/")
        if any(part.startswith(_PREFIX) for part in parent.split(b"/")):
            raise BadArchive(f"{shown(member.name)}: below a mark of deletion")
        if member.kind is Kind.CHARACTER and member.device == WHITEOUT:
            self._removed.add(member.name)
            return True
        if not base.startswith(_PREFIX):
            return False
        if base == _OPAQUE_NAME:
            self._opaque.add(parent)
        elif not base.startswith(_META):
            name = base.removeprefix(_PREFIX)
            if name in (b"", b".", b".."):
                raise BadArchive(f"{shown(member.name)}: a mark of deletion without a name")
            self._removed.add(posixpath.join(parent, name))
        return True

    def make(self, placer: Placer, below: Below) -> None:
        """Make overlayfs's marks, once all else of the layer is there."""
        if b"" in self._opaque:  # overlayfs merges the roots of layers always
            self._removed.update(below.top())
        hiding = {name for name in self._opaque if _has_directory(below, name)}
        for name in self._removed:
            made = placer.find(name)
            if made is not None and stat.S_ISDIR(made.st_mode) and _has_directory(below, name):
                hiding.add(name)
        for name in sorted(hiding):
            placer.make_opaque(name)
        for name in sorted(self._removed):
            hidden = not hiding.isdisjoint(_parents(name))
            if not hidden and placer.find(name) is None and below.find(name) is not None:
                placer.white_out(name)


def _parents(name: bytes) -> Iterator[bytes]:
    while name:
        name = name.rpartition(b"/")[0]
        yield name


def _has_directory(below: Below, name: bytes) -> bool:
    return bool(name) and below.directory(name) is not None


@contextmanager
def opened_below(layer: Path, parts: Sequence[bytes]) -> Iterator[int]:
    """Open a directory of a layer, following no link."""
    descriptor = os.open(layer, _DIRECTORY)
    try:
        for part in parts:
            inner = os.open(part, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _describe(layer: Path, name: bytes) -> Member:
    with opened_below(layer, name.split(b"/") if name else []) as descriptor:
        status = os.fstat(descriptor)
        xattrs = tuple(
            (key, os.getxattr(descriptor, key))
            for key in sorted(map(os.fsencode, os.listxattr(descriptor)))
            if travels(key, overlay=False)
        )
    return Member(
        name=name,
        kind=Kind.DIRECTORY,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        xattrs=xattrs,
    )


def _is_opaque(descriptor: int) -> bool:
    return any(os.fsencode(key) == OPAQUE for key in os.listxattr(descriptor))
