"""Trees of files as streams: write one as a tar, read one from a tar, copy one.

`write` is deterministic: the same tree gives the same bytes on every host, so that the SHA-256 of
the stream names the tree. `read` takes its input for hostile. Both work on anything with
``write`` or ``read``, never seek, and hold no whole file in memory.
"""

from __future__ import annotations

import errno
import hashlib  # at once: some run in a root that has no Python
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pymigrate.runtime.errors import BadArchive, HostError, NoSpace
from pymigrate.runtime.tree_format import END, Member, encode, padding, shown
from pymigrate.runtime.tree_place import Placer
from pymigrate.runtime.tree_source import Source
from pymigrate.runtime.tree_walk import Walk
from pymigrate.runtime.values import dataclass

CHUNK = 1 << 20


class Writable(Protocol):
    """Where a tree is written; may take less than it is given, as raw files and sockets do."""

    def write(self, data: bytes, /) -> int | None:
        """Take some of the bytes and return how many; None means all."""


class Readable(Protocol):
    """Where a tree is read from."""

    def read(self, size: int, /) -> bytes:
        """Return between 1 and ``size`` bytes, or none at the end."""


@dataclass(frozen=True)
class Limits:
    """The most that an archive may unpack to."""

    max_bytes: int = 1 << 44
    max_files: int = 5_000_000


@dataclass(frozen=True)
class Summary:
    """What was written or read: members below the root, bytes of content, SHA-256 of the tar."""

    files: int
    bytes: int
    digest: str


def write(
    root: Path,
    stream: Writable,
    *,
    overlay: bool = False,
    sparse: bool = False,
    hashed: bool = True,
    layer: bool = False,
) -> Summary:
    """Write the tree as a tar.

    With ``overlay`` the tree is the upper directory of an overlay, whose whiteouts and
    ``trusted.overlay.*`` attributes go along; without it such attributes stay behind. Of a
    ``layer`` of an image, whiteouts and marks of opaque directories go along. With ``sparse``
    holes are not sent, and the stream then depends on where the file system has them. Hashing
    takes half of the time; without ``hashed`` the digest is empty.

    Raises:
        HostError: a file cannot be read, or changed while it was.

    """
    with opened(root) as descriptor, reading(root):
        walk = Walk(descriptor, overlay, sparse, layer)
        return write_members(walk.members(), stream, hashed=hashed)


def write_members(
    members: Iterable[tuple[Member, int]], stream: Writable, *, hashed: bool = True
) -> Summary:
    """Write members, the root first, each with a descriptor to read its content from (else -1)."""
    output = _Output(stream, hashed=hashed)
    count = size = 0
    for member, file in members:
        output.put(encode(member))
        for chunk in content(member, file):
            output.put(chunk)
        output.put(bytes(padding(member.data_size)))
        count += 1
        size += member.data_size
    output.put(END)
    output.flush()
    return Summary(count - 1, size, output.digest())


def read(
    stream: Readable,
    into: Path,
    *,
    limits: Limits | None = None,
    overlay: bool = False,
    devices: bool = False,
    hashed: bool = True,
    layer: bool = False,
) -> Summary:
    """Unpack a tar from an untrusted source into an empty directory, touching nothing outside.

    The stream must end after the archive. Device nodes are refused unless ``devices`` (with
    ``overlay``, whiteouts are no devices). Without ``hashed`` the digest is empty. On any error
    the caller removes ``into``.

    Raises:
        BadArchive: cut, damaged, over the limits or made to do harm; names the member.
        NoSpace: the disk is full.
        HostError: the files cannot be made for another reason.

    """
    source = Source(stream, hashed=hashed)
    with (
        writing(into),
        opened(into) as descriptor,
        Placer(
            descriptor, limits or Limits(), overlay=overlay, devices=devices, layer=layer
        ) as placer,
    ):
        placer.require_empty()
        while (member := source.next_member()) is not None:
            placer.place(member, source.content(member))
        placer.finish()
        return Summary(placer.files, placer.bytes, source.finish())


def copy(root: Path, into: Path, *, devices: bool = True, layer: bool = False) -> Summary:
    """Copy a tree into an empty directory; the digest is that of `write` of the copy.

    With ``layer`` the marks of a layer of an image are copied too. Raises as `write` and `read` do.
    """
    output = _Output(None, hashed=True)
    with (
        writing(into),
        opened(root) as source,
        opened(into) as target,
        Placer(target, Limits(), overlay=False, devices=devices, layer=layer) as placer,
    ):
        placer.require_empty()
        for member, file in Walk(source, layer=layer).members():
            output.put(encode(member))
            placer.place(member, _tee(content(member, file), output.put))
            output.put(bytes(padding(member.data_size)))
        placer.finish()
        output.put(END)
        output.flush()
        return Summary(placer.files, placer.bytes, output.digest())


def digest(root: Path, *, layer: bool = False) -> Summary:
    """Return what `write` would, writing nothing."""
    return write(root, Nowhere(), layer=layer)


class Nowhere:
    """A stream whose bytes nobody wants."""

    def write(self, data: bytes, /) -> int:
        """Take all."""
        return len(data)


class _Output:
    """Join small pieces, hash, and pass on; without a stream only hash."""

    def __init__(self, stream: Writable | None, *, hashed: bool) -> None:
        self._stream = stream
        self._hash = hashlib.sha256() if hashed else None
        self._pieces: list[bytes] = []
        self._size = 0

    def put(self, data: bytes) -> None:
        """Take bytes, which go out when there are enough of them."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Send what is waiting; a large piece is not copied."""
        small: list[bytes] = []
        for piece in self._pieces:
            if len(piece) < CHUNK // 4:
                small.append(piece)
                continue
            self._send(b"".join(small))
            small.clear()
            self._send(piece)
        self._send(b"".join(small))
        self._pieces.clear()
        self._size = 0

    def _send(self, data: bytes) -> None:
        if not data:
            return
        if self._hash is not None:
            self._hash.update(data)
        if self._stream is None:
            return
        sent = self._stream.write(data)
        while sent is not None and sent < len(data):
            data = data[sent:]
            sent = self._stream.write(data)

    def digest(self) -> str:
        return self._hash.hexdigest() if self._hash is not None else ""


def content(member: Member, file: int) -> Iterator[bytes]:
    """Yield a file's content, or the pieces of it that are not holes."""
    extents = ((0, member.size),) if member.extents is None else member.extents
    if member.data_size == 0:
        return
    for offset, length in extents:
        if member.extents is not None:
            os.lseek(file, offset, os.SEEK_SET)
        left = length
        while left:
            try:
                chunk = os.read(file, min(left, CHUNK))
            except OSError as error:
                raise HostError(f"cannot read {shown(member.name)}: {error.strerror}") from error
            if not chunk:
                raise HostError(
                    f"{shown(member.name)} became shorter while it was being read",
                    hint="stop what writes there, then retry",
                )
            left -= len(chunk)
            yield chunk


def _tee(chunks: Iterator[bytes], put: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        put(chunk)
        yield chunk


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Open a directory for the block."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Say which tree could not be read. Errors of the stream are not OSErrors of files."""
    try:
        yield
    except OSError as error:
        if error.filename is None:  # the stream's own: its owner knows what it means
            raise
        raise HostError(f"cannot read {_where(root, error)}: {error.strerror}") from error


@contextmanager
def writing(into: Path) -> Iterator[None]:
    """Say what an error in making a tree means."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"the disk of {into} is full", hint="free some space there, then retry"
            ) from error
        if error.errno in (errno.EFBIG, errno.EINVAL) and error.filename is not None:
            raise BadArchive(f"{_where(into, error)}: {error.strerror}") from error
        if error.filename is None:
            raise
        raise HostError(f"cannot make {_where(into, error)}: {error.strerror}") from error


def _where(root: Path, error: OSError) -> str:
    name = error.filename
    return f"{shown(os.fsencode(name))} in {root}" if isinstance(name, str | bytes) else str(root)
