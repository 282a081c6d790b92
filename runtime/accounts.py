"""Users of a container, looked up in its own passwd(5) and group(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pymigrate.runtime import errors, syscalls
from pymigrate.runtime.spec import User
from pymigrate.runtime.values import dataclass

_MAX_BYTES = 4 * 1024 * 1024
_MAX_ID = 2**32 - 2  # 2**32 - 1 means "unchanged" to chown(2) and setresuid(2)


@dataclass(frozen=True)
class Account:
    """Whom to run as, and where home is."""

    user: User
    home: str


def resolve(text: str, passwd: str, group: str) -> Account:
    """Resolve ``USER[:GROUP]``, each a name or a number; the empty text is root.

    Raises:
        UsageError: a name is not in these files.

    """
    wanted_user, _, wanted_group = text.partition(":")
    entry = _find(passwd, wanted_user or "0", 2)
    if entry is not None:
        uid, gid, home, name = int(entry[2]), int(entry[3]), entry[5] or "/", entry[0]
    elif wanted_user and not wanted_user.isdigit():
        raise errors.UsageError(
            f"the container has no user {wanted_user!r}; nothing was run",
            hint="give a number, or a name of its /etc/passwd",
        )
    else:
        uid, gid, name = _number(wanted_user or "0"), 0, ""
        home = "/root" if uid == 0 else "/"
    if not wanted_group:
        return Account(User(uid, gid, _memberships(group, name) if name else ()), home)
    named = _find(group, wanted_group, 2)
    if named is None and not wanted_group.isdigit():
        raise errors.UsageError(
            f"the container has no group {wanted_group!r}; nothing was run",
            hint="give a number, or a name of its /etc/group",
        )
    return Account(User(uid, int(named[2]) if named else _number(wanted_group)), home)


def resolve_in_layers(text: str, directories: Sequence[Path]) -> Account:
    """Resolve against a root that is not mounted: its directories, the highest last."""
    return resolve(text, _topmost(directories, "etc/passwd"), _topmost(directories, "etc/group"))


def _topmost(directories: Sequence[Path], path: str) -> str:
    for directory in reversed(directories):
        text = _read(directory, path)
        if text is not None:
            return text
    return ""


def _read(root: Path, path: str) -> str | None:
    """Read a file as it looks from inside a root, whatever symbolic links are in it."""
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fd = syscalls.openat2(
            root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, 0, syscalls.RESOLVE_IN_ROOT
        )
    except OSError:  # not there, or no file: names cannot be looked up in it
        return None
    finally:
        os.close(root_fd)
    with os.fdopen(fd, "rb") as stream:
        try:
            return stream.read(_MAX_BYTES).decode(errors="replace")
        except OSError:  # a directory
            return None


def _entries(text: str, count: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= count and fields[2].isdigit():
            yield fields


def _find(text: str, wanted: str, number: int) -> list[str] | None:
    for fields in _entries(text, 4):
        if fields[0] == wanted or (wanted.isdigit() and fields[number] == wanted):
            padded = [*fields, "", "", ""]
            padded[3] = padded[3] if padded[3].isdigit() else "0"
            return padded
    return None


def _memberships(group: str, name: str) -> tuple[int, ...]:
    return tuple(
        sorted(int(fields[2]) for fields in _entries(group, 4) if name in fields[3].split(","))
    )


def _number(text: str) -> int:
    number = int(text)
    if number > _MAX_ID:
        raise errors.UsageError(f"{text} is too high for a user or group; nothing was run")
    return number
