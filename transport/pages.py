"""Pages of memory on the wire: what a piece of the conversation about them says. Pure, no I/O.

A batch is about pages of one process. Its content comes first, so that memory can be read into the
place that is sent; a table of runs and an end of fixed size say what it is::

    +-----------------+----------------------------------+-----------------------------+
    | content         | runs: address u64, pages u32,    | stage u8, 0 u8, runs u16,   |
    | n × page        | kind u8, 0 0 0                   | process u32                 |
    +-----------------+----------------------------------+-----------------------------+

All numbers are big-endian. Runs are in the order of their addresses and do not overlap; the content
is that of the runs of kind CONTENT, in their order. An EARLY run of kind SAME asks whether the
target still holds what it was sent for that process before a cut: see HELD. A FINAL batch without
any run, of process 0, says that all was spoken of: other pages are zeros. News go the other way,
each of sixteen bytes.

What comes from the other side is hostile: `decode` and `parse_news` refuse what is not of this
form, and never set memory aside by a number that was sent.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self, overload

import numpy as np

from pymigrate.runtime.errors import ProtocolError
from pymigrate.transport.frames import Buffer

PAGE = 4096
MAX_PAGES = 512
"""Of content in one batch: 2 MiB, which a slow link delays a wanted page by."""
MAX_RUNS = 1024
MAX_ADDRESS = 1 << 63
MAX_RUN = 1 << 32  # pages; a run of zeros may be long

Numbers = np.ndarray[tuple[int], np.dtype[np.uint64]]
_RUN = np.dtype([("address", ">u8"), ("pages", ">u4"), ("kind", "u1"), ("zeros", "V3")])
_END = struct.Struct(">BxHI")
_NEWS = struct.Struct(">BxxxIQ")
TRAILER = _END.size + MAX_RUNS * _RUN.itemsize
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


class Runs(Sequence[Run]):
    """Runs as they are on the wire, thousands at a time; equal to any sequence of the same."""

    __slots__ = ("_table",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, table: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
        """Take a table; use `made_of` or `read`."""
        self._table = table

    @classmethod
    def made_of(cls, addresses: Numbers, pages: Numbers, kinds: Numbers) -> Self:
        """Put them together from numbers, of each run one."""
        table = np.zeros(len(addresses), _RUN)
        table["address"], table["pages"], table["kind"] = addresses, pages, kinds
        return cls(table)

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self:
        """Put them together from single ones."""
        table = np.zeros(len(runs), _RUN)
        for at, run in enumerate(runs):
            table[at] = (run.address, run.pages, run.kind, b"")
        return cls(table)

    @classmethod
    def read(cls, piece: memoryview) -> Self:
        """Read what came, which may be anything: raises ProtocolError."""
        runs = cls(np.frombuffer(piece, _RUN))
        runs.check()
        return runs

    def check(self) -> None:
        """Raise ProtocolError if these are no runs, or not in order."""
        if len(self._table) == 1:  # somebody waits for it: 5 µs instead of 25
            address, count, kind, _ = self._table[0].tolist()
            if not count or address % PAGE or address + count * PAGE > MAX_ADDRESS:
                message = f"a run of {count} pages at {address:#x}"
                raise ProtocolError(message)
            if not min(Kind) <= kind <= max(Kind):
                message = f"runs of kinds {kind} to {kind}"
                raise ProtocolError(message)
            return
        begins, counts = self.addresses, self.pages
        # None is so long that this wraps: pages have 32 bits, addresses are looked at first.
        ends = np.minimum(begins, MAX_ADDRESS) + counts * PAGE
        behind = np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
        wrong = (begins < behind) | (begins % PAGE != 0) | (counts == 0) | (ends > MAX_ADDRESS)
        if wrong.any():
            at = int(np.argmax(wrong))
            message = f"a run of {int(counts[at])} pages at {int(begins[at]):#x}"
            raise ProtocolError(message)
        kinds = self.kinds
        if len(kinds) and not (min(Kind) <= kinds.min() and kinds.max() <= max(Kind)):
            message = f"runs of kinds {int(kinds.min())} to {int(kinds.max())}"
            raise ProtocolError(message)

    @property
    def addresses(self) -> Numbers:
        """Where each begins, in bytes."""
        return self._table["address"].astype(np.uint64)

    @property
    def pages(self) -> Numbers:
        """How many pages each has."""
        return self._table["pages"].astype(np.uint64)

    @property
    def kinds(self) -> Numbers:
        """What each holds: a `Kind`."""
        return self._table["kind"].astype(np.uint64)

    def only(self, *kinds: Kind) -> Runs:
        """Return those of some kinds."""
        mine = self._table["kind"]
        # np.isin() sorts, which takes longer than all the rest that is done with a batch.
        return Runs(self._table[np.logical_or.reduce([mine == kind for kind in kinds])])

    def tobytes(self) -> bytes:
        """Return them as they go over the wire."""
        return self._table.tobytes()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._table)

    @overload
    def __getitem__(self, at: int) -> Run: ...

    @overload
    def __getitem__(self, at: slice) -> Runs: ...

    def __getitem__(self, at: int | slice) -> Run | Runs:
        """Return one, or some."""
        if isinstance(at, slice):
            return Runs(self._table[at])
        address, pages, kind, _ = self._table[at].tolist()
        return Run(address, pages, Kind(kind))

    def __iter__(self) -> Iterator[Run]:
        """Yield them one by one."""
        for address, pages, kind, _ in self._table.tolist():
            yield Run(address, pages, Kind(kind))

    def __eq__(self, other: object) -> bool:
        """Compare run by run."""
        return isinstance(other, Sequence) and list(self) == list(other)


@dataclass(frozen=True, slots=True)
class Batch:
    """Pages of the process ``inner``, a PID as CRIU's images have it."""

    stage: Stage
    inner: int
    runs: Runs
    content: memoryview


class News(enum.IntEnum):
    """What the target says."""

    WANTED = 1  # a process waits for the page at an address
    TAKEN = 2  # so many bytes of batches are dealt with
    ATTACHED = 3  # so many processes are there, and their memory can be filled
    COMPLETE = 4  # nothing is missing; what is sent all the same is not looked at
    HELD = 5  # asked: pages of a process that came before are still there
    PLACED = 6  # pages came by the lane, see `placed`; for a source that says that it hears it


def seal(buffer: bytearray, pages: int, stage: Stage, inner: int, runs: Sequence[Run]) -> int:
    """Write the end of a batch behind its content, which is in the buffer; return its length."""
    if len(runs) > MAX_RUNS or pages > MAX_PAGES:
        raise ValueError(f"a batch of {len(runs)} runs and {pages} pages")
    table = runs if isinstance(runs, Runs) else Runs.of(runs)
    at = pages * PAGE + len(runs) * _RUN.itemsize
    buffer[pages * PAGE : at] = table.tobytes()
    _END.pack_into(buffer, at, stage, len(runs), inner)
    return at + _END.size


def encode(batch: Batch) -> bytes:
    """Return a whole batch."""
    pages = len(batch.content) // PAGE
    buffer = bytearray(batch.content)
    buffer += bytes(_END.size + len(batch.runs) * _RUN.itemsize)
    length = seal(buffer, pages, batch.stage, batch.inner, batch.runs)
    return bytes(buffer[:length])


def decode(piece: Buffer) -> Batch:
    """Read a batch; its content is a view of ``piece``. Raises ProtocolError for what is none."""
    view = memoryview(piece).cast("B")
    if len(view) < _END.size:
        message = f"a batch of {len(view)} bytes"
        raise ProtocolError(message)
    stage, count, inner = _END.unpack_from(view, len(view) - _END.size)
    begin = len(view) - _END.size - count * _RUN.itemsize
    if stage not in Stage.__members__.values() or count > MAX_RUNS or begin < 0:
        message = f"a batch of stage {stage} with {count} runs in {len(view)} bytes"
        raise ProtocolError(message)
    runs = Runs.read(view[begin : len(view) - _END.size])
    content = int(runs.pages[runs.kinds == Kind.CONTENT].sum())
    if content > MAX_PAGES or content * PAGE != begin:
        message = f"a batch of {content} pages with {begin} bytes of content"
        raise ProtocolError(message)
    return Batch(Stage(stage), inner, runs, view[:begin])


def news(kind: News, *, inner: int = 0, value: int = 0) -> bytes:
    """Write one of the target's words down."""
    return _NEWS.pack(kind, inner, value)


def placed(inner: int, address: int, count: int) -> bytes:
    """Write down that so many pages, fewer than PAGE, are in place from an address on."""
    return news(News.PLACED, inner=inner, value=address + count)


def placed_pages(value: int) -> tuple[int, int]:
    """Read the address and the number of pages of such a word; ProtocolError for what is none."""
    address, count = value - value % PAGE, value % PAGE
    if not count or address + count * PAGE > MAX_ADDRESS:
        message = f"{count} pages at {address:#x} are said to be in place"
        raise ProtocolError(message)
    return address, count


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
