"""A file that appears complete, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pymigrate.runtime.errors import NoSpace, UsageError


class Target:
    """The file to be written: a temporary one beside it, and at the end the file itself."""

    def __init__(self, path: Path, temporary: Path, stream: BinaryIO) -> None:
        """Take an open temporary file; use `target`."""
        self.path = path
        self.stream = stream
        self._temporary = temporary

    def publish(self) -> int:
        """Make the file appear, complete and on the disk; return its size."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        size = os.fstat(self.stream.fileno()).st_size
        if not self._temporary.exists():  # it has no name yet: link(2) may not replace a file
            number = self.stream.fileno()
            # Python follows the link only with a directory given, which the kernel then ignores.
            os.link(f"/proc/self/fd/{number}", self._temporary, src_dir_fd=number)
        self._temporary.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return size


@contextmanager
def target(path: Path) -> Iterator[Target]:
    """Begin a file (0600) that appears when it is published, or not at all.

    Raises:
        UsageError: it cannot be made there.
        NoSpace: the disk became full in the block.

    """
    try:
        if path.exists() and not path.is_file():  # to replace a device takes it from everybody
            what = "a directory" if path.is_dir() else "not a regular file"
            raise UsageError(f"{path} is {what}; nothing was changed", hint="name a file with -o")
        descriptor, name = _nameless(path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; nothing was changed", hint="-o FILE"
        ) from error
    temporary = Path(name)
    stream = os.fdopen(descriptor, "wb")
    try:
        with writing(path):
            yield Target(path, temporary, stream)
            stream.close()
    except BaseException:
        with suppress(OSError):  # what was not written yet goes with the file
            stream.close()
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _nameless(path: Path) -> tuple[int, str]:
    """Open a file that goes with its writer, killed or not, unless the file system has none such.

    Returns its descriptor, and the name beside ``path`` that it may get.
    """
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        import tempfile  # who reads an archive makes none

        return tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    return descriptor, str(path.with_name(f".pymigrate.{os.urandom(6).hex()}"))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say NoSpace where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(
            f"the disk of {path} is full; no file was left there",
            hint="free some space, or name a file on another disk with -o",
        ) from error
