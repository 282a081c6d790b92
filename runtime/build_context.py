"""The files that COPY and ADD take: chosen by patterns, read inside their directory only.

The directory is looked into through openat2(RESOLVE_BENEATH): neither ``..`` nor a symbolic link of
it leads out. What .containerignore (or .dockerignore) names is as if it were not there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime import syscalls, tree
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.tree_format import Kind, Member, encode
from pymigrate.runtime.tree_walk import Walk

IGNORE_FILES = (".containerignore", ".dockerignore")
_MAX_MATCHES = 100_000


@dataclass(frozen=True)
class Ignored:
    """The rules of an ignore file, in order: the last that fits decides."""

    rules: tuple[tuple[bool, re.Pattern[str]], ...] = ()  # (ignored or, for "!", not; pattern)

    @classmethod
    def parse(cls, text: str) -> Ignored:
        """Read an ignore file: a pattern a line, ``!`` before what is to stay, ``#`` comments."""
        rules = []
        for line in text.splitlines():
            pattern = line.strip()
            if not pattern or line.startswith("#"):
                continue
            ignored = not pattern.startswith("!")
            cleaned = posixpath.normpath(pattern.removeprefix("!").strip().lstrip("/") or ".")
            if cleaned != ".":
                rules.append((ignored, re.compile(_expression(cleaned), re.DOTALL)))
        return cls(tuple(rules))

    def __contains__(self, path: str) -> bool:
        """Tell whether a relative path is ignored, itself or with one of its directories."""
        parts = path.split("/")
        parents = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        found = False
        for ignored, pattern in self.rules:
            if found != ignored and any(pattern.fullmatch(each) for each in parents):
                found = ignored
        return found


def _expression(pattern: str) -> str:
    """Turn a pattern of Go's filepath.Match, with ``**`` for any directories, into ours."""
    pieces = []
    position = 0
    while position < len(pattern):
        rest = pattern[position:]
        character = rest[0]
        position += 1
        if rest.startswith("**/"):
            pieces.append("(?:.*/)?")
            position += 2
        elif rest.startswith("**"):
            pieces.append(".*")
            position += 1
        elif character == "*":
            pieces.append("[^/]*")
        elif character == "?":
            pieces.append("[^/]")
        elif character == "[" and (match := re.match(r"\[(\^?)([^\]/]+)\]", rest)):
            chosen = match[2].replace("\\", "\\\\").replace("[", "\\[")
            pieces.append(f"(?!/)[{match[1]}{chosen}]")
            position += match.end() - 1
        elif character == "\\" and len(rest) > 1:
            pieces.append(re.escape(rest[1]))
            position += 1
        else:
            pieces.append(re.escape(character))
    return "".join(pieces)


@dataclass(frozen=True)
class Context:
    """A directory to copy from; ``ignored`` holds for it alone."""

    directory: Path
    ignored: Ignored = Ignored()

    @classmethod
    def open(cls, directory: Path) -> Context:
        """Take a directory with its ignore file.

        Raises:
            UsageError: it is none.

        """
        if not directory.is_dir():
            raise UsageError(f"{directory} is not a directory; no image was made")
        context = cls(directory)
        for name in IGNORE_FILES:
            try:
                with context.opened(name) as file, os.fdopen(os.dup(file), "rb") as stream:
                    return cls(directory, Ignored.parse(stream.read(1 << 20).decode()))
            except FileNotFoundError:
                continue
            except (UnicodeDecodeError, re.error) as error:
                raise UsageError(f"{name}: {error}; no image was made") from error
        return context

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Open a file or directory of it for reading.

        Raises:
            UsageError: it leads out, or cannot be read.
            FileNotFoundError: it is not there.

        """
        with tree.opened(self.directory) as root:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                found = syscalls.openat2(root, path or ".", flags, 0, syscalls.RESOLVE_BENEATH)
            except FileNotFoundError:
                raise
            except NotADirectoryError as error:
                raise FileNotFoundError(path) from error
            except OSError as error:
                why = error.strerror
                if error.errno in (errno.EXDEV, errno.ELOOP):
                    why = "leads out of the directory that is copied from"
                raise UsageError(f"{path}: {why}; no image was made") from error
        try:
            yield found
        finally:
            os.close(found)

    def matches(self, pattern: str) -> list[str]:
        """Return the paths that a source of COPY names, by name or by pattern, in order.

        Raises:
            UsageError: there is none, or it leads out.

        """
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        if ".." in parts:
            cleaned = posixpath.normpath("/".join(parts))
            if cleaned.startswith(".."):
                raise UsageError(
                    f"{pattern}: leads out of the directory that is copied from; no image was made"
                )
            parts = [] if cleaned == "." else cleaned.split("/")
        found = [""]
        for part in parts:
            found = [path for parent in found for path in self._step(parent, part)]
            if len(found) > _MAX_MATCHES:
                raise UsageError(f"{pattern}: fits too many files; no image was made")
        found = [path for path in found if not path or path not in self.ignored]
        if not found:
            raise UsageError(
                f"{pattern}: there is nothing of this name; no image was made",
                hint=f"it may be ignored by {IGNORE_FILES[0]} or {IGNORE_FILES[1]}",
            )
        return found

    def _step(self, parent: str, part: str) -> list[str]:
        try:
            if not re.search(r"[*?\[\\]", part):
                path = posixpath.join(parent, part)
                with self.opened(path):
                    return [path]
            expression = re.compile(_expression(part), re.DOTALL)
            with self.opened(parent) as directory:
                if not stat.S_ISDIR(os.fstat(directory).st_mode):
                    return []
                names = sorted(os.listdir(directory))  # noqa: PTH208 - a descriptor is no path
        except FileNotFoundError:
            return []
        return [posixpath.join(parent, name) for name in names if expression.fullmatch(name)]

    def members(self, path: str) -> Iterator[tuple[Member, int]]:
        """Yield a file, or a directory and all in it, as `Walk` does; names are below ``path``."""
        with self.opened(path) as found:
            status = os.fstat(found)
            if stat.S_ISDIR(status.st_mode):
                for member, file in Walk(found).members():
                    name = posixpath.join(path, os.fsdecode(member.name))
                    if not member.name or name not in self.ignored:
                        yield member, file
            elif stat.S_ISREG(status.st_mode):
                xattrs = ()  # a single file takes what a file has: content, mode and time
                yield (
                    Member(
                        b"", Kind.FILE, stat.S_IMODE(status.st_mode), status.st_uid,
                        status.st_gid, status.st_mtime_ns, status.st_size, xattrs=xattrs,
                    ),
                    found,
                )  # fmt: skip
            else:
                raise UsageError(f"{path}: neither a file nor a directory; no image was made")


@dataclass(frozen=True)
class Item:
    """One source of a COPY: where it is read, and what it becomes."""

    context: Context
    path: str
    target: str  # in the image, relative
    unpack: bool = False  # ADD of an archive

    def digest(self) -> str:
        """Return the SHA-256 of all that matters of it: names, modes and contents, no times."""
        found = hashlib.sha256()
        for member, file in self.context.members(self.path):
            found.update(encode(member._replace(mtime_ns=0, uid=0, gid=0)))
            left = member.data_size
            while left and (piece := os.read(file, min(left, tree.CHUNK))):
                found.update(piece)
                left -= len(piece)
        return found.hexdigest()


def digest(items: Sequence[Item]) -> str:
    """Return the SHA-256 of several, with where they go."""
    found = hashlib.sha256()
    for item in items:
        found.update(f"{item.target}\0{item.unpack}\0{item.digest()}\n".encode())
    return found.hexdigest()
