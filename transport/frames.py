"""Cut a stream of bytes into frames and put it together again; no I/O happens here.

::

    0      2      3       4          8          12        16
    +------+------+-------+----------+----------+---------+------------------+
    | "pM" | kind | flags |  number  |  length  |  crc32  | length × payload |
    +------+------+-------+----------+----------+---------+------------------+

All numbers are big-endian. ``number`` counts the DATA frames of one stream; it is 0 elsewhere.
The CRC-32 runs over the first twelve bytes and the payload. With SEALED it leaves the payload out:
SSH and TLS authenticate it already, and a CRC costs 0.7 CPU seconds per GB at each end.

What comes from the other side is hostile: a frame is refused by its first sixteen bytes, before
memory is set aside for it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pymigrate.runtime.errors import Corrupted, ProtocolError

Buffer = bytes | bytearray | memoryview

MAGIC = b"pM"
HEADER_SIZE = 16
_PREFIX = struct.Struct(">2sBBII")
_CHECKSUM = struct.Struct(">I")

CHUNK_SIZE = 1 << 20  # bytes of a stream that travel in one DATA frame, before compression
MAX_NUMBER = 2**32 - 1


class Kind(IntEnum):
    """What a frame is. Numbers never change their meaning; see CONTRIBUTING for adding one."""

    REQUEST = 1  # a Request message
    REPLY = 2  # a Reply message
    ERROR = 3  # an Error message, instead of a Reply
    EVENT = 4  # news during a request; whoever does not know it ignores it
    DATA = 5  # a piece of the stream that belongs to the last REQUEST
    END = 6  # the stream is complete, or (ABORTED) its writer gave up
    PING = 7  # "I am alive"


class Flag(IntFlag):
    """How a payload is to be read."""

    NONE = 0
    ZSTD = 1  # DATA: one zstd frame that states its content size
    ABORTED = 2  # END: what came before is to be thrown away
    SEALED = 4  # DATA: the channel authenticates the payload, which the CRC-32 leaves out
    ASIDE = 8  # REQUEST: its stream comes over the data connection, see direct.py


MAX_PAYLOAD: dict[Kind, int] = {
    Kind.REQUEST: 16 << 20,  # a manifest or an OCI configuration is inside
    Kind.REPLY: 16 << 20,
    Kind.ERROR: 256 << 10,
    Kind.EVENT: 256 << 10,
    Kind.DATA: 4 << 20,
    Kind.END: 64,
    Kind.PING: 0,
}
ALLOWED_FLAGS: dict[Kind, Flag] = {
    Kind.REQUEST: Flag.ASIDE,
    Kind.DATA: Flag.ZSTD | Flag.SEALED,
    Kind.END: Flag.ABORTED,
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One unit on the wire. The payload may be a view: it is not copied and must not change."""

    kind: Kind
    payload: Buffer = b""
    flags: Flag = Flag.NONE
    number: int = 0

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return len(self.payload)


def encode_header(frame: Frame, *, sealed: bool = False) -> bytes:
    """Give the sixteen bytes that go before the payload.

    ``sealed`` is for channels that authenticate what they carry. Raises ProtocolError for a frame
    that the other side would refuse.
    """
    length = len(frame.payload)
    if length > MAX_PAYLOAD[frame.kind]:
        message = f"{frame.kind.name} of {length} bytes is over {MAX_PAYLOAD[frame.kind]}"
        raise ProtocolError(message)
    if not 0 <= frame.number <= MAX_NUMBER:
        message = f"frame number {frame.number} does not fit 32 bits"
        raise ProtocolError(message)
    sealed = sealed and frame.kind is Kind.DATA
    flags = frame.flags | Flag.SEALED if sealed else frame.flags
    prefix = _PREFIX.pack(MAGIC, frame.kind, flags, frame.number, length)
    checksum = zlib.crc32(prefix)
    if not sealed:
        checksum = zlib.crc32(frame.payload, checksum)
    return prefix + _CHECKSUM.pack(checksum)


def encode(frame: Frame) -> bytes:
    """Give the whole frame as it looks on the wire; senders of big payloads use encode_header."""
    return b"".join((encode_header(frame), frame.payload))


def _parse_prefix(header: Buffer) -> tuple[Kind, Flag, int, int]:
    magic, kind_number, flag_bits, number, length = _PREFIX.unpack_from(header)
    if magic != MAGIC:
        message = f"the other side does not speak our protocol: it sent {bytes(header)!r}"
        raise ProtocolError(message)
    if kind_number not in Kind.__members__.values():
        message = f"unknown kind of frame: {kind_number}"
        raise ProtocolError(message)
    kind = Kind(kind_number)
    if flag_bits & ~int(ALLOWED_FLAGS.get(kind, 0)):  # ~ of a Flag knows only the named bits
        message = f"{kind.name} with unknown flags {flag_bits:#04x}"
        raise ProtocolError(message)
    if length > MAX_PAYLOAD[kind]:
        message = f"{kind.name} announces {length} bytes, more than {MAX_PAYLOAD[kind]}"
        raise ProtocolError(message)
    if number and kind is not Kind.DATA:
        message = f"{kind.name} carries a number"
        raise ProtocolError(message)
    return kind, Flag(flag_bits), number, length


class Decoder:
    """Assemble frames from bytes that arrive in pieces of any size.

    Either ``feed`` bytes, or let the operating system write where ``buffer`` says and report how
    much with ``filled``: then a payload is never copied. After ProtocolError or Corrupted the
    position in the stream is lost: throw the decoder and its connection away.
    """

    def __init__(self) -> None:
        """Expect a header."""
        self._header = bytearray(HEADER_SIZE)
        self._payload = bytearray()
        self._have = 0
        self._announced: tuple[Kind, Flag, int, int] | None = None

    @property
    def midway(self) -> bool:
        """A frame has begun and is not complete: an end of file here is a cut."""
        return self._have > 0 or self._announced is not None

    @property
    def received(self) -> bytes:
        """What arrived of an incomplete header, for saying what was sent instead of a frame."""
        return b"" if self._announced else bytes(self._header[: self._have])

    def buffer(self) -> memoryview:
        """Give the place for the next bytes; at least one byte long, at most what is missing."""
        target = self._header if self._announced is None else self._payload
        return memoryview(target)[self._have :]

    def filled(self, count: int) -> Frame | None:
        """Take note that ``count`` bytes were written to ``buffer``; give a frame if complete."""
        self._have += count
        if self._announced is None:
            if self._have < HEADER_SIZE:
                # Noise (a banner, a shell's complaint) may be shorter than a header: refuse early.
                if not MAGIC.startswith(self._header[: min(self._have, len(MAGIC))]):
                    _parse_prefix(self._header)
                return None
            self._announced = _parse_prefix(self._header)
            self._payload = bytearray(self._announced[3])
            self._have = 0
        kind, flags, number, length = self._announced
        if self._have < length:
            return None
        (checksum,) = _CHECKSUM.unpack_from(self._header, _PREFIX.size)
        expected = zlib.crc32(memoryview(self._header)[: _PREFIX.size])
        if not flags & Flag.SEALED:
            expected = zlib.crc32(self._payload, expected)
        if expected != checksum:
            message = f"a {kind.name} frame of {length} bytes arrived damaged"
            raise Corrupted(message)
        frame = Frame(kind, self._payload, flags & ~Flag.SEALED, number)
        self._payload = bytearray()
        self._have = 0
        self._announced = None
        return frame

    def feed(self, data: Buffer) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes; exhaust it before feeding more."""
        view = memoryview(data)
        while view:
            place = self.buffer()
            count = min(len(place), len(view))
            place[:count] = view[:count]
            place.release()
            view = view[count:]
            frame = self.filled(count)
            if frame is not None:
                yield frame
