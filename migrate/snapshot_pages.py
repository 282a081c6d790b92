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

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint import archive, filling, memory_map, new_file
from pymigrate.checkpoint.lazily import Skeleton, lay_out_memory
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import BLOCK, PageFile
from pymigrate.checkpoint.repository import Contents, Repository
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_index import Places, pieces
from pymigrate.checkpoint.sealing import Damaged, Keys
from pymigrate.checkpoint.snapshot import Member, Snapshot
from pymigrate.runtime.errors import NoSpace

BLOBS = 32
"""Blobs that are kept, of 256 KiB each: what follows one another was often stored so."""

_SPARE = 64 << 20  # bytes to leave free where a snapshot is put together
_FOR_SSH = ("HOME", "USER", "SSH_AUTH_SOCK")


@dataclass(frozen=True)
class _Chunks:
    """The chunks of a member in order: their rows in the index, and where each begins in it."""

    rows: Places
    begins: NDArray[np.int64]


class SnapshotPages:
    """The files of pages of a snapshot."""

    def __init__(
        self, repository: Repository, contents: Contents, snapshot: Snapshot, directory: Path
    ) -> None:
        """Read the maps, which were put together in CRIU's directory of images. Raises Damaged."""
        self._repository = repository
        self._contents = contents
        self._read = functools.lru_cache(BLOBS)(self._blob)
        members = {
            name.removeprefix(f"{archive.IMAGES}/"): member
            for name, member in memory(snapshot).items()
        }
        names = {image.name for image in directory.iterdir()}
        self.files: Sequence[PageFile] = memory_map.page_files(
            names | members.keys(),
            lambda name: (directory / name).read_bytes(),
            lambda name: members[name].size,
        )
        self._chunks = {name: self._of(member) for name, member in members.items()}

    def _of(self, member: Member) -> _Chunks:
        ids = self._repository.expand(self._contents, member)
        rows = self._repository.rows(self._contents, ids, member.name)
        ends = np.cumsum(self._contents.index.length[rows].astype(np.int64))
        size = int(ends[-1]) if len(ends) else 0
        if size != member.size:
            raise Damaged(f"{member.name} has {size} bytes, not {member.size}")
        return _Chunks(rows, np.concatenate(([0], ends)).astype(np.int64))

    def _blob(self, pack: int, number: int) -> bytes:
        contents = self._contents
        return self._repository.blob(contents.names[pack], contents.tables[pack], number)

    def _range(self, file: PageFile, number: int) -> slice:
        """Say which chunks a block needs."""
        begins = self._chunks[file.name].begins
        begin, end = number * BLOCK, number * BLOCK + file.length(number)
        first = int(np.searchsorted(begins, begin, "right")) - 1
        return slice(first, int(np.searchsorted(begins, end, "left")))

    def blobs(self, file: PageFile, number: int) -> set[tuple[int, int]]:
        """Say where a block is read from: numbers of packs, and of blobs in them."""
        rows = self._chunks[file.name].rows[self._range(file, number)]
        return {(piece.pack, piece.blob) for piece in pieces(self._contents.index, rows)}

    def block(self, file: PageFile, number: int) -> bytes:
        """Put a block together. Raises Damaged."""
        chunks = self._chunks[file.name]
        begin, end = number * BLOCK, number * BLOCK + file.length(number)
        which = self._range(file, number)
        base = int(chunks.begins[which.start])
        joined = bytearray(int(chunks.begins[which.stop]) - base)
        for piece in pieces(self._contents.index, chunks.rows[which]):
            plain = self._read(piece.pack, piece.blob)
            for run in piece.runs:
                joined[run.target : run.target + run.length] = plain[
                    run.source : run.source + run.length
                ]
        return bytes(memoryview(joined)[begin - base : end - base])


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

    def lay_out(self, into: Path) -> Skeleton | None:
        """Put together what CRIU needs; until the skeleton is closed, no chunk goes away."""
        later = memory(self.snapshot)
        with ExitStack() as held:
            held.enter_context(self.repository.reading())
            contents = self.repository.contents()
            now = [member for member in self.snapshot.members if member.name not in later]
            sums = self._put_together(into, contents, now)
            images = into / archive.IMAGES
            with new_file.writing(into):
                pages = SnapshotPages(self.repository, contents, self.snapshot, images)
                lay_out_memory(pages, images)
            plan = {
                "where": self.repository.disk.where,
                "key": self.repository.keys.master.hex(),
                "snapshot": self.snapshot.id,
                "images": str(images),
                "environment": {name: os.environ[name] for name in _FOR_SSH if name in os.environ},
            }
            return Skeleton(sums, __name__, plan, held=held.pop_all())

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
def opened(plan: filling.Plan) -> Iterator[SnapshotPages]:
    """Open a repository again, as its filler; no chunk goes away meanwhile."""
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
        snapshot = repository.snapshot(str(plan["snapshot"]))
        images = Path(str(plan["images"]))
        yield SnapshotPages(repository, repository.contents(), snapshot, images)


if __name__ == "__main__":
    sys.exit(filling.run(opened))
