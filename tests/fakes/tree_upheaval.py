"""Random changes to a tree, of every kind that a container may make."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

NAMES = ("a", "b", "c", "d", "ü", "-")
PATHS = tuple(
    [Path(name) for name in NAMES]
    + [Path("a", name) for name in NAMES]
    + [Path("b", "c", name) for name in NAMES]
)


@dataclass(frozen=True)
class Deed:
    """One change, as numbers; what cannot be done to what is there is not done."""

    verb: str
    path: Path
    other: Path
    number: int
    data: bytes

    def do(self, root: Path) -> None:
        """Do it, if it can be done, and never to what lies outside the tree."""
        path, other = root / self.path, root / self.other
        if not all(_is_inside(root, each) for each in (path, path.parent, other.parent)):
            return  # a link leads out of the tree: tests run as root, on real machines
        if self.verb in _WRITES and not path.is_file():
            return  # opening a FIFO would wait for its reader
        with contextlib.suppress(OSError):
            _DEEDS[self.verb](path, other, self.number, self.data)


def _is_inside(root: Path, path: Path) -> bool:
    """Say whether a path, its links followed, is in the tree; one that leads in a circle is not."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _parents(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _create(path: Path, _: Path, number: int, data: bytes) -> None:
    _parents(path)
    with path.open("xb") as stream:
        stream.write(data * (1 + number % 5000))


def _overwrite(path: Path, _: Path, number: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(number % 100_000)
        stream.write(data)


def _overwrite_secretly(path: Path, other: Path, number: int, data: bytes) -> None:
    before = path.stat()
    _overwrite(path, other, number, data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _append(path: Path, _: Path, number: int, data: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(data * (1 + number % 2000))


def _truncate(path: Path, _: Path, number: int, __: bytes) -> None:
    os.truncate(path, number % 150_000)


def _sparse(path: Path, _: Path, number: int, data: bytes) -> None:
    _parents(path)
    with path.open("xb") as stream:
        stream.truncate(400_000)
        stream.seek(number % 300_000)
        stream.write(data)


def _replace(path: Path, other: Path, number: int, data: bytes) -> None:
    _create(other, path, number, data)
    other.replace(path)


def _remove(path: Path, _: Path, __: int, ___: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _rename(path: Path, other: Path, _: int, __: bytes) -> None:
    _parents(other)
    path.rename(other)


def _swap(path: Path, other: Path, _: int, __: bytes) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        other.rename(path)
    finally:
        aside.rename(other if not other.exists() else path)


def _link(path: Path, other: Path, _: int, __: bytes) -> None:
    _parents(other)
    os.link(path, other, follow_symlinks=False)


def _symlink(path: Path, _: Path, number: int, __: bytes) -> None:
    _parents(path)
    path.symlink_to(("../../no/where", "b", "/no/where", "no/where")[number % 4])


def _mkdir(path: Path, _: Path, __: int, ___: bytes) -> None:
    path.mkdir(parents=True)


def _chmod(path: Path, _: Path, number: int, __: bytes) -> None:
    if not path.is_symlink():
        path.chmod(number % 0o1000 | (0o700 if path.is_dir() else 0o400))


def _utime(path: Path, _: Path, number: int, __: bytes) -> None:
    os.utime(path, ns=(number, number), follow_symlinks=False)


def _set_xattr(path: Path, _: Path, number: int, data: bytes) -> None:
    os.setxattr(path, f"user.{number % 3}", data, follow_symlinks=False)


def _remove_xattr(path: Path, _: Path, number: int, __: bytes) -> None:
    os.removexattr(path, f"user.{number % 3}", follow_symlinks=False)


def _fifo(path: Path, _: Path, __: int, ___: bytes) -> None:
    _parents(path)
    os.mkfifo(path)


def _socket(path: Path, _: Path, __: int, ___: bytes) -> None:
    _parents(path)
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _whiteout(path: Path, _: Path, __: int, ___: bytes) -> None:
    _parents(path)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


_WRITES = frozenset({"overwrite", "overwrite secretly", "append", "truncate"})
_DEEDS = {
    "create": _create,
    "overwrite": _overwrite,
    "overwrite secretly": _overwrite_secretly,
    "append": _append,
    "truncate": _truncate,
    "sparse": _sparse,
    "replace": _replace,
    "remove": _remove,
    "rename": _rename,
    "swap": _swap,
    "link": _link,
    "symlink": _symlink,
    "mkdir": _mkdir,
    "chmod": _chmod,
    "utime": _utime,
    "set xattr": _set_xattr,
    "remove xattr": _remove_xattr,
    "fifo": _fifo,
    "socket": _socket,
    "whiteout": _whiteout,
}

deeds = st.builds(
    Deed,
    verb=st.sampled_from(sorted(_DEEDS)),
    path=st.sampled_from(PATHS),
    other=st.sampled_from(PATHS),
    number=st.integers(0, 2**33),
    data=st.binary(min_size=1, max_size=40),
)
