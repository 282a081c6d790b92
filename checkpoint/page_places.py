"""Where the memory of a snapshot is in its repository, as its filler gets it.

To read the tables of all packs and to look up a GiB of pages in them takes longer than CRIU takes
to restore. So the command that restores does it once, and hands on what it found: columns of
numbers in a file without a name, which the filler maps, and what they mean as JSON.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pymigrate.checkpoint.packs import Column, Kind, Table
from pymigrate.checkpoint.repository import Contents, Repository
from pymigrate.checkpoint.repository_index import Chunks
from pymigrate.checkpoint.sealing import ID_BYTES
from pymigrate.checkpoint.snapshot import Member
from pymigrate.runtime.scratch import Growing

Description = Mapping[str, object]
"""What the columns mean: the packs, and the files of pages with their chunks and sizes."""


@dataclass(frozen=True)
class PageChunks:
    """The chunks of one file of pages: from which one on, how many, and their bytes together."""

    first: int
    count: int
    size: int


@dataclass(frozen=True)
class PagePlaces:
    """The packs that are read from, and the chunks of all files of pages one after another.

    The tables say what a blob needs to be read; what of them names chunks is empty in a filler.
    """

    names: Sequence[str]
    tables: Sequence[Table]
    chunks: Chunks
    members: Mapping[str, PageChunks]

    @classmethod
    def find(
        cls, repository: Repository, contents: Contents, members: Iterable[Member]
    ) -> PagePlaces:
        """Look up all chunks of files of pages; raises Damaged if one is in no pack."""
        found = {}
        with repository.tables() as zeros:
            columns = [Growing(np.dtype(np.uint32), zeros) for _ in range(4)]
            first = 0
            for member in members:
                for rows in repository.chunks(contents, member):
                    some = contents.index.taken(rows)
                    for column, values in zip(
                        columns, (some.pack, some.blob, some.offset, some.length), strict=True
                    ):
                        column.extend(values)
                count = len(columns[0]) - first
                found[member.name] = PageChunks(first, count, member.size)
                first += count
        chunks = Chunks(*(column.values for column in columns))
        return cls(contents.names, contents.tables, chunks, found)

    def hand_on(self, directory: Path | None) -> tuple[Description, int]:
        """Write the columns into a file without a name, on the disk of a directory or in memory.

        Returns what they mean, and its descriptor.
        """
        with _nameless(directory) as stream:
            for column in self._columns():
                stream.write(column.data)
            stream.flush()
            descriptor = os.dup(stream.fileno())
        packs = [
            (name, int(table.kind), len(table.sealed))
            for name, table in zip(self.names, self.tables, strict=True)
        ]
        members = {name: (each.first, each.count, each.size) for name, each in self.members.items()}
        return {"packs": packs, "members": members}, descriptor

    def _columns(self) -> Iterator[Column]:
        """Yield them in the order in which `taken_up` reads them."""
        for table in self.tables:
            yield table.sealed
            yield table.plain
        yield from (self.chunks.pack, self.chunks.blob, self.chunks.offset, self.chunks.length)

    @classmethod
    def taken_up(cls, description: Description, descriptor: int) -> PagePlaces:
        """Map what another process has handed on."""
        packs = cast("list[tuple[str, int, int]]", description["packs"])
        described = cast("dict[str, tuple[int, int, int]]", description["members"])
        members = {name: PageChunks(*each) for name, each in described.items()}
        size = os.fstat(descriptor).st_size
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b""
        numbers = np.frombuffer(mapped, np.uint32)
        place = 0

        def column(count: int) -> Column:
            nonlocal place
            place += count
            return numbers[place - count : place]

        nothing = np.empty(0, np.uint32)
        ids = np.empty((0, ID_BYTES), np.uint8)
        tables = [
            Table(Kind(kind), column(blobs), column(blobs), ids, nothing, nothing, nothing)
            for _, kind, blobs in packs
        ]
        count = sum(each.count for each in members.values())
        chunks = Chunks(column(count), column(count), column(count), column(count))
        return cls([name for name, _, _ in packs], tables, chunks, members)


def _nameless(directory: Path | None) -> BinaryIO:
    if directory is None:
        return os.fdopen(os.memfd_create("pymigrate-places", os.MFD_CLOEXEC), "wb")
    return cast("BinaryIO", tempfile.TemporaryFile(dir=directory))
