"""Which pages of a dump may come later: what CRIU's pagemaps say about its files of pages. Pure.

CRIU marks in every dump, lazy or not, which pages it can do without at a restore: those of private
anonymous memory that is neither locked nor the stack it stands on (CRIU: PE_LAZY in
criu/include/pagemap.h, set in criu/page-xfer.c; vma_entry_can_be_lazy in criu/include/vma.h). A
restore with ``lazy_pages`` passes over these, and reads all others by their place in the file.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, cast

from pymigrate.checkpoint import images
from pymigrate.runtime.errors import BadArchive
from pymigrate.runtime.values import dataclass

PAGE = images.PAGE
BLOCK = 512 << 10
"""Bytes of a file of pages that are fetched and verified as one, at most: one waits for these."""

_PAGES = re.compile(r"pages-[0-9]+\.img")
_MAP = re.compile(r"pagemap-(shmem-)?([0-9]+)\.img")
_MAX_ADDRESS = 1 << 63


class Extent(NamedTuple):
    """Pages that follow one another in a file and in memory; all in bytes."""

    offset: int
    address: int
    length: int

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.length


@dataclass(frozen=True)
class PageFile:
    """One file of pages, of one process if ``inner`` is its PID; both lists in ascending order.

    ``starts`` say where its blocks begin, if not every BLOCK bytes.
    """

    name: str
    size: int
    inner: int | None
    lazy: Sequence[Extent]
    eager: Sequence[Extent]
    starts: Sequence[int] = ()

    @property
    def blocks(self) -> int:
        """How many blocks it has; the last may be shorter."""
        return len(self.starts) or -(-self.size // BLOCK)

    def begin(self, block: int) -> int:
        """Return where a block begins; of the one behind the last, where the file ends."""
        if block >= self.blocks:
            return self.size
        return self.starts[block] if self.starts else block * BLOCK

    def length(self, block: int) -> int:
        """Return the bytes of a block."""
        return self.begin(block + 1) - self.begin(block)

    def block_of(self, offset: int) -> int:
        """Return the block that has a byte."""
        return bisect.bisect_right(self.starts, offset) - 1 if self.starts else offset // BLOCK

    def to_document(self) -> list[object]:
        """Return it for another process: to read a map of 1 GiB takes as long as CRIU restores."""
        both = (
            [(each.offset, each.address, each.length) for each in extents]
            for extents in (self.lazy, self.eager)
        )
        return [self.name, self.size, self.inner, *both, list(self.starts)]

    @classmethod
    def from_document(cls, document: object) -> PageFile:
        """Take what `to_document` has made."""
        name, size, inner, *both, starts = cast("list[Any]", document)
        lazy, eager = ([Extent(*each) for each in extents] for extents in both)
        return cls(name, size, inner, lazy, eager, tuple(starts))

    def within(self, block: int) -> Iterator[Extent]:
        """Yield what of a block may come later."""
        return clipped(self.lazy, self.begin(block), self.begin(block + 1))


def clipped(extents: Sequence[Extent], begin: int, end: int) -> Iterator[Extent]:
    """Yield the parts of extents that lie between two offsets."""
    first = bisect.bisect_right(extents, begin, key=lambda extent: extent.end)
    for number in range(first, len(extents)):
        extent = extents[number]
        if extent.offset >= end:
            return
        start, stop = max(extent.offset, begin), min(extent.end, end)
        yield Extent(start, extent.address + start - extent.offset, stop - start)


def is_page_file(name: str) -> bool:
    """Say whether this is the name of a file of pages."""
    return _PAGES.fullmatch(name) is not None


def process_of(name: str) -> int | None:
    """Return the PID, in its container, of whose memory an image is the pagemap; None of others."""
    match = _MAP.fullmatch(name)
    return None if match is None or match[1] else int(match[2])


def page_files(
    names: Collection[str], read: Callable[[str], bytes], size: Callable[[str], int]
) -> list[PageFile]:
    """Return the files of pages of a dump; ``read`` reads an image, ``size`` asks for one's size.

    Raises BadArchive for what cannot be: a page twice, or outside of its file.
    """
    found = {}
    for name in sorted(names):
        match = _MAP.fullmatch(name)
        if match is not None:
            inner = None if match[1] else int(match[2])
            pages_id, entries = images.pagemap(read(name), name)
            pages = f"pages-{pages_id}.img"
            if pages not in names or pages in found:
                raise BadArchive(f"{name} names {pages}, which is not there or another's")
            found[pages] = _page_file(pages, size(pages), inner, entries)
    for name in names:
        if is_page_file(name) and name not in found:
            found[name] = PageFile(name, size(name), None, (), (Extent(0, 0, size(name)),))
    return [found[name] for name in sorted(found)]


def _page_file(
    name: str, size: int, inner: int | None, entries: Sequence[images.Entry]
) -> PageFile:
    lazy: list[Extent] = []
    eager: list[Extent] = []
    offset = behind = 0
    for entry in entries:
        length = entry.pages * PAGE
        end = entry.address + length
        if entry.address < behind or entry.address % PAGE or not length or end > _MAX_ADDRESS:
            raise BadArchive(f"{name}: {entry.pages} pages at {entry.address:#x}")
        behind = end
        if not entry.present:
            raise BadArchive(f"{name}: the pages at {entry.address:#x} are not in the dump")
        extent = Extent(offset, entry.address, length)
        (lazy if entry.lazy and inner is not None else eager).append(extent)
        offset += length
    if offset != size:
        raise BadArchive(f"{name} has {size} bytes, its map {offset}")
    return PageFile(name, size, inner, lazy, eager)
