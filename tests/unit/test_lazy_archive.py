"""Archives whose memory is read block by block: written, read around, cut, altered, of before."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from pycriu.images import magic, pagemap_pb2

from pymigrate.checkpoint import archive_writer, memory_map, new_file, seekable
from pymigrate.checkpoint.archive import Archive
from pymigrate.checkpoint.archive_pages import ArchivePages, FromArchive, page_files
from pymigrate.checkpoint.archive_writer import Compression
from pymigrate.checkpoint.memory_map import BLOCK, PAGE, Extent
from pymigrate.runtime.errors import BadArchive
from tests.fakes import old_archives
from tests.unit.test_archive import manifest

LAZY, EAGER = 6, 4  # PE_PRESENT, with and without PE_LAZY
HOW = pytest.mark.parametrize("how", ["none", "zstd:1", "before none", "before zstd:1"])


def pagemap(pages_id: int, entries: list[tuple[int, int, int]]) -> bytes:
    """Write a pagemap as CRIU does: of each entry the address, the pages, the flags."""
    data = struct.pack("<II", magic.by_name["IMG_COMMON"], magic.by_name["PAGEMAP"])
    messages = [pagemap_pb2.pagemap_head(pages_id=pages_id)]
    for address, pages, flags in entries:
        messages.append(
            pagemap_pb2.pagemap_entry(vaddr=address, compat_nr_pages=0, nr_pages=pages, flags=flags)
        )
    for message in messages:
        text = message.SerializeToString()
        data += struct.pack("<I", len(text)) + text
    return data


PER_BLOCK = BLOCK // PAGE
ENTRIES = [
    (0x400000, 3, EAGER),
    (0x10000000, 4 * PER_BLOCK + 5, LAZY),
    (0x7F0000000000, 2, EAGER),
]
PAGES = sum(pages for _, pages, _ in ENTRIES)
CONTENT = random.Random(7).randbytes(PAGE * PAGES)
SHARED = b"s" * PAGE


FILES = {
    "checkpoint/pagemap-1.img": pagemap(1, ENTRIES),
    "checkpoint/pages-1.img": CONTENT,
    "checkpoint/pagemap-shmem-9.img": pagemap(2, [(0, 1, EAGER)]),
    "checkpoint/pages-2.img": SHARED,
    "rootfs-diff.tar": b"files" * 1000,
}


def written(directory: Path, how: str) -> Path:
    """Write an archive; ``before none`` and ``before zstd:1`` as they were once."""
    path = directory / "web.tar"
    if how.startswith("before "):
        level = Compression.parse(how.removeprefix("before ")).level
        old_archives.write(path, FILES, manifest(), level)
        return path
    members = {}
    for name, data in FILES.items():
        members[name] = directory / name.replace("/", "_")
        members[name].write_bytes(data)
    with new_file.target(path) as target:
        archive_writer.write(members, manifest(), target.stream, Compression.parse(how))
        target.publish()
    return path


@contextmanager
def laid_out(path: Path, into: Path) -> Iterator[ArchivePages]:
    into.mkdir()
    laid = Archive.open(path).lay_out(into)
    assert laid is not None
    sizes = {name: Archive.open(path).manifest.members[name] for name in laid.places}
    with laid.stream:
        images = into / "checkpoint"
        files = page_files(sizes, images)
        yield ArchivePages.of(path, laid.file, laid.places, files, images)


@HOW
def test_every_block_is_read_by_itself(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how)
    with laid_out(path, tmp_path / "into") as pages:
        one, two = pages.files
        for number in reversed(range(one.blocks)):
            assert CONTENT[number * BLOCK : (number + 1) * BLOCK] == pages.block(one, number)
        assert SHARED == pages.block(two, 0)
    assert ("pages-1.img", 1, "pages-2.img", None) == (one.name, one.inner, two.name, two.inner)
    assert [Extent(3 * PAGE, 0x10000000, PAGE * (4 * PER_BLOCK + 5))] == list(one.lazy)


@HOW
def test_images_have_what_criu_reads_and_holes_for_the_rest(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how)
    into = tmp_path / "into"
    into.mkdir()
    skeleton = FromArchive(Archive.open(path)).lay_out(into)
    assert skeleton is not None
    skeleton.complete()
    skeleton.close()
    laid = (into / "checkpoint/pages-1.img").read_bytes()
    assert CONTENT[: 3 * PAGE] == laid[: 3 * PAGE]
    assert CONTENT[-2 * PAGE :] == laid[-2 * PAGE :]
    assert not any(laid[3 * PAGE : -2 * PAGE])
    assert SHARED == (into / "checkpoint/pages-2.img").read_bytes()
    assert b"files" * 1000 == (into / "rootfs-diff.tar").read_bytes()


@HOW
def test_all_of_it_is_read_at_once(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how)
    into = tmp_path / "into"
    into.mkdir()

    sums = Archive.open(path).extract(into)

    assert FILES == {name: (into / name).read_bytes() for name in FILES}
    assert sums == Archive.open(path).verify()


@pytest.mark.parametrize("level", [None, 1])
def test_the_oldest_have_no_blocks_and_are_read_at_once(tmp_path: Path, level: int | None) -> None:
    path = tmp_path / "web.tar"
    old_archives.write(path, FILES, manifest(), level, blocks=False)
    into = tmp_path / "into"
    into.mkdir()

    assert Archive.open(path).lay_out(into) is None
    assert [] == [*into.iterdir()]
    Archive.open(path).extract(into)

    assert FILES == {name: (into / name).read_bytes() for name in FILES}


@HOW
def test_an_altered_bit_of_any_block_is_refused(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, how)
    whole = path.read_bytes()
    draw = random.Random(1)
    found = 0
    for round_ in range(200):
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        try:
            with laid_out(path, tmp_path / f"into-{round_}") as pages:
                for file in pages.files:
                    for number in range(file.blocks):
                        content = CONTENT if file.inner else SHARED
                        wanted = content[number * BLOCK : (number + 1) * BLOCK]
                        assert wanted == pages.block(file, number)
        except BadArchive:
            found += 1
    assert found > 190  # the rest is padding of headers, which nobody reads


def test_a_compressed_archive_is_one_stream_for_everybody_else(tmp_path: Path) -> None:
    path = written(tmp_path, "zstd:1")
    plain = written(tmp_path, "none").read_bytes()
    again = written(tmp_path, "zstd:1")
    with again.open("rb") as stream:
        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        assert plain == reader.read()
    assert path == again


def test_a_table_of_frames_that_is_cut_is_missed(tmp_path: Path) -> None:
    path = written(tmp_path, "zstd:1")
    whole = path.read_bytes()
    for length in range(len(whole) - 100, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadArchive):
            Archive.open(path).verify()


def test_an_archive_in_one_frame_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = written(tmp_path, "none")
    path.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
    into = tmp_path / "into"
    into.mkdir()
    assert Archive.open(path).lay_out(into) is None
    assert not any(into.iterdir())


@pytest.mark.parametrize(
    "entries",
    [
        [(0x1000, 1, LAZY), (0x1000, 1, LAZY)],
        [(0x1001, 1, LAZY)],
        [(0x1000, 1, 2)],
        [(1 << 62, 1 << 51, LAZY)],
        [(0x1000, 2, LAZY)],
        [(0x1000, 0, LAZY), (0x2000, 1, LAZY)],
    ],
    ids=["twice", "crooked", "absent", "endless", "longer", "empty"],
)
def test_a_map_that_cannot_be_is_refused(entries: list[tuple[int, int, int]]) -> None:
    image = pagemap(1, entries)
    with pytest.raises(BadArchive):
        memory_map.page_files(["pagemap-1.img", "pages-1.img"], lambda _: image, lambda _: PAGE)


def test_a_file_of_frames_is_read_at_any_place(tmp_path: Path) -> None:
    draw = random.Random(3)
    content = draw.randbytes(3 * seekable.FRAME + 12345)
    path = tmp_path / "framed"
    with path.open("wb") as stream:
        sink = seekable.FrameSink(stream, 1)
        at = 0
        while at < len(content):
            size = draw.randrange(1, 1 << 20)
            sink.write(content[at : at + size])
            at += size
            if draw.random() < 0.3:
                sink.cut()
        sink.finish()
        sink.close()
    fd = os.open(path, os.O_RDONLY)
    file = seekable.opened(fd)
    assert file is not None
    for _ in range(100):
        begin = draw.randrange(len(content))
        size = min(draw.randrange(1 << 20), len(content) - begin)
        assert content[begin : begin + size] == file.read_at(begin, size)
    with pytest.raises(BadArchive):
        file.read_at(len(content) - 1, 2)
    os.close(fd)
