"""What vouches for the memory in an archive, block by block. Pure.

A file of pages is cut into blocks of between one page and BLOCK bytes. Two members go with it:

* ``checkpoint/blocks-N.pages``, before it: a byte for each, its number of pages of 4096 bytes;
* ``checkpoint/blocks-N.sha256``, behind it: the SHA-256 of each, 32 bytes.

So whoever reads an archive from its beginning knows where a block ends, and whoever reads one block
what it has to be. The file of pages itself needs no checksum then.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

from pymigrate.checkpoint.images import PAGE
from pymigrate.checkpoint.memory_map import BLOCK
from pymigrate.runtime import digests
from pymigrate.runtime.errors import BadArchive

DIGEST = 32
"""Bytes of the digest of a block."""

MOST = 1 << 22
"""Blocks of one file of pages: 2 TiB of them, and no more memory for their tables than one has."""

_PAGES, _DIGESTS = ".pages", ".sha256"


def pages_of(name: str) -> str:
    """Return the member that says how long the blocks of a file of pages are."""
    return _beside(name, _PAGES)


def digests_of(name: str) -> str:
    """Return the member that has their digests."""
    return _beside(name, _DIGESTS)


def of_before(name: str) -> str:
    """Return the member that has the XXH3 of each BLOCK, in an archive of before."""
    return _beside(name, ".xxh3")


def _beside(name: str, suffix: str) -> str:
    return name.replace("pages-", "blocks-").replace(".img", suffix)


def is_table(name: str) -> bool:
    """Say whether this may be the name of such a member."""
    return "blocks-" in name and name.endswith((_PAGES, _DIGESTS))


def cut_evenly(size: int) -> list[int]:
    """Return the lengths of blocks that are as long as they may be, but for the last."""
    return [min(BLOCK, size - at) for at in range(0, size, BLOCK)]


def pack(lengths: Iterable[int]) -> bytes:
    """Write the table of lengths, in bytes. Raises ValueError for what no block has."""
    pages = [divmod(length, PAGE) for length in lengths]
    if len(pages) > MOST:
        raise ValueError(f"{len(pages)} blocks")
    if any(rest for _, rest in pages):
        raise ValueError("a block is not made of pages")
    return bytes(_checked(count) for count, _ in pages)


def _checked(pages: int) -> int:
    if not 1 <= pages <= BLOCK // PAGE:
        raise ValueError(f"a block of {pages} pages")
    return pages


def unpack(table: bytes | bytearray, size: int) -> list[int]:
    """Read the table of lengths of a file of pages that is so long; raises BadArchive."""
    try:
        lengths = [_checked(pages) * PAGE for pages in table]
    except ValueError as error:
        raise BadArchive(f"its table of blocks is not sound: {error}") from error
    if sum(lengths) != size:
        raise BadArchive(f"its blocks have {sum(lengths)} bytes, their file {size}")
    return lengths


def starts(lengths: Sequence[int]) -> list[int]:
    """Say where each block begins in its file."""
    return [*itertools.accumulate(lengths[:-1], initial=0)] if lengths else []


def digest(block: bytes | memoryview) -> bytes:
    """Return the digest of a block."""
    return digests.large(block).digest()


def check_announced(pages: Collection[str], sizes: Mapping[str, int]) -> None:
    """Refuse tables that cannot be those of these files of pages; raises BadArchive."""
    tables = {table for name in pages for table in (pages_of(name), digests_of(name))}
    for name in filter(is_table, sizes):
        if name not in tables:
            raise BadArchive(f"{name} is of no file of pages")
    for name in pages:
        counts = [sizes.get(pages_of(name)), sizes.get(digests_of(name))]
        if counts == [None, None]:
            continue
        if counts[0] is None or counts[1] != counts[0] * DIGEST or counts[0] > MOST:
            raise BadArchive(f"the tables of {name} do not go together")


class Digesting:
    """Makes the digests of a file of pages that comes in any pieces."""

    def __init__(self, lengths: Iterable[int]) -> None:
        """Be told how long its blocks are."""
        self._lengths = iter(lengths)
        self._left = 0
        self._block = digests.large()
        self._digests: list[bytes] = []

    def update(self, data: bytes) -> None:
        """Take the next piece; of what comes behind the last block nothing is made."""
        rest = memoryview(data)
        while rest:
            if not self._left:
                self._left = next(self._lengths, 0)
                if not self._left:
                    return
                self._block = digests.large()
            piece, rest = rest[: self._left], rest[self._left :]
            self._block.update(piece)
            self._left -= len(piece)
            if not self._left:
                self._digests.append(self._block.digest())

    @property
    def table(self) -> bytes:
        """The digests of the blocks that are whole."""
        return b"".join(self._digests)
