"""The stream of changes to a tree: records to bytes and back, without touching a file system.

Each record is a tag, the length of its body in 4 bytes, and the body; numbers are big-endian. The
order is fixed, so that the reader knows that nothing is removed once something was made:
HEADER, KEEP…, REMOVE…, then any of the others, END. A reader takes its input for hostile: names
are checked here, what they lead to is the reader's business (`tree_apply`).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pymigrate.runtime.errors import BadArchive
from pymigrate.runtime.tree_format import MAX_COMPONENT, MAX_NAME, Kind, member_name, shown

VERSION = 1
MAX_BODY = (4 << 20) + MAX_NAME  # all the attributes of one file, as in an archive
_READ = 1 << 20
_FRAME = struct.Struct(">cI")
_NUMBER = struct.Struct(">Q")
_RANGE = struct.Struct(">QQ")
_LINK = struct.Struct(">H")
_NODE = struct.Struct(">cIIH")  # kind, major, minor, length of the name; then the link's target
_DRESS = struct.Struct(">HIIqHH")  # mode, uid, gid, mtime, length of the name, attributes
_XATTR = struct.Struct(">BI")
_MAX_SIZE = (1 << 63) - 1


class Tag(enum.Enum):
    """What a record is about."""

    HEADER = b"H"
    KEEP = b"K"
    REMOVE = b"R"
    DIRECTORY = b"D"
    FILE = b"F"
    OPEN = b"O"
    PLACE = b"P"
    LINK = b"L"
    NODE = b"N"
    WRITE = b"W"
    ZERO = b"Z"
    TRUNCATE = b"T"
    DRESS = b"M"
    END = b"E"


@dataclass(frozen=True, slots=True)
class Header:
    """The first record; ``stash`` is a name in the root that no file has."""

    stash: bytes


@dataclass(frozen=True, slots=True)
class Keep:
    """Put a file aside, into the stash."""

    number: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a name with everything in it."""

    name: bytes


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make a directory."""

    name: bytes


@dataclass(frozen=True, slots=True)
class MakeFile:
    """Make an empty file; what follows is written into it."""

    name: bytes


@dataclass(frozen=True, slots=True)
class OpenFile:
    """Open a file that is there; what follows is written into it."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Take a file from the stash, give it a name, and open it."""

    number: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """Give a file one more name."""

    name: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class MakeNode:
    """Make what is neither directory nor regular file."""

    name: bytes
    kind: Kind
    device: tuple[int, int] = (0, 0)
    target: bytes = b""


@dataclass(frozen=True, slots=True)
class Write:
    """Write into the file that is open."""

    offset: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Zero:
    """Make a part of the file that is open zeros."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Give the file that is open its size."""

    size: int


@dataclass(frozen=True, slots=True)
class Dress:
    """Set all but the content, attributes not mentioned are removed; closes the open file."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class End:
    """The last record."""


Record = (
    Header | Keep | Remove | MakeDirectory | MakeFile | OpenFile | Place | Link | MakeNode
    | Write | Zero | Truncate | Dress | End
)  # fmt: skip
_NAMED = {MakeDirectory: Tag.DIRECTORY, MakeFile: Tag.FILE, OpenFile: Tag.OPEN, Remove: Tag.REMOVE}
_NODE_KINDS = (Kind.SYMLINK, Kind.CHARACTER, Kind.BLOCK, Kind.FIFO, Kind.SOCKET)


class Readable(Protocol):
    """Where a stream is read from."""

    def read(self, size: int, /) -> bytes:
        """Return between 1 and ``size`` bytes, or none at the end."""


# Encoding


def encode(record: Record) -> Sequence[bytes | memoryview]:
    """Return the pieces of a record's bytes; the content of a file is not copied."""
    if isinstance(record, Write):
        size = _NUMBER.size + len(record.data)
        return (_FRAME.pack(Tag.WRITE.value, size) + _NUMBER.pack(record.offset), record.data)
    match record:
        case Dress():
            framed = _framed(Tag.DRESS, _dress(record))
        case MakeDirectory(name) | MakeFile(name) | OpenFile(name) | Remove(name):
            framed = _framed(_NAMED[type(record)], name)
        case Zero(offset, length):
            framed = _framed(Tag.ZERO, _RANGE.pack(offset, length))
        case Truncate(size):
            framed = _framed(Tag.TRUNCATE, _NUMBER.pack(size))
        case Link(name, target):
            framed = _framed(Tag.LINK, _LINK.pack(len(name)) + name + target)
        case MakeNode(name, kind, device, target):
            body = _NODE.pack(kind.value, *device, len(name)) + name + target
            framed = _framed(Tag.NODE, body)
        case Keep(number, name):
            framed = _framed(Tag.KEEP, _NUMBER.pack(number) + name)
        case Place(number, name):
            framed = _framed(Tag.PLACE, _NUMBER.pack(number) + name)
        case Header(stash):
            framed = _framed(Tag.HEADER, bytes((VERSION,)) + stash)
        case End():
            framed = _framed(Tag.END, b"")
    return (framed,)


def _framed(tag: Tag, body: bytes) -> bytes:
    return _FRAME.pack(tag.value, len(body)) + body


def _dress(record: Dress) -> bytes:
    parts = [
        _DRESS.pack(
            record.mode,
            record.uid,
            record.gid,
            record.mtime_ns,
            len(record.name),
            len(record.xattrs),
        ),
        record.name,
    ]
    for key, value in record.xattrs:
        parts += [_XATTR.pack(len(key), len(value)), key, value]
    return b"".join(parts)


# Decoding


def decode(stream: Readable) -> Iterator[Record]:
    """Yield the records of a stream that nobody vouches for, END among them.

    Raises:
        BadArchive: it is cut or damaged, or says something impossible.

    """
    source = _Input(stream)
    while True:
        tag, size = _FRAME.unpack(source.take(_FRAME.size))
        if size > MAX_BODY:
            raise BadArchive(f"a record of {size} bytes among changes to files")
        body = source.take(size)
        try:
            record = _decoded(tag, body)
        except struct.error as error:
            raise BadArchive(f"a damaged record {tag!r} among changes to files") from error
        yield record
        if isinstance(record, End):
            source.require_end()
            return


class _Input:
    """Exact pieces of a stream."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._buffer = b""
        self._position = 0

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end <= len(self._buffer):
            found = self._buffer[self._position : end]
            self._position = end
            return found
        parts = [self._buffer[self._position :]]
        left = size - len(parts[0])
        while left:
            self._buffer = self._stream.read(_READ)
            if not self._buffer:
                raise BadArchive("the changes to files are cut")
            self._position = min(left, len(self._buffer))
            parts.append(self._buffer[: self._position])
            left -= self._position
        return b"".join(parts)

    def require_end(self) -> None:
        if self._position < len(self._buffer) or self._stream.read(1):
            raise BadArchive("something follows the end of the changes to files")


def _decoded(tag: bytes, body: bytes) -> Record:
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise BadArchive(f"an unknown record {tag!r} among changes to files")
    return decoder(body)


def _decode_header(body: bytes) -> Header:
    if body[:1] != bytes((VERSION,)):
        raise BadArchive("changes to files in a format that is not known")
    return Header(_component(body[1:]))


def _decode_keep(body: bytes) -> Keep:
    (number,) = _NUMBER.unpack_from(body)
    return Keep(number, _name(body[_NUMBER.size :]))


def _decode_place(body: bytes) -> Place:
    (number,) = _NUMBER.unpack_from(body)
    return Place(number, _name(body[_NUMBER.size :]))


def _decode_link(body: bytes) -> Link:
    (length,) = _LINK.unpack_from(body)
    rest = body[_LINK.size :]
    return Link(_name(rest[:length]), _name(rest[length:]))


def _decode_write(body: bytes) -> Write:
    (offset,) = _NUMBER.unpack_from(body)
    data = memoryview(body)[_NUMBER.size :]
    _check_range(offset, len(data))
    return Write(offset, data)


def _decode_zero(body: bytes) -> Zero:
    offset, length = _RANGE.unpack(body)
    _check_range(offset, length)
    return Zero(offset, length)


def _decode_truncate(body: bytes) -> Truncate:
    (size,) = _NUMBER.unpack(body)
    _check_range(size, 0)
    return Truncate(size)


def _decode_end(body: bytes) -> End:
    if body:
        raise BadArchive("a damaged end of the changes to files")
    return End()


def _decode_node(body: bytes) -> MakeNode:
    flag, major, minor, length = _NODE.unpack_from(body)
    rest = body[_NODE.size :]
    name, target = _name(rest[:length]), rest[length:]
    kind = next((kind for kind in _NODE_KINDS if kind.value == flag), None)
    if kind is None:
        raise BadArchive(f"{shown(name)}: unknown type {flag!r}")
    if not (major < 1 << 12 and minor < 1 << 20):  # kdev_t.h
        raise BadArchive(f"{shown(name)}: an impossible device number")
    if (kind is Kind.SYMLINK) != bool(target) or len(target) > MAX_NAME or b"\0" in target:
        raise BadArchive(f"{shown(name)}: an impossible target of a symbolic link")
    return MakeNode(name, kind, (major, minor), target)


def _decode_dress(body: bytes) -> Dress:
    mode, uid, gid, mtime_ns, length, count = _DRESS.unpack_from(body)
    position = _DRESS.size + length
    raw = body[_DRESS.size : position]
    name = _name(raw) if raw else b""
    if mode > 0o7777:
        raise BadArchive(f"{shown(name)}: an impossible mode")
    xattrs = []
    for _ in range(count):
        key_size, value_size = _XATTR.unpack_from(body, position)
        position += _XATTR.size
        key = body[position : position + key_size]
        value = body[position + key_size : position + key_size + value_size]
        position += key_size + value_size
        if not 0 < len(key) <= MAX_COMPONENT or b"\0" in key or len(value) > 1 << 16:
            raise BadArchive(f"{shown(name)}: an impossible extended attribute")
        xattrs.append((key, value))
    if position != len(body):
        raise BadArchive(f"{shown(name)}: a damaged record among changes to files")
    return Dress(name, mode, uid, gid, mtime_ns, tuple(xattrs))


def _name(name: bytes) -> bytes:
    """Return a name below the root, written the one way that we write it."""
    if not name or member_name(name) != name:
        raise BadArchive(f"{shown(name[:60])}: not a plain name")
    return name


def _component(name: bytes) -> bytes:
    if b"/" in _name(name):
        raise BadArchive(f"{shown(name[:60])}: not a plain name")
    return name


def _check_range(offset: int, length: int) -> None:
    if offset + length > _MAX_SIZE:
        raise BadArchive("a file of an impossible size among changes to files")


_DECODERS: dict[bytes, Callable[[bytes], Record]] = {
    Tag.HEADER.value: _decode_header,
    Tag.KEEP.value: _decode_keep,
    Tag.REMOVE.value: lambda body: Remove(_name(body)),
    Tag.DIRECTORY.value: lambda body: MakeDirectory(_name(body)),
    Tag.FILE.value: lambda body: MakeFile(_name(body)),
    Tag.OPEN.value: lambda body: OpenFile(_name(body)),
    Tag.PLACE.value: _decode_place,
    Tag.LINK.value: _decode_link,
    Tag.NODE.value: _decode_node,
    Tag.WRITE.value: _decode_write,
    Tag.ZERO.value: _decode_zero,
    Tag.TRUNCATE.value: _decode_truncate,
    Tag.DRESS.value: _decode_dress,
    Tag.END.value: _decode_end,
}
