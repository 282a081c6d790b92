"""A file whose middle can be read without what is before it, compressed or not.

Compressed, it is the zstd seekable format (zstd: contrib/seekable_format): frames of their own, and
behind them a frame that decompressors skip, with the sizes of all others. So it is still one
``.tar.zst`` for everybody else.

The sizes are believed by nobody: what is read is checked by whoever asked for it.
"""

from __future__ import annotations

import bisect
import errno
import io
import itertools
import os
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import zstandard

from pymigrate.runtime.errors import BadArchive, HostError

if TYPE_CHECKING:
    from concurrent.futures import Future

FRAME = 4 << 20
"""Bytes of plain data after which a frame ends by itself."""

_LARGEST = 64 << 20  # bytes of a frame that is read
_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPED = struct.Struct("<II")
_SKIPPED_MAGIC = 0x184D2A5E
_ENTRY = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_FOOTER_MAGIC = 0x8F92EAB1
_MOST = 1 << 26  # frames
_PIECE = 1 << 20
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Writable(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> int:
        """Take all of it."""


class Sink(Protocol):
    """Where an archive is written to."""

    def write(self, data: bytes, /) -> int:
        """Take all of it."""

    def cut(self) -> None:
        """Make it possible to read from here on."""

    def put(self, frame: bytes | Stretch, size: int, /) -> None:
        """Take a frame that `Frames` has made of so many bytes; others begin behind it."""


class Stretch(NamedTuple):
    """A part of a file, which is open."""

    descriptor: int
    offset: int
    length: int


def _write(stream: Writable, frame: bytes | Stretch) -> None:
    """Write a frame, copied by the kernel where that can be."""
    if not isinstance(frame, Stretch):
        stream.write(frame)
        return
    offset, end = frame.offset, frame.offset + frame.length
    if isinstance(stream, io.BufferedWriter):
        stream.flush()
        offset += _copied(frame, stream.fileno())
    while offset < end:
        data = os.pread(frame.descriptor, min(_PIECE, end - offset), offset)
        if not data:
            raise HostError("a file became shorter while it was written to the archive")
        stream.write(data)
        offset += len(data)


def _copied(frame: Stretch, to: int) -> int:
    """Return how much the kernel could copy: all, but from one file system to another, say."""
    done = 0
    while done < frame.length:
        left, offset = frame.length - done, frame.offset + done
        try:
            copied = os.copy_file_range(frame.descriptor, to, left, offset)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            break
        if not copied:
            break
        done += copied
    return done


class Frames:
    """Compresses frames, and opens its own again; for several threads."""

    def __init__(self, level: int | None) -> None:
        """Compress at a level; without one, not at all."""
        self._level = level
        self._own = threading.local()

    def encode(self, plain: bytes | memoryview) -> bytes:
        """Make a frame."""
        if self._level is None:
            return bytes(plain)
        compressor = getattr(self._own, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True)
            self._own.compressor = compressor
        return cast(bytes, compressor.compress(plain))

    def decode(self, frame: bytes, size: int) -> bytes:
        """Return what a frame was made of."""
        if self._level is None:
            return frame
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)


class PlainSink:
    """A stream, as it is: it can be read from everywhere."""

    def __init__(self, stream: Writable) -> None:
        """Write to a stream."""
        self._stream = stream

    def write(self, data: bytes, /) -> int:
        """Write it."""
        return self._stream.write(data)

    def cut(self) -> None:
        """Do nothing."""

    def put(self, frame: bytes | Stretch, _size: int, /) -> None:
        """Write it: it was not compressed."""
        _write(self._stream, frame)


class FrameSink:
    """Compresses frames in several threads and writes them in order. `finish` writes the table."""

    def __init__(self, stream: Writable, level: int) -> None:
        """Write to a stream; no more than a few frames are held."""
        from concurrent.futures import ThreadPoolExecutor  # 6 ms, and a restore only reads

        self._stream = stream
        self._frames = Frames(level)
        self._threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads)
        self._waiting: deque[tuple[int, Future[bytes]]] = deque()
        self._pieces: list[bytes] = []
        self._held = 0
        self._sizes: list[tuple[int, int]] = []

    def write(self, data: bytes, /) -> int:
        """Take it; a frame ends when it has become large."""
        self._pieces.append(data)
        self._held += len(data)
        if self._held >= FRAME:
            self.cut()
        return len(data)

    def cut(self) -> None:
        """End the frame."""
        if not self._held:
            return
        pieces, size = self._pieces, self._held
        self._pieces, self._held = [], 0
        self._waiting.append((size, self._pool.submit(self._compress, pieces)))
        while len(self._waiting) > 2 * self._threads:
            self._write_one()

    def put(self, frame: bytes | Stretch, size: int, /) -> None:
        """Write a frame behind all before it."""
        self._write_waiting()
        _write(self._stream, frame)
        self._sizes.append((frame.length if isinstance(frame, Stretch) else len(frame), size))

    def _compress(self, pieces: Sequence[bytes]) -> bytes:
        return self._frames.encode(b"".join(pieces))

    def _write_waiting(self) -> None:
        self.cut()
        while self._waiting:
            self._write_one()

    def _write_one(self) -> None:
        size, compressed = self._waiting.popleft()
        frame = compressed.result()
        self._stream.write(frame)
        self._sizes.append((len(frame), size))

    def finish(self) -> None:
        """Write what is left, and the table."""
        self._write_waiting()
        entries = b"".join(itertools.starmap(_ENTRY.pack, self._sizes))
        footer = _FOOTER.pack(len(self._sizes), 0, _FOOTER_MAGIC)
        self._stream.write(_SKIPPED.pack(_SKIPPED_MAGIC, len(entries) + len(footer)))
        self._stream.write(entries + footer)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


class Seekable(Protocol):
    """A file that is read anywhere, by several threads."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly so many plain bytes; raises BadArchive."""

    def piece(self, offset: int) -> bytes:
        """Return some plain bytes from here on, none at the end; raises BadArchive."""


class Stream:
    """A Seekable as a stream that begins somewhere."""

    def __init__(self, file: Seekable, offset: int) -> None:
        """Begin at an offset of the plain bytes."""
        self._file = file
        self._offset = offset
        self._rest = io.BytesIO()

    def read(self, size: int, /) -> bytes:
        """Return between 1 and ``size`` bytes, or none at the end."""
        found = self._rest.read(size)
        if not found:
            self._rest = io.BytesIO(self._file.piece(self._offset))
            found = self._rest.read(size)
        self._offset += len(found)
        return found


def opened(fd: int) -> Seekable | None:
    """Look at an open file; None if it is compressed and has no table.

    Raises BadArchive if its table is damaged.
    """
    if os.pread(fd, len(_MAGIC), 0) != _MAGIC:
        return PlainFile(fd)
    sizes = _table(fd)
    return None if sizes is None else FramedFile(fd, sizes)


def _table(fd: int) -> list[tuple[int, int]] | None:
    size = os.fstat(fd).st_size
    footer = os.pread(fd, _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) != _FOOTER.size:
        return None
    count, descriptor, magic = _FOOTER.unpack(footer)
    if magic != _FOOTER_MAGIC:
        return None
    length = count * _ENTRY.size + _FOOTER.size
    begin = size - length - _SKIPPED.size
    if descriptor or count > _MOST or begin < 0:
        raise BadArchive("its table of frames is damaged")
    data = os.pread(fd, _SKIPPED.size + length, begin)
    if data[: _SKIPPED.size] != _SKIPPED.pack(_SKIPPED_MAGIC, length):
        raise BadArchive("its table of frames is damaged")
    sizes = list(_ENTRY.iter_unpack(data[_SKIPPED.size : -_FOOTER.size]))
    if sum(compressed for compressed, _ in sizes) != begin:
        raise BadArchive("its table of frames is damaged")
    return sizes


class PlainFile:
    """A file that is not compressed."""

    def __init__(self, fd: int) -> None:
        """Take a descriptor, which stays the caller's."""
        self._fd = fd

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly so many bytes; raises BadArchive."""
        found = os.pread(self._fd, size, offset)
        if len(found) != size:
            raise BadArchive(f"it is cut at {offset + len(found)}")
        return found

    def piece(self, offset: int) -> bytes:
        """Return some bytes from here on, none at the end."""
        return os.pread(self._fd, FRAME, offset)


class FramedFile:
    """A file of frames, with their sizes."""

    def __init__(self, fd: int, sizes: Sequence[tuple[int, int]]) -> None:
        """Take a descriptor, which stays the caller's, and the compressed and plain sizes."""
        self._fd = fd
        self._own = threading.local()
        self._places = [0, *itertools.accumulate(compressed for compressed, _ in sizes)]
        self._starts = [0, *itertools.accumulate(plain for _, plain in sizes)]

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly so many plain bytes; raises BadArchive."""
        pieces = []
        while size:
            piece = self.piece(offset)[:size]
            if not piece:
                raise BadArchive("it has fewer frames than it should have")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def piece(self, offset: int) -> bytes:
        """Return the rest of the frame that has this byte; raises BadArchive."""
        number = bisect.bisect_right(self._starts, offset) - 1
        if number >= len(self._starts) - 1:
            return b""
        place, size = self._places[number], self._starts[number + 1] - self._starts[number]
        length = self._places[number + 1] - place
        if size > _LARGEST or length > 2 * _LARGEST:
            raise BadArchive(f"its frame {number} is larger than any of ours")
        compressed = os.pread(self._fd, length, place)
        try:
            if zstandard.frame_content_size(compressed) != size:
                raise BadArchive(f"its frame {number} is not what its table says")
            plain = self._decompressor().decompress(compressed, max_output_size=size)
        except zstandard.ZstdError as error:
            raise BadArchive(f"its frame {number} is damaged ({error})") from error
        return plain[offset - self._starts[number] :]

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        """Return this thread's own: to make one takes as long as to read a tenth of a frame."""
        found: zstandard.ZstdDecompressor | None = getattr(self._own, "decompressor", None)
        if found is None:
            found = self._own.decompressor = zstandard.ZstdDecompressor()
        return found
