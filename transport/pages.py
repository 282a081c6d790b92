"""Pages of memory on the wire: what a piece of the conversation about them says. Pure, no I/O.

A batch is about pages of one process. Its content comes first, so that memory can be read into the
place that is sent; a table of runs and an end of fixed size say what it is::

    +-----------------+----------------------------------+-----------------------------+
    | content         | runs: address u64, pages u32,    | stage u8, 0 u8, runs u16,   |
    | n × page        | kind u8, 0 0 0                   | process u32                 |
    +-----------------+----------------------------------+-----------------------------+

All numbers are big-endian. Runs are in the order of their addresses and do not overlap; the content
is that of the runs of kind CONTENT, in their order. An EARLY run of kind SAME asks whether the
target still holds what it was sent for that process before a cut: see HELD. News go the other way,
each of sixteen bytes.

What comes from the other side is hostile: `decode` and `parse_news` refuse what is not of this
form, and never set memory aside by a number that was sent.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pymigrate.runtime.errors import ProtocolError
from pymigrate.transport.frames import Buffer

PAGE = 4096
MAX_PAGES = 512
"""Of content in one batch: 2 MiB, which a slow link delays a wanted page by."""
MAX_RUNS = 1024
MAX_ADDRESS = 1 << 63
MAX_RUN = 1 << 32  # pages; a run of zeros may be long

_RUN = struct.Struct(">QIB3x")
_END = struct.Struct(">BxHI")
_NEWS = struct.Struct(">BxxxIQ")
TRAILER = _END.size + MAX_RUNS * _RUN.size
"""Bytes that a batch may need beyond its content."""


class Stage(enum.IntEnum):
    """When pages were read."""

    EARLY = 1  # while the process ran: the target keeps them, they may change
    FINAL = 2  # while it is frozen: the target puts them where they belong


class Kind(enum.IntEnum):
    """What a run of pages holds."""

    CONTENT = 1  # what the batch says
    ZERO = 2  # nothing but zeros
    SAME = 3  # what the target was sent for these addresses before


@dataclass(frozen=True, slots=True)
class Run:
    """Pages that follow one another; ``address`` in bytes."""

    address: int
    pages: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of the process ``inner``, a PID as CRIU's images have it."""

    stage: Stage
    inner: int
    runs: Sequence[Run]
    content: memoryview


class News(enum.IntEnum):
    """What the target says."""

    WANTED = 1  # a process waits for the page at an address
    TAKEN = 2  # so many bytes of batches are dealt with
    ATTACHED = 3  # so many processes are there, and their memory can be filled
    COMPLETE = 4  # nothing is missing; what is sent all the same is not looked at
    HELD = 5  # asked: pages of a process that came before are still there


def seal(buffer: bytearray, pages: int, stage: Stage, inner: int, runs: Sequence[Run]) -> int:
    """Write the end of a batch behind its content, which is in the buffer; return its length."""
    if len(runs) > MAX_RUNS or pages > MAX_PAGES:
        raise ValueError(f"a batch of {len(runs)} runs and {pages} pages")
    at = pages * PAGE
    for run in runs:
        _RUN.pack_into(buffer, at, run.address, run.pages, run.kind)
        at += _RUN.size
    _END.pack_into(buffer, at, stage, len(runs), inner)
    return at + _END.size


def encode(batch: Batch) -> bytes:
    """Return a whole batch."""
    pages = len(batch.content) // PAGE
    buffer = bytearray(batch.content)
    buffer += bytes(_END.size + len(batch.runs) * _RUN.size)
    length = seal(buffer, pages, batch.stage, batch.inner, batch.runs)
    return bytes(buffer[:length])


def decode(piece: Buffer) -> Batch:
    """Read a batch; its content is a view of ``piece``. Raises ProtocolError for what is none."""
    view = memoryview(piece).cast("B")
    if len(view) < _END.size:
        message = f"a batch of {len(view)} bytes"
        raise ProtocolError(message)
    stage, count, inner = _END.unpack_from(view, len(view) - _END.size)
    begin = len(view) - _END.size - count * _RUN.size
    if stage not in Stage.__members__.values() or count > MAX_RUNS or begin < 0:
        message = f"a batch of stage {stage} with {count} runs in {len(view)} bytes"
        raise ProtocolError(message)
    runs = []
    behind = content = 0
    for address, pages, kind in _RUN.iter_unpack(view[begin : len(view) - _END.size]):
        end = address + pages * PAGE
        if address < behind or address % PAGE or pages == 0 or end > MAX_ADDRESS:
            message = f"a run of {pages} pages at {address:#x}"
            raise ProtocolError(message)
        if kind not in Kind.__members__.values():
            message = f"a run of kind {kind}"
            raise ProtocolError(message)
        behind = end
        content += pages if kind == Kind.CONTENT else 0
        runs.append(Run(address, pages, Kind(kind)))
    if content > MAX_PAGES or content * PAGE != begin:
        message = f"a batch of {content} pages with {begin} bytes of content"
        raise ProtocolError(message)
    return Batch(Stage(stage), inner, runs, view[:begin])


def news(kind: News, *, inner: int = 0, value: int = 0) -> bytes:
    """Write one of the target's words down."""
    return _NEWS.pack(kind, inner, value)


def parse_news(payload: Buffer) -> list[tuple[News, int, int]]:
    """Read the target's words: kind, process, and address or number. Raises ProtocolError."""
    if len(payload) % _NEWS.size:
        message = f"news of {len(payload)} bytes"
        raise ProtocolError(message)
    told = []
    for kind, inner, value in _NEWS.iter_unpack(payload):
        if kind not in News.__members__.values():
            message = f"news of kind {kind}"
            raise ProtocolError(message)
        told.append((News(kind), inner, value))
    return told
