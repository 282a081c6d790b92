"""The memory of a container, read from an archive block by block: ``python -m …`` is its filler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, cast

from pymigrate.checkpoint import archive, block_table, memory_map, seekable
from pymigrate.checkpoint.fill_words import Plan
from pymigrate.checkpoint.lazily import Skeleton, Told, lay_out_memory
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import PageFile
from pymigrate.runtime import daemon
from pymigrate.runtime.errors import BadArchive
from pymigrate.runtime.values import dataclass, replace

_XXH3 = 16  # bytes of a digest of before


@dataclass(frozen=True)
class ArchivePages:
    """The files of pages of an open archive; ``places`` say where each begins in it."""

    path: Path
    file: seekable.Seekable
    places: Mapping[str, int]
    digests: Mapping[str, _Digests]
    files: Sequence[PageFile]

    @classmethod
    def of(
        cls,
        path: Path,
        file: seekable.Seekable,
        places: Mapping[str, int],
        files: Sequence[PageFile],
        images: Path,
    ) -> ArchivePages:
        """Read the digests, which were unpacked and verified. Raises BadArchive."""
        digests = {file.name: _Digests.of(file, images) for file in files}
        by_name = {Path(name).name: place for name, place in places.items()}
        return cls(path, file, by_name, digests, files)

    def block(self, file: PageFile, number: int) -> bytes:
        """Read and verify a block. Raises BadArchive."""
        place = self.places[file.name] + file.begin(number)
        try:
            found = self.file.read_at(place, file.length(number))
        except BadArchive as error:
            raise BadArchive(f"{self.path} is damaged: {error.message}") from error
        if not self.digests[file.name].fits(number, found):
            raise BadArchive(f"{self.path} is damaged: block {number} of {file.name} was altered")
        return found


@dataclass(frozen=True)
class _Digests:
    """Those of the blocks of one file of pages: SHA-256, or XXH3 in an archive of before."""

    joined: bytes
    size: int
    make: Callable[[bytes], bytes]

    @classmethod
    def of(cls, file: PageFile, images: Path) -> Self:
        """Read them; raises BadArchive."""
        before = images / block_table.of_before(file.name)
        now = images / block_table.digests_of(file.name)
        if now.exists():
            found = cls(now.read_bytes(), block_table.DIGEST, block_table.digest)
        else:
            import xxhash  # archives of today have none

            found = cls(before.read_bytes(), _XXH3, xxhash.xxh3_128_digest)
        if len(found.joined) != file.blocks * found.size:
            raise BadArchive(f"it has not one digest for each block of {file.name}")
        return found

    def fits(self, number: int, block: bytes) -> bool:
        """Say whether a block is what it has to be."""
        begin = number * self.size
        return self.make(block) == self.joined[begin : begin + self.size]


def page_files(sizes: Mapping[str, int], images: Path) -> list[PageFile]:
    """Read the maps, which were unpacked and verified. Raises BadArchive."""
    sizes = {Path(name).name: size for name, size in sizes.items()}
    names = {image.name for image in images.iterdir()}
    files = memory_map.page_files(
        names | sizes.keys(), lambda name: (images / name).read_bytes(), sizes.__getitem__
    )
    return [_in_blocks(file, images / block_table.pages_of(file.name)) for file in files]


def _in_blocks(file: PageFile, table: Path) -> PageFile:
    """Say where its blocks begin, if they are not all as long as they may be."""
    if not table.exists():
        return file
    lengths = block_table.unpack(table.read_bytes(), file.size)
    return replace(file, starts=block_table.starts(lengths))


@dataclass(frozen=True)
class FromArchive:
    """An archive, as `load_from` wants it."""

    archive: archive.Archive

    @property
    def manifest(self) -> Manifest:
        """What it was made from."""
        return self.archive.manifest

    @property
    def memory(self) -> int:
        """Bytes of all files of pages."""
        return self.archive.memory

    def extract(self, into: Path) -> dict[str, str]:
        """Unpack and verify all of it; returns the SHA-256 of each member. Raises BadArchive."""
        return self.archive.extract(into)

    @property
    def filler(self) -> str:
        """The program that is its filler."""
        return __name__

    def lay_out(self, into: Path) -> Skeleton | None:
        """Unpack and verify what CRIU needs; None for archives that have no blocks."""
        laid = self.archive.lay_out(into)
        if laid is None:
            return None
        images = into / archive.IMAGES
        sizes = {name: self.archive.manifest.members[name] for name in laid.places}

        def complete() -> Told:
            files = page_files(sizes, images)
            pages = ArchivePages.of(self.archive.path, laid.file, laid.places, files, images)
            lay_out_memory(pages, images)
            plan = {
                "path": str(pages.path),
                "places": laid.places,
                "files": [file.to_document() for file in files],
                "images": str(images),
            }
            return Told(plan, [laid.stream.fileno()])

        held = ExitStack()
        held.callback(laid.stream.close)
        return Skeleton(laid.sums, complete, held)


@contextmanager
def opened(plan: Plan, descriptors: Sequence[int]) -> Iterator[ArchivePages]:
    """Open an archive again, as its filler."""
    (descriptor,) = descriptors
    path = Path(str(plan["path"]))
    file = seekable.opened(descriptor)
    if file is None:
        raise BadArchive(f"{path} has no table of frames any more")
    places = cast("dict[str, int]", plan["places"])
    files = [PageFile.from_document(each) for each in cast("list[object]", plan["files"])]
    yield ArchivePages.of(path, file, places, files, Path(str(plan["images"])))


def main(_arguments: Sequence[str]) -> int:
    """Be the filler of a restored container; see daemon.py."""
    daemon.detach()
    from pymigrate.checkpoint import filling  # the command, which imports us, needs nothing of it

    return filling.run(opened)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
