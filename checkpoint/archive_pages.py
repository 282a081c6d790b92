"""The memory of a container, read from an archive block by block: ``python -m …`` is its filler."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import xxhash

from pymigrate.checkpoint import archive, memory_map, seekable
from pymigrate.checkpoint.fill_words import Plan
from pymigrate.checkpoint.lazily import Skeleton, Told, lay_out_memory
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import BLOCK, PageFile
from pymigrate.runtime import daemon
from pymigrate.runtime.errors import BadArchive


@dataclass(frozen=True)
class ArchivePages:
    """The files of pages of an open archive; ``places`` say where each begins in it."""

    path: Path
    file: seekable.Seekable
    places: Mapping[str, int]
    digests: Mapping[str, bytes]
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
        digests = {}
        for page_file in files:
            name = f"{archive.IMAGES}/{page_file.name}"
            digests[page_file.name] = (images / Path(archive.blocks_of(name)).name).read_bytes()
            if len(digests[page_file.name]) != page_file.blocks * archive.DIGEST:
                raise BadArchive(
                    f"{path} is damaged: it has not one digest for each block of {page_file.name}"
                )
        by_name = {Path(name).name: place for name, place in places.items()}
        return cls(path, file, by_name, digests, files)

    def block(self, file: PageFile, number: int) -> bytes:
        """Read and verify a block. Raises BadArchive."""
        place = self.places[file.name] + number * BLOCK
        try:
            found = self.file.read_at(place, file.length(number))
        except BadArchive as error:
            raise BadArchive(f"{self.path} is damaged: {error.message}") from error
        at = number * archive.DIGEST
        if xxhash.xxh3_128_digest(found) != self.digests[file.name][at : at + archive.DIGEST]:
            raise BadArchive(f"{self.path} is damaged: block {number} of {file.name} was altered")
        return found


def page_files(sizes: Mapping[str, int], images: Path) -> list[PageFile]:
    """Read the maps, which were unpacked and verified. Raises BadArchive."""
    sizes = {Path(name).name: size for name, size in sizes.items()}
    names = {image.name for image in images.iterdir()}
    return memory_map.page_files(
        names | sizes.keys(), lambda name: (images / name).read_bytes(), sizes.__getitem__
    )


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
