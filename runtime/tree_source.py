"""Read the members of a tar from a stream that nobody vouches for."""

from __future__ import annotations

import hashlib  # at once: some run in a root that has no Python
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pymigrate.runtime.errors import BadArchive
from pymigrate.runtime.tree_format import (
    BLOCK,
    MAX_EXTENDED,
    MAX_EXTENTS,
    Header,
    Member,
    check_extents,
    decode_block,
    decode_member,
    decode_records,
    is_sparse,
    padding,
    shown,
)

if TYPE_CHECKING:
    from pymigrate.runtime.tree import Readable

_CHUNK = 1 << 20
_MAX_TRAILER = 1 << 20  # zeros after the end: tar fills records, of 10 KiB by default
_MAX_LONG_NAME = 1 << 16
_ZERO_BLOCK = bytes(BLOCK)
_ANNOUNCEMENTS = frozenset({b"L", b"K", b"x", b"g"})


class Source:
    """The members of one archive, in turn; their content must be read before the next.

    A global extended header is honoured but for what would give every member the same name.
    """

    def __init__(self, stream: Readable, *, hashed: bool = True) -> None:
        """Read from the stream, which stays the caller's."""
        self._stream = stream
        self._buffer = b""
        self._position = 0
        self._before = 0  # bytes of the stream that were in buffers before this one
        self._hash = hashlib.sha256() if hashed else None
        self._global: dict[bytes, bytes] = {}
        self._content_left = 0  # bytes of content that nobody took
        self._padding = 0
        self._last = ""  # the member before, for errors

    @property
    def offset(self) -> int:
        """Bytes of the stream up to here: where the content of the member just returned begins."""
        return self._before + self._position

    def next_member(self) -> Member | None:
        """Return the next member, None at the end mark.

        Raises:
            BadArchive: the stream is cut or damaged; names the member, or the one before.

        """
        for _ in self._take_in_pieces(self._content_left):
            pass
        self._take(self._padding)
        self._content_left = self._padding = 0
        records: dict[bytes, bytes] = {}
        while True:
            block = self._take(BLOCK)
            if block == _ZERO_BLOCK:
                if records:
                    raise BadArchive("the archive ends after an extended header")
                if self._take(BLOCK) != _ZERO_BLOCK:
                    raise BadArchive(f"a header is missing after {self._last}")
                return None
            try:
                header = decode_block(block)
            except BadArchive as error:
                if not self._last:
                    raise BadArchive("this is no tar archive") from error
                raise BadArchive(f"{error.message}, after {self._last}") from error
            if header.flag not in _ANNOUNCEMENTS:
                return self._member(header, {**self._global, **records})
            self._announced(header, records)

    def content(self, member: Member) -> Iterator[bytes]:
        """Yield the content of the member just returned: the pieces of its map, joined."""
        for chunk in self._take_in_pieces(member.data_size):
            self._content_left -= len(chunk)
            yield chunk

    def finish(self) -> str:
        """Read to the end of the stream; return the SHA-256 of the archive up to its mark.

        Raises:
            BadArchive: something other than a few zeros follows the end mark.

        """
        digest = ""
        if self._hash is not None:
            self._hash.update(self._buffer[: self._position])
            digest = self._hash.hexdigest()
        rest = self._buffer[self._position :]
        length = 0
        while rest:
            length += len(rest)
            if rest.strip(b"\0") or length > _MAX_TRAILER:
                raise BadArchive("something follows the end of the archive")
            rest = self._stream.read(_CHUNK)
        return digest

    def _announced(self, header: Header, records: dict[bytes, bytes]) -> None:
        """Remember what a header says about the next one."""
        limit = MAX_EXTENDED if header.flag in b"xg" else _MAX_LONG_NAME
        if not 0 <= header.size <= limit:
            raise BadArchive(f"an extended header is too long, after {self._last}")
        data = self._take(header.size)
        self._take(padding(header.size))
        try:
            if header.flag == b"x":
                records.update(decode_records(data))
            elif header.flag == b"g":
                found = decode_records(data)
                for key in (b"path", b"linkpath", b"size", b"SCHILY.filetype"):
                    found.pop(key, None)
                if is_sparse(found):
                    raise BadArchive("a map of holes for every member")
                self._global = {**self._global, **found}
            else:
                key = b"path" if header.flag == b"L" else b"linkpath"
                records[key] = data.split(b"\0", 1)[0]
        except BadArchive as error:
            raise BadArchive(f"{error.message}, after {self._last}") from error

    def _member(self, header: Header, records: dict[bytes, bytes]) -> Member:
        member, stored = decode_member(header, records)
        self._last = shown(member.name) or "the root"
        self._padding = padding(stored)
        self._content_left = stored
        if is_sparse(records):
            member = self._with_map(member, stored)
        return member

    def _with_map(self, member: Member, stored: int) -> Member:
        """Read the map before the content: its length, then an offset and a length a piece."""
        numbers: list[int] = []
        partial = b""
        read = 0
        while not numbers or len(numbers) < 1 + 2 * numbers[0]:
            if read + BLOCK > stored:
                raise BadArchive(f"{self._last}: its map of holes is cut")
            *lines, partial = (partial + self._take(BLOCK)).split(b"\n")
            read += BLOCK
            # Zeros fill the last block, so they show up behind its last newline only.
            if len(partial.rstrip(b"\0")) > 19 or any(
                not line.isdigit() or len(line) > 19 for line in lines
            ):
                raise BadArchive(f"{self._last}: its map of holes is damaged")
            numbers.extend(map(int, lines))
            if len(numbers) > 2 * MAX_EXTENTS or (numbers and numbers[0] > MAX_EXTENTS):
                raise BadArchive(f"{self._last}: its map of holes is too long")
        self._content_left = stored - read
        extents = tuple(zip(numbers[1::2], numbers[2::2], strict=False))[: numbers[0]]
        check_extents(member, extents, self._content_left)
        return member._replace(extents=extents)

    def _take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        end = self._position + size
        if end <= len(self._buffer):
            found = self._buffer[self._position : end]
            self._position = end
            return found
        return b"".join(self._take_in_pieces(size))

    def _take_in_pieces(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            if self._position == len(self._buffer):
                if self._hash is not None:
                    self._hash.update(self._buffer)
                self._before += len(self._buffer)
                self._buffer = self._stream.read(_CHUNK)
                self._position = 0
                if not self._buffer:
                    where = self._last or "its first header"
                    raise BadArchive(f"the archive is cut: it ends in or after {where}")
            if self._position == 0 and len(self._buffer) <= left:
                piece = self._buffer
            else:
                piece = self._buffer[self._position : self._position + left]
            self._position += len(piece)
            left -= len(piece)
            yield piece
