"""Trees of files for tests: how they look, and how archives are made to do harm."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """What stat(2) and friends say about a file, but for what belongs to this disk."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    device: int
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    first_link: str


def look(root: Path) -> dict[str, Seen]:
    """Describe a whole tree, by a way of its own: nothing is shared with the code under test."""
    paths = [root]
    links: dict[int, list[str]] = {}
    for directory, directories, files in os.walk(root):
        paths += [Path(directory, name) for name in (*directories, *files)]
    for path in sorted(paths, key=os.fsencode):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            links.setdefault(status.st_ino, []).append(str(path.relative_to(root)))
    found: dict[str, Seen] = {}
    for path in paths:
        name = str(path.relative_to(root))
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))  # noqa: PTH115 - a Path would tidy it
        keys = sorted(os.listxattr(path, follow_symlinks=False))
        found[name] = Seen(
            mode=status.st_mode,
            owner=(status.st_uid, status.st_gid),
            mtime_ns=status.st_mtime_ns,
            device=status.st_rdev,
            content=content,
            xattrs=tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in keys),
            first_link=links.get(status.st_ino, [name])[0],
        )
    return found


def archive(*members: tuple[str, bytes, str | bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar with members (name, type flag, link target or content) made by tarfile."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, kind, rest in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.uid, info.gid = os.geteuid(), os.getegid()
            content = b""
            if kind in (tarfile.REGTYPE, tarfile.AREGTYPE):
                assert isinstance(rest, bytes)
                content = rest
                info.size = len(content)
            elif isinstance(rest, str):
                info.linkname = rest
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()
