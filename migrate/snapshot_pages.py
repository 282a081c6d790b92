"""The memory of a container, read from a repository block by block: ``python -m …`` is its filler.

Every chunk is sealed, and named by its content: what is read is what was written, or is refused.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint import archive, memory_map, new_file
from pymigrate.checkpoint.fill_words import Plan
from pymigrate.checkpoint.lazily import Skeleton, Told, lay_out_memory
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import BLOCK, PageFile
from pymigrate.checkpoint.packs import Column
from pymigrate.checkpoint.page_places import Description, PageChunks, PagePlaces
from pymigrate.checkpoint.repository import Contents, Repository
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_index import pieces
from pymigrate.checkpoint.sealing import Damaged, Keys
from pymigrate.checkpoint.snapshot import Member, Snapshot
from pymigrate.runtime import daemon
from pymigrate.runtime.errors import NoSpace

BLOBS = 32
"""Blobs that are kept, of 256 KiB each: what follows one another was often stored so."""

_SPARE = 64 << 20  # bytes to leave free where a snapshot is put together
_FOR_SSH = ("HOME", "USER", "SSH_AUTH_SOCK")


class SnapshotPages:
    """The files of pages of a snapshot."""

    def __init__(
        self, repository: Repository, places: PagePlaces, files: Sequence[PageFile]
    ) -> None:
        """Take what `page_files` has read of the maps. Raises Damaged."""
        self._repository = repository
        self._places = places
        self._read = functools.lru_cache(BLOBS)(self._blob)
        members = {
            name.removeprefix(f"{archive.IMAGES}/"): member
            for name, member in places.members.items()
        }
        self.files = files
        self._first = {name: member.first for name, member in members.items()}
        self._begins = {name: self._of(name, member) for name, member in members.items()}

    def _of(self, name: str, member: PageChunks) -> Begins:
        lengths = self._places.chunks.length[member.first : member.first + member.count]
        begins = Begins(lengths)
        if begins.size != member.size:
            raise Damaged(f"{name} has {begins.size} bytes, not {member.size}")
        return begins

    def _blob(self, pack: int, number: int) -> bytes:
        places = self._places
        return self._repository.blob(places.names[pack], places.tables[pack], number)

    def _chunks(self, file: PageFile, number: int) -> tuple[NDArray[np.int64], int, int]:
        """Say which chunks a block needs, where the first begins and the last ends."""
        begin = number * BLOCK
        which, start, end = self._begins[file.name].around(begin, begin + file.length(number))
        return np.arange(which.start, which.stop) + self._first[file.name], start, end

    def blobs(self, file: PageFile, number: int) -> set[tuple[int, int]]:
        """Say where a block is read from: numbers of packs, and of blobs in them."""
        rows, _, _ = self._chunks(file, number)
        return {(piece.pack, piece.blob) for piece in pieces(self._places.chunks, rows)}

    def block(self, file: PageFile, number: int) -> bytes:
        """Put a block together. Raises Damaged."""
        rows, base, end = self._chunks(file, number)
        joined = bytearray(end - base)
        for piece in pieces(self._places.chunks, rows):
            plain = self._read(piece.pack, piece.blob)
            for run in piece.runs:
                joined[run.target : run.target + run.length] = plain[
                    run.source : run.source + run.length
                ]
        begin = number * BLOCK - base
        return bytes(memoryview(joined)[begin : begin + file.length(number)])


class Begins:
    """Where chunks begin that lie one behind the other; kept of each STEP-th only."""

    STEP = 128

    def __init__(self, lengths: Column) -> None:
        """Take the length of each, in bytes."""
        self._lengths = lengths
        some = np.arange(0, len(lengths), self.STEP)
        sums = np.add.reduceat(lengths, some, dtype=np.int64) if len(some) else some
        self._ends = np.concatenate(([0], np.cumsum(sums)))

    @property
    def size(self) -> int:
        """Bytes of all."""
        return int(self._ends[-1])

    def around(self, begin: int, end: int) -> tuple[slice, int, int]:
        """Return the chunks with these bytes, where the first begins and the last ends."""
        first = int(np.searchsorted(self._ends, begin, "right")) - 1
        last = int(np.searchsorted(self._ends, end, "left"))
        lengths = self._lengths[first * self.STEP : last * self.STEP].astype(np.int64)
        edges = int(self._ends[first]) + np.concatenate(([0], np.cumsum(lengths)))
        one = int(np.searchsorted(edges, begin, "right")) - 1
        two = int(np.searchsorted(edges, end, "left"))
        which = slice(first * self.STEP + one, first * self.STEP + two)
        return which, int(edges[one]), int(edges[two])


def page_files(places: PagePlaces, directory: Path) -> list[PageFile]:
    """Read the maps, which were put together in CRIU's directory of images. Raises BadArchive."""
    sizes = {Path(name).name: member.size for name, member in places.members.items()}
    names = {image.name for image in directory.iterdir()}
    return memory_map.page_files(
        names | sizes.keys(), lambda name: (directory / name).read_bytes(), sizes.__getitem__
    )


def memory(snapshot: Snapshot) -> dict[str, Member]:
    """Return the members that are files of pages."""
    return {
        member.name: member
        for member in snapshot.members
        if member.name.startswith(f"{archive.IMAGES}/")
        and memory_map.is_page_file(member.name.removeprefix(f"{archive.IMAGES}/"))
    }


@dataclass(frozen=True)
class Stored:
    """A snapshot in its repository, as `load_from` wants it."""

    repository: Repository
    snapshot: Snapshot

    @property
    def manifest(self) -> Manifest:
        """What it was made from."""
        return self.snapshot.manifest

    @property
    def memory(self) -> int:
        """Bytes of all files of pages."""
        return sum(member.size for member in memory(self.snapshot).values())

    def extract(self, into: Path) -> dict[str, str]:
        """Put the members together in an empty directory; returns the SHA-256 of the volumes.

        Raises:
            Damaged: something of it is missing or altered.
            NoSpace: there is not enough room for it.

        """
        with self.repository.reading():
            return self._put_together(into, self.repository.contents(), self.snapshot.members)

    @property
    def filler(self) -> str:
        """The program that is its filler."""
        return __name__

    def lay_out(self, into: Path) -> Skeleton | None:
        """Put together what CRIU needs; until the skeleton is closed, no chunk goes away."""
        later = memory(self.snapshot)
        with ExitStack() as held:
            held.enter_context(self.repository.reading())
            contents = self.repository.contents()
            now = [member for member in self.snapshot.members if member.name not in later]
            sums = self._put_together(into, contents, now)
            kept = held.pop_all()
        return Skeleton(sums, lambda: self._complete(contents, into, kept), kept)

    def _complete(self, contents: Contents, into: Path, held: ExitStack) -> Told:
        images = into / archive.IMAGES
        places = PagePlaces.find(self.repository, contents, memory(self.snapshot).values())
        files = page_files(places, images)
        with new_file.writing(into):
            lay_out_memory(SnapshotPages(self.repository, places, files), images)
        description, descriptor = places.hand_on(self.repository.scratch)
        held.callback(os.close, descriptor)
        plan = {
            "where": self.repository.disk.where,
            "key": self.repository.keys.master.hex(),
            "places": description,
            "files": [file.to_document() for file in files],
            "environment": {name: os.environ[name] for name in _FOR_SSH if name in os.environ},
        }
        return Told(plan, [descriptor])

    def _put_together(
        self, into: Path, contents: Contents, members: Sequence[Member]
    ) -> dict[str, str]:
        status = os.statvfs(into)
        free = status.f_bavail * status.f_frsize
        size = sum(member.size for member in members)
        if size + _SPARE > free:
            raise NoSpace(
                f"the snapshot unpacks to {size >> 20} MiB and {into.parent} has "
                f"{free >> 20} MiB left; nothing was changed",
                hint="free some space, or give another --root",
            )
        sums = {}
        with new_file.writing(into):
            for member in members:
                path = into / _checked(member.name)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                sums[member.name] = self.repository.extract(contents, member, path)
        return sums


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not 1 <= len(path.parts) <= 2:
        raise Damaged(f"{name!r} is no member of a checkpoint")
    return path


@contextmanager
def opened(plan: Plan, descriptors: Sequence[int]) -> Iterator[SnapshotPages]:
    """Open a repository again, as its filler; no chunk goes away meanwhile."""
    (descriptor,) = descriptors
    where = str(plan["where"])
    keys = Keys(bytes.fromhex(str(plan["key"])))
    environment = plan["environment"]
    if isinstance(environment, Mapping):  # of the command: a supervisor has none of it
        os.environ.update({str(name): str(value) for name, value in environment.items()})
    with ExitStack() as held:
        if "://" in where:
            from pymigrate.migrate import remote_storage  # not needed for a directory

            location = remote_storage.Location.parse(where)
            repository = Repository(held.enter_context(remote_storage.opened(location)), keys)
        else:
            repository = Repository(Directory(Path(where)), keys)
        held.enter_context(repository.reading())
        places = PagePlaces.taken_up(cast("Description", plan["places"]), descriptor)
        files = [PageFile.from_document(each) for each in cast("list[object]", plan["files"])]
        yield SnapshotPages(repository, places, files)


def main(_arguments: Sequence[str]) -> int:
    """Be the filler of a restored container; see daemon.py."""
    daemon.detach()
    from pymigrate.checkpoint import filling  # the command, which imports us, needs nothing of it

    return filling.run(opened)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
