"""Read a stream that may be compressed, by what its first bytes say."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import IO, Protocol, cast

from pymigrate.runtime.errors import BadArchive

_CHUNK = 1 << 18
_MAGIC = 6


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return between 1 and ``size`` bytes, or none at the end."""


class _Decompressor(Protocol):
    """One compressed stream of possibly several, as bz2 and lzma define it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def plain(stream: Readable) -> Readable:
    """Return the stream, decompressed if it is gzip, xz, bzip2 or zstd.

    Its ``read`` raises BadArchive where the compressed bytes are damaged or cut.
    """
    head = b""
    while len(head) < _MAGIC and (piece := stream.read(_MAGIC - len(head))):
        head += piece
    whole = _Rejoined(head, stream)
    if head.startswith(b"\x1f\x8b"):
        return _Decompressed(whole, _Gzip)
    if head.startswith(b"\xfd7zXZ\0"):
        return _Decompressed(whole, lzma.LZMADecompressor)
    if head.startswith(b"BZh"):
        return _Decompressed(whole, bz2.BZ2Decompressor)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _Zstd(whole)
    return whole


class _Rejoined:
    """A stream whose first bytes were looked at."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head or self._stream.read(size)


class _Gzip:
    """zlib with the manners of bz2 and lzma."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail and not self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


class _Decompressed:
    def __init__(self, stream: Readable, kind: type[_Decompressor]) -> None:
        self._stream = stream
        self._kind = kind
        self._current: _Decompressor = kind()
        self._waiting = b""

    def read(self, size: int, /) -> bytes:
        try:
            while True:
                if self._current.eof and not self._next_member():
                    return b""
                data = b""
                if self._current.needs_input:
                    data = self._waiting or self._stream.read(_CHUNK)
                    self._waiting = b""
                    if not data:
                        raise BadArchive("its compressed bytes are cut")
                if found := self._current.decompress(data, size):
                    return found
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file's, not bz2's
            raise BadArchive(f"its compressed bytes are damaged ({error})") from error

    def _next_member(self) -> bool:
        """Begin the next of several compressed streams joined; zeros between them are padding."""
        rest = self._current.unused_data
        while not (rest := rest.lstrip(b"\0")):
            rest = self._stream.read(_CHUNK)
            if not rest:
                return False
        self._waiting = rest
        self._current = self._kind()
        return True


class _Zstd:
    def __init__(self, stream: Readable) -> None:
        import zstandard  # here: it costs 10 ms that only this format should pay

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor().stream_reader(
            cast("IO[bytes]", stream), read_size=_CHUNK, read_across_frames=True
        )

    def read(self, size: int, /) -> bytes:
        try:
            return self._reader.read(size)
        except self._error as error:
            raise BadArchive(f"its compressed bytes are damaged ({error})") from error
