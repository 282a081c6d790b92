"""The bytes of a pack: many chunks in one file. Pure; docs/repository-format.md has every field.

Chunks that are stored one after another share a *blob* of up to 256 KiB, which is compressed and
sealed as one: a page alone compresses badly and costs a call each. A table at the end says what is
where; the tables of all packs together are the index of the repository, so no index can disagree
with the packs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint.sealing import ID_BYTES, TAG_BYTES, Damaged, Keys, Sealer

VERSION = 1
HEADER = struct.Struct("<8sII")
TRAILER = struct.Struct("<I4s")
BLOB = 256 << 10
"""Bytes of chunks after which a blob is closed."""

PACK = 64 << 20
"""Bytes of a pack after which another one is begun."""

MAX_PAYLOAD = 256 << 20
MAX_PLACES = 1 << 24
_MAGIC = b"pymgpack"
_END = b"kcap"
_COUNTS = struct.Struct("<II")
_PAYLOAD = struct.Struct("<BI")
_RAW, _ZSTD = 0, 1
_LEVEL = 1
_TABLE = 0  # the table's number for the sealer; the blobs are 1, 2, …

Column = NDArray[np.uint32]
Ids = NDArray[np.uint8]
"""Names of chunks: an array of N rows of 16 bytes."""


class Packer(Protocol):
    """What compresses: a ZstdCompressor, which only one thread may use at a time."""

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes:
        """Return one zstd frame that says its size."""


class Kind(IntEnum):
    """What a pack holds; walking all snapshots reads no DATA.

    A segment is the list of 16 pages that follow one another, named by the content of the pages
    and not by its own: so memory that did not change is known by one look at 64 KiB.
    """

    DATA = 1
    TREE = 2
    SEGMENTS = 3


@dataclass(frozen=True)
class Table:
    """Where each chunk of a pack is: ``blob`` counts from 0, the rest is in bytes."""

    kind: Kind
    sealed: Column
    plain: Column
    ids: Ids
    blob: Column
    offset: Column
    length: Column

    @property
    def starts(self) -> NDArray[np.uint64]:
        """Where each blob begins in the file; one more for the end of the last."""
        ends = np.cumsum(self.sealed, dtype=np.uint64)
        return np.concatenate(([0], ends)).astype(np.uint64) + np.uint64(HEADER.size)


def header(kind: Kind) -> bytes:
    """Return the first bytes of a pack."""
    return HEADER.pack(_MAGIC, VERSION, kind)


def parse_header(data: bytes) -> Kind:
    """Read the first bytes of a pack; raises Damaged."""
    if len(data) != HEADER.size:
        raise Damaged("it is cut")
    magic, version, kind = HEADER.unpack(data)
    if magic != _MAGIC or version != VERSION or kind not in tuple(Kind):
        raise Damaged("it does not begin as a pack of this version")
    return Kind(kind)


def sealer(keys: Keys, name: bytes, kind: Kind) -> Sealer:
    """Return what seals the blobs and the table of a pack."""
    return keys.sealer("pack", name, header(kind))


def compress(data: bytes | bytearray | memoryview, packer: Packer) -> bytes:
    """Make a payload: compressed, or as it is where that is not smaller."""
    packed = packer.compress(data)
    if len(packed) < len(data):
        return _PAYLOAD.pack(_ZSTD, len(data)) + packed
    return _PAYLOAD.pack(_RAW, len(data)) + bytes(data)


def compressor() -> Packer:
    """Return a compressor; each thread needs its own."""
    import zstandard

    return zstandard.ZstdCompressor(level=_LEVEL)


def decompress(payload: bytes) -> bytes:
    """Undo `compress`; raises Damaged. No more is allocated than the payload announces."""
    import zstandard

    if len(payload) < _PAYLOAD.size:
        raise Damaged("a payload is too short")
    method, size = _PAYLOAD.unpack_from(payload)
    body = memoryview(payload)[_PAYLOAD.size :]
    if size > MAX_PAYLOAD or method not in (_RAW, _ZSTD):
        raise Damaged("a payload is none of ours")
    if method == _RAW:
        plain = bytes(body)
    else:
        try:
            frame = zstandard.frame_content_size(body)
            if frame != size:
                raise Damaged("a payload has another size than it says")
            plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
        except zstandard.ZstdError as error:
            raise Damaged(f"a payload cannot be decompressed: {error}") from error
    if len(plain) != size:
        raise Damaged("a payload has another size than it says")
    return plain


class Builder:
    """Collects the chunks of one pack; what it returns is to be written in this order."""

    def __init__(self, keys: Keys, name: bytes, kind: Kind) -> None:
        """Begin a pack; write `header(kind)` first."""
        self.kind = kind
        self.size = HEADER.size
        self._sealer = sealer(keys, name, kind)
        self._sealed: list[int] = []
        self._plain: list[int] = []
        self._ids: list[bytes] = []
        self._places: list[tuple[int, int, int]] = []
        self._blobs = 0
        self._open = 0

    @property
    def chunks(self) -> int:
        """How many chunks were put in."""
        return len(self._ids)

    def place(self, identity: bytes, length: int) -> bool:
        """Give a chunk (not an empty one) its place in the open blob; True: it is full now."""
        self._ids.append(identity)
        self._places.append((self._blobs, self._open, length))
        self._open += length
        return self._open >= BLOB

    def close_blob(self) -> int:
        """Close the open blob and return its number; `seal` may be called from any thread."""
        self._plain.append(self._open)
        self._blobs += 1
        self._open = 0
        return self._blobs - 1

    def seal(self, number: int, content: bytes, packer: Packer) -> bytes:
        """Return a closed blob as it is written."""
        return self._sealer.seal(number + 1, compress(content, packer))

    def written(self, sealed: int) -> None:
        """Take down the size of the blob that was written next."""
        self._sealed.append(sealed)
        self.size += sealed

    def finish(self, packer: Packer) -> bytes:
        """Return the table and the trailer."""
        columns = np.array(self._places, dtype="<u4").reshape(-1, 3)
        plain = b"".join(
            (
                _COUNTS.pack(len(self._sealed), len(self._ids)),
                np.array(self._sealed, dtype="<u4").tobytes(),
                np.array(self._plain, dtype="<u4").tobytes(),
                b"".join(self._ids),
                *(columns[:, column].tobytes() for column in range(3)),
            )
        )
        table = self._sealer.seal(_TABLE, compress(plain, packer))
        self.size += len(table) + TRAILER.size
        return table + TRAILER.pack(len(table), _END)


def table_size(trailer: bytes, file_size: int) -> int:
    """Return how many bytes before the trailer the table has; raises Damaged."""
    if len(trailer) != TRAILER.size:
        raise Damaged("it is cut")
    size, end = TRAILER.unpack(trailer)
    if end != _END or size < TAG_BYTES or size > file_size - HEADER.size - TRAILER.size:
        raise Damaged("it does not end as a pack")
    return int(size)


def parse_table(sealed: bytes, file_size: int, kind: Kind, opener: Sealer) -> Table:
    """Read the table of a pack and check it against the size of the file; raises Damaged."""
    try:
        plain = decompress(opener.open(_TABLE, sealed))
    except Damaged as error:
        raise Damaged(f"its table: {error.message}") from error
    if len(plain) < _COUNTS.size:
        raise Damaged("its table is too short")
    blobs, chunks = _COUNTS.unpack_from(plain)
    if len(plain) != _COUNTS.size + 8 * blobs + (ID_BYTES + 12) * chunks or chunks > MAX_PLACES:
        raise Damaged("its table has another size than it says")
    place = _COUNTS.size

    def column(count: int) -> Column:
        nonlocal place
        found = np.frombuffer(plain, dtype="<u4", count=count, offset=place)
        place += 4 * count
        return found.astype(np.uint32)

    sizes, plains = column(blobs), column(blobs)
    ids = np.frombuffer(plain, np.uint8, ID_BYTES * chunks, place).reshape(-1, ID_BYTES)
    place += ID_BYTES * chunks
    table = Table(kind, sizes, plains, ids, column(chunks), column(chunks), column(chunks))
    if int(table.starts[-1]) + len(sealed) + TRAILER.size != file_size:
        raise Damaged("it is not as long as its blobs together")
    if chunks:
        if int(table.blob.max()) >= blobs:
            raise Damaged("its table names a blob that is not there")
        ends = table.offset.astype(np.uint64) + table.length
        if bool((ends > table.plain[table.blob]).any()):
            raise Damaged("its table names bytes that are not there")
    return table


def open_blob(sealed: bytes, number: int, opener: Sealer) -> bytes:
    """Return the chunks of a blob, one after another; raises Damaged."""
    return decompress(opener.open(number + 1, sealed))


def join(ids: Sequence[bytes]) -> Ids:
    """Make an array of names."""
    return np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(-1, ID_BYTES)
