"""The tar format of a tree: members to header bytes and back, without touching a file system.

POSIX.1-2001 pax interchange format (pax(1)) in its most frugal form: a ustar header, preceded by
an extended header only where ustar cannot say it. What goes beyond pax follows what other tools
read and write:

* extended attributes: ``SCHILY.xattr.NAME`` (star, GNU tar, libarchive); ``%`` and ``=`` in the
  name are written %25 and %3D, as GNU tar does. POSIX ACLs travel as system.posix_acl_*;
* sparse files: GNU tar's PAX format 1.0 (``GNU.sparse.*``, the map before the data);
* unix sockets: an empty regular file with ``SCHILY.filetype=socket`` (star).

Names are bytes, relative, without ``./`` or a slash at the end; the root itself is ``b""``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pymigrate.runtime.errors import BadArchive

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_NAME = 4095  # PATH_MAX without its NUL: the kernel opens nothing longer
MAX_COMPONENT = 255  # NAME_MAX
MAX_DEPTH = 500  # one descriptor per level is kept open; the usual limit is 1024
MAX_EXTENDED = 4 << 20  # bytes of one extended header; the kernel allows 64 KiB per attribute
MAX_EXTENTS = 1 << 20

_OCTAL7 = 0o7777777
_OCTAL11 = 0o77777777777
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_XATTR = b"SCHILY.xattr."
_PAX_PREFIX = b"PaxHeaders/"
_SPARSE_PREFIX = b"GNUSparseFile/"


class Kind(enum.Enum):
    """What a member is; the value is its type flag."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"
    SOCKET = b"S"  # never on the wire: see the module's docstring


class Member(NamedTuple):
    """One name of a tree. ``size`` is what stat(2) says, holes included; ``mode`` has 12 bits.

    ``extents`` is None for a file without a map, else its (offset, length) pieces of data.
    """

    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    extents: tuple[tuple[int, int], ...] | None = None

    @property
    def data_size(self) -> int:
        """How many bytes of the file's content follow."""
        if self.extents is None:
            return self.size
        return sum(length for _, length in self.extents)


def shown(name: bytes) -> str:
    """Return a name for people: control characters and bytes that are not UTF-8 escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def padding(size: int) -> int:
    """Return how many zeros fill the last block of ``size`` bytes."""
    return -size % BLOCK


# Encoding


def encode(member: Member) -> bytes:
    """Return all that comes before the content: headers and, for a sparse file, its map."""
    name = member.name or b"."
    if member.kind is Kind.DIRECTORY:
        name += b"/"
    records: dict[bytes, bytes] = {}
    size = member.size if member.kind is Kind.FILE else 0
    sparse_map = b""
    if member.extents is not None:
        sparse_map = _sparse_map(member.extents)
        size = len(sparse_map) + member.data_size
        records[b"GNU.sparse.major"] = b"1"
        records[b"GNU.sparse.minor"] = b"0"
        records[b"GNU.sparse.name"] = name
        records[b"GNU.sparse.realsize"] = b"%d" % member.size
        name = _SPARSE_PREFIX + name.rpartition(b"/")[2][:80]
    if len(name) > 100:
        records[b"path"] = name
    if len(member.target) > 100:
        records[b"linkpath"] = member.target
    if member.uid > _OCTAL7:
        records[b"uid"] = b"%d" % member.uid
    if member.gid > _OCTAL7:
        records[b"gid"] = b"%d" % member.gid
    if size > _OCTAL11:
        records[b"size"] = b"%d" % size
    seconds, nanoseconds = divmod(member.mtime_ns, 1_000_000_000)
    if member.kind is not Kind.HARDLINK:
        if nanoseconds or not 0 <= seconds <= _OCTAL11:
            records[b"mtime"] = _encode_time(member.mtime_ns)
        for key, value in member.xattrs:
            records[_XATTR + key.replace(b"%", b"%25").replace(b"=", b"%3D")] = value
    if member.kind is Kind.SOCKET:
        records[b"SCHILY.filetype"] = b"socket"
    header = _ustar(
        name[:100],
        Kind.FILE.value if member.kind is Kind.SOCKET else member.kind.value,
        mode=member.mode,
        uid=member.uid if member.uid <= _OCTAL7 else 0,
        gid=member.gid if member.gid <= _OCTAL7 else 0,
        size=size if size <= _OCTAL11 else 0,
        mtime=seconds if 0 <= seconds <= _OCTAL11 else 0,
        target=member.target[:100],
        device=member.device,
    )
    if not records:
        return header + sparse_map
    extended = b"".join(_record(key, records[key]) for key in sorted(records))
    extended_name = _PAX_PREFIX + member.name.rpartition(b"/")[2][:80]
    return b"".join((
        _ustar(extended_name, b"x", mode=0o644, size=len(extended)),
        extended,
        bytes(padding(len(extended))),
        header,
        sparse_map,
    ))  # fmt: skip


def _ustar(
    name: bytes,
    flag: bytes,
    *,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    fields = (
        name, b"%07o" % mode, b"%07o" % uid, b"%07o" % gid, b"%011o" % size, b"%011o" % mtime,
        b" " * 8, flag, target, b"ustar", b"00", b"", b"", b"%07o" % device[0],
        b"%07o" % device[1], b"",
    )  # fmt: skip
    block = _USTAR.pack(*fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``LENGTH key=value`` and a newline, where LENGTH counts its own digits too."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _encode_time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    return sign + b"%d.%09d" % divmod(abs(nanoseconds), 1_000_000_000)


def _sparse_map(extents: Sequence[tuple[int, int]]) -> bytes:
    lines = [b"%d\n" % len(extents)]
    lines += [b"%d\n%d\n" % extent for extent in extents]
    text = b"".join(lines)
    return text + bytes(padding(len(text)))


# Decoding


class Header(NamedTuple):
    """One header block as it stands: a member's, or one that announces what the next one lacks."""

    name: bytes
    flag: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: bytes
    device: tuple[int, int]


def decode_block(block: bytes) -> Header:
    """Return the header in a block of 512 bytes; BadArchive if it is none or is damaged."""
    (name, mode, uid, gid, size, mtime, checksum, flag, target, magic, _version, _uname, _gname,
     major, minor, prefix) = _USTAR.unpack(block)  # fmt: skip
    expected = sum(block) - sum(checksum) + 8 * ord(" ")
    if _number(checksum, "checksum") != expected:
        raise BadArchive("a header's checksum is wrong")
    name = name.split(b"\0", 1)[0]
    # Old GNU headers ("ustar  ") keep other things where POSIX keeps the prefix.
    if magic == b"ustar\0" and prefix[0]:
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    is_device = flag in (b"3", b"4")
    return Header(
        name=name,
        flag=flag,
        mode=_number(mode, "mode") & 0o7777,
        uid=_number(uid, "uid"),
        gid=_number(gid, "gid"),
        size=_number(size, "size"),
        mtime=_number(mtime, "mtime"),
        target=target.split(b"\0", 1)[0],
        device=(_number(major, "major"), _number(minor, "minor")) if is_device else (0, 0),
    )


def _number(field: bytes, what: str) -> int:
    """Decode octal digits, or GNU's base 256 (bit 7 of the first byte set)."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise BadArchive(f"a header's {what} is not a number")
    return int(text, 8)


def decode_records(data: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header; BadArchive if they do not fill it exactly."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise BadArchive("an extended header is damaged")
        end = position + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space + 1 or not equals or data[end - 1 : end] != b"\n":
            raise BadArchive("an extended header is damaged")
        records[key] = value
        position = end
    return records


def member_name(name: bytes) -> bytes:
    """Return a name from an archive made relative and plain; BadArchive if it leads out."""
    if name.startswith(b"/"):
        raise BadArchive(f"{shown(name)}: an absolute name")
    if b"\0" in name:
        raise BadArchive(f"{shown(name)}: a NUL in the name")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise BadArchive(f"{shown(name)}: a name with '..'")
    if not name:
        raise BadArchive("a member without a name")
    if len(name) > MAX_NAME or any(len(part) > MAX_COMPONENT for part in parts):
        raise BadArchive(f"{shown(name[:60])}…: the name is too long")
    if len(parts) > MAX_DEPTH:
        raise BadArchive(f"{shown(name[:60])}…: more than {MAX_DEPTH} directories deep")
    return b"/".join(parts)


def decode_member(header: Header, records: dict[bytes, bytes]) -> tuple[Member, int]:
    """Join a header with the extended records that apply to it.

    Returns the member, without a sparse file's map, and how many bytes follow in the archive.
    """
    name = member_name(records.get(b"GNU.sparse.name") or records.get(b"path") or header.name)
    try:
        kind = _kind(header, records)
        stored = _decimal(records, b"size", header.size)
        sparse = is_sparse(records)
        size = _decimal(records, b"GNU.sparse.realsize", 0) if sparse else stored
        mtime_ns = header.mtime * 1_000_000_000
        if b"mtime" in records:
            mtime_ns = _decode_time(records[b"mtime"])
        uid = _decimal(records, b"uid", header.uid)
        gid = _decimal(records, b"gid", header.gid)
    except BadArchive as error:
        raise BadArchive(f"{shown(name)}: {error.message}") from error
    if not (0 <= stored < 1 << 63 and 0 <= size < 1 << 63):
        raise BadArchive(f"{shown(name)}: an impossible size")
    if not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32):
        raise BadArchive(f"{shown(name)}: an impossible owner")
    if abs(mtime_ns) >= 1 << 63:  # what the kernel's own clock can hold
        raise BadArchive(f"{shown(name)}: an impossible time")
    major, minor = header.device
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):  # kdev_t.h
        raise BadArchive(f"{shown(name)}: an impossible device number")
    if sparse and kind is not Kind.FILE:
        raise BadArchive(f"{shown(name)}: a map of holes for what is not a file")
    # POSIX allows a hard link to carry the content again; only cpio-like writers did.
    if kind is not Kind.FILE and stored:
        raise BadArchive(f"{shown(name)}: content where none belongs")
    member = Member(
        name=name,
        kind=kind,
        mode=header.mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        size=size,
        target=_target(name, kind, records.get(b"linkpath") or header.target),
        device=header.device,
        xattrs=_decode_xattrs(name, records),
    )
    return member, stored


def _kind(header: Header, records: dict[bytes, bytes]) -> Kind:
    if header.flag in (b"0", b"\0", b"7"):  # \0: before POSIX; 7: contiguous
        if records.get(b"SCHILY.filetype") == b"socket":
            return Kind.SOCKET
        # Archives from before POSIX mark a directory by its slash only.
        if header.flag == b"\0" and header.name.endswith(b"/"):
            return Kind.DIRECTORY
        return Kind.FILE
    if header.flag in b"123456":
        return Kind(header.flag)
    if header.flag == b"S":
        raise BadArchive("a sparse file in GNU tar's old format", hint="write it with --format=pax")
    raise BadArchive(f"unknown type {header.flag!r}")


def _target(name: bytes, kind: Kind, target: bytes) -> bytes:
    if kind is Kind.HARDLINK:
        try:
            linked = member_name(target)
        except BadArchive as error:
            raise BadArchive(f"{shown(name)}: a hard link to {error.message}") from error
        if linked in (b"", name):
            raise BadArchive(f"{shown(name)}: a hard link to itself or to the root")
        return linked
    if kind is Kind.SYMLINK:
        if not 0 < len(target) <= MAX_NAME or b"\0" in target:
            raise BadArchive(f"{shown(name)}: an impossible target of a symbolic link")
        return target
    return b""


def _decode_xattrs(name: bytes, records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for key, value in records.items():
        if key.startswith(_XATTR):
            plain = key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            if not 0 < len(plain) <= MAX_COMPONENT or b"\0" in plain or len(value) > 1 << 16:
                raise BadArchive(f"{shown(name)}: an impossible extended attribute")
            found.append((plain, value))
    return tuple(sorted(found))


def _decimal(records: dict[bytes, bytes], key: bytes, default: int) -> int:
    value = records.get(key)
    if value is None:
        return default
    if not value.isdigit() or len(value) > 20:
        raise BadArchive(f"its {key.decode()} is not a number")
    return int(value)


def _decode_time(text: bytes) -> int:
    seconds, _, fraction = text.removeprefix(b"-").partition(b".")
    if not (seconds + fraction).isdigit() or len(text) > 40:
        raise BadArchive("its mtime is not a number")
    value = int(seconds or b"0") * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -value if text.startswith(b"-") else value


def is_sparse(records: Iterable[bytes]) -> bool:
    """Return whether a map of holes precedes the content; BadArchive for the older formats."""
    keys = set(records)
    if b"GNU.sparse.major" in keys:
        return True
    if any(key.startswith(b"GNU.sparse.") for key in keys):
        raise BadArchive(
            "a sparse file in GNU tar's format 0.x", hint="write it with --sparse-version=1.0"
        )
    return False


def check_extents(member: Member, extents: Sequence[tuple[int, int]], stored: int) -> None:
    """Raise BadArchive unless the pieces ascend, stay inside the file and fill what is stored."""
    position = 0
    for offset, length in extents:
        if offset < position or offset + length > member.size:
            raise BadArchive(f"{shown(member.name)}: its map of holes is damaged")
        position = offset + length
    if sum(length for _, length in extents) != stored:
        raise BadArchive(f"{shown(member.name)}: its map of holes is damaged")
