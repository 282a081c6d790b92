"""What a container changed in its root, told by its overlay's upper directory and its layers.

Overlayfs: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories". A layer
below is never changed while containers use it; the upper directory may be, while we look, so it is
walked by descriptors and without following links.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime.errors import HostError
from pymigrate.runtime.tree_format import MAX_DEPTH, shown

ADDED, CHANGED, DELETED = "A", "C", "D"
_OPAQUE = b"trusted.overlay.opaque"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Change:
    """One path, absolute inside the container, and what happened to it: A, C or D."""

    kind: str
    path: bytes


def changes(upper: Path, lower: Sequence[Path], ignored: Sequence[str] = ()) -> list[Change]:
    """Return what the upper directory changes in ``lower``, lowest first; in the order of paths.

    ``ignored`` are paths that are ours, such as mount points. A directory counts as changed when
    something in it is, as docker and podman have it, or its mode.

    Raises:
        HostError: a directory cannot be read, or lies too deep.

    """
    leave_out = frozenset(os.fsencode(posixpath.normpath(each)) for each in ignored)
    layers = tuple(reversed(lower))
    top = os.open(upper, _DIRECTORY)
    try:
        return list(_Walk(layers, leave_out).below(top, b"", layers))
    finally:
        os.close(top)


@dataclass(frozen=True)
class _Walk:
    layers: tuple[Path, ...]  # the highest first
    ignored: frozenset[bytes]

    def below(
        self, upper: int, path: bytes, visible: tuple[Path, ...], *, covers: bool = False
    ) -> Iterator[Change]:
        """Yield the changes in a directory, where these layers have it too.

        ``covers``: nothing of the layers shows through, since it or one above it is opaque.
        """
        if path.count(b"/") > MAX_DEPTH:
            raise HostError(f"{shown(path[:60])}…: more than {MAX_DEPTH} directories deep")
        names = set(map(os.fsencode, os.listdir(upper)))
        hidden = self._names(path, visible) - names if covers else set()
        for name in sorted(names | hidden):
            here = path + b"/" + name
            before = self._before(here, visible)
            try:
                status = os.stat(name, dir_fd=upper, follow_symlinks=False)
            except FileNotFoundError:
                if name not in hidden:
                    continue  # it has just gone
                status = None
            if status is None or _is_whiteout(status):
                if before is not None and here not in self.ignored:
                    yield Change(DELETED, here)
            elif stat.S_ISDIR(status.st_mode):
                yield from self._directory(upper, here, before, visible, covers=covers)
            elif here not in self.ignored:
                yield Change(ADDED if before is None else CHANGED, here)

    def _directory(
        self,
        upper: int,
        path: bytes,
        before: os.stat_result | None,
        visible: tuple[Path, ...],
        *,
        covers: bool,
    ) -> Iterator[Change]:
        try:
            opened = os.open(path.rpartition(b"/")[2], _DIRECTORY, dir_fd=upper)
        except (FileNotFoundError, NotADirectoryError):
            return  # it has just gone
        try:
            was_directory = before is not None and stat.S_ISDIR(before.st_mode)
            layers = self._showing(path, visible) if was_directory else ()
            covers = covers or _is_opaque(opened)
            inside = list(self.below(opened, path, layers, covers=covers))
            mode = os.fstat(opened).st_mode
        finally:
            os.close(opened)
        if path not in self.ignored:
            if before is None:
                yield Change(ADDED, path)
            elif inside or mode != before.st_mode:
                yield Change(CHANGED, path)
        yield from inside

    def _names(self, path: bytes, visible: tuple[Path, ...]) -> set[bytes]:
        """List what the layers have in a directory."""
        return {name for layer in visible for name in os.listdir(_inside(layer, path))}  # noqa: PTH208 - bytes

    def _before(self, path: bytes, visible: tuple[Path, ...]) -> os.stat_result | None:
        """Return what the layers show at a path whose directory these layers have."""
        for layer in visible:
            try:
                status = os.stat(_inside(layer, path), follow_symlinks=False)  # noqa: PTH116 - bytes
            except (FileNotFoundError, NotADirectoryError):
                continue
            return None if _is_whiteout(status) else status
        return None

    def _showing(self, path: bytes, visible: tuple[Path, ...]) -> tuple[Path, ...]:
        """Return the layers whose directories are merged at a path."""
        found: list[Path] = []
        for layer in visible:
            place = _inside(layer, path)
            try:
                status = os.stat(place, follow_symlinks=False)  # noqa: PTH116 - bytes
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not stat.S_ISDIR(status.st_mode):
                break
            found.append(layer)
            if _is_opaque(place):
                break
        return tuple(found)


def _inside(layer: Path, path: bytes) -> bytes:
    return os.fsencode(layer).rstrip(b"/") + path


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory: int | bytes) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False  # it has no such attribute
