"""Checkpoint files: written, read back, cut, altered, and made to do harm."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pymigrate.checkpoint import archive, archive_writer, new_file
from pymigrate.checkpoint.archive import Archive
from pymigrate.checkpoint.archive_writer import Compression
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.tmpfs import Tmpfs
from pymigrate.runtime import state
from pymigrate.runtime.errors import BadArchive, NoSpace, NotFound, UsageError
from pymigrate.runtime.spec import default_spec
from tests.fakes import old_archives

NONE = Compression(None)
PAGES = "checkpoint/pages-1.img"
TABLES = {"checkpoint/blocks-1.pages", "checkpoint/blocks-1.sha256"}


def manifest() -> Manifest:
    return Manifest(
        created="2026-01-02T03:04:05Z",
        software="pymigrate 0.1.0",
        criu="4.2.1",
        kernel="6.18",
        machine="x86_64",
        page_size=4096,
        cgroup="v2",
        tcp="established",
        descriptors=("/dev/null", "pipe:[1]", "pipe:[2]"),
        record=state.Record(
            id="ab" * 32,
            name="web",
            image="web:1",
            image_digest="cd" * 32,
            layers=("ef" * 32,),
            created="2026-01-01T00:00:00Z",
            network=state.NetworkSettings(mode="none"),
        ),
        spec=default_spec(["true"]),
        members={},
    )


CONTENT = {
    "checkpoint/inventory.img": b"inventory",
    "checkpoint/pages-1.img": bytes(range(256)) * 48,
    "rootfs-diff.tar": b"",
    "config.dump": b"{}",
    "volumes/0.tar": b"v" * 512,
}


def written(tmp_path: Path, compression: Compression = NONE) -> Path:
    """Write a small archive and return its path."""
    members = {}
    for name, data in CONTENT.items():
        members[name] = tmp_path / name.replace("/", "_")
        members[name].write_bytes(data)
    path = tmp_path / "web.tar"
    with new_file.target(path) as target:
        archive_writer.write(members, manifest(), target.stream, compression)
        target.publish()
    return path


def into(tmp_path: Path) -> Path:
    directory = tmp_path / "into"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("how", ["none", "zstd", "zstd:19"])
def test_what_was_written_is_read_back(tmp_path: Path, how: str) -> None:
    path = written(tmp_path, Compression.parse(how))
    found = Archive.open(path)
    assert manifest() == found.manifest.with_members({})
    place = into(tmp_path)
    sums = found.extract(place)
    for name, data in CONTENT.items():
        assert data == (place / name).read_bytes()
        if name != PAGES:  # each of its blocks has one
            assert hashlib.sha256(data).hexdigest() == sums[name]
        assert 0o600 == (place / name).stat().st_mode & 0o777
    assert sums == found.verify()
    assert 0o600 == path.stat().st_mode & 0o777


def test_layout_is_podman_s(tmp_path: Path) -> None:
    with tarfile.open(written(tmp_path)) as tar:
        members = tar.getmembers()
    assert ("checkpoint", True) == (members[0].name, members[0].isdir())
    assert [archive.MANIFEST, archive.SUMS] == [members[1].name, members[-1].name]
    ours = {archive.MANIFEST, archive.SUMS, *TABLES}
    assert {*CONTENT, *ours} == {m.name for m in members[1:]}


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in (*range(0, len(whole) - 1024, 509), len(whole) - 1025):
        path.write_bytes(whole[:length])
        with pytest.raises(BadArchive, match=r"damaged|no checkpoint"):
            Archive.open(path).verify()


def test_every_cut_of_a_compressed_one_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, Compression(3))
    whole = path.read_bytes()
    # The last bytes are zstd's own checksum: without it all members are still known to be sound.
    for length in range(0, len(whole) - 16, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(BadArchive):
            Archive.open(path).verify()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_altered_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("altered"))
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        sums = Archive.open(path).verify()
    except BadArchive:
        return
    # What no reader sees, such as the padding of a header, may change.
    others = (data for name, data in CONTENT.items() if name != PAGES)
    assert {hashlib.sha256(data).hexdigest() for data in others} <= set(sums.values())


Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **fields: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def crafted(tmp_path: Path, *extra: Member, sizes: dict[str, int] | None = None) -> Path:
    """Write an archive whose manifest announces `sizes`, with these members and right sums."""
    described = manifest().with_members(sizes or {}).to_json()
    members = [
        member("checkpoint", type=tarfile.DIRTYPE),
        member(archive.MANIFEST, described),
        *extra,
    ]
    sums = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {info.name}\n" for info, data in members[1:]
    )
    members.append(member(archive.SUMS, sums.encode()))
    path = tmp_path / "crafted.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


HARMFUL = [
    member("/etc/passwd", b"x"),
    member("../../etc/passwd", b"x"),
    member("checkpoint/../../x", b"x"),
    member("checkpoint/a/b", b"x"),
    member("checkpoint/..", b"x"),
    member("checkpoint/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    member("checkpoint/hard", type=tarfile.LNKTYPE, linkname="pymigrate.json"),
    member("checkpoint/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("checkpoint/fifo", type=tarfile.FIFOTYPE),
    member("checkpoint/dir", type=tarfile.DIRTYPE),
    member("unknown", b"x"),
    member("config.dump2", b"x"),
]


@pytest.mark.parametrize("harm", HARMFUL, ids=lambda each: str(each[0].name))
def test_harmful_members_are_refused(tmp_path: Path, harm: Member) -> None:
    path = crafted(tmp_path, harm, sizes={harm[0].name: len(harm[1])})
    place = into(tmp_path)
    with pytest.raises(BadArchive):
        Archive.open(path).extract(place)
    assert [] == [each for each in place.rglob("*") if each.is_file()]


def test_member_that_was_not_announced_is_refused(tmp_path: Path) -> None:
    path = crafted(tmp_path, member("config.dump", b"{}"))
    with pytest.raises(BadArchive, match="announces"):
        Archive.open(path).extract(into(tmp_path))


def test_member_that_is_longer_than_announced_is_refused(tmp_path: Path) -> None:
    path = crafted(tmp_path, member("config.dump", b"{}xx"), sizes={"config.dump": 2})
    with pytest.raises(BadArchive, match="announces"):
        Archive.open(path).extract(into(tmp_path))


def test_member_that_comes_twice_is_refused(tmp_path: Path) -> None:
    twice = member("config.dump", b"{}")
    path = crafted(tmp_path, twice, twice, sizes={"config.dump": 2})
    with pytest.raises(BadArchive, match="announces"):
        Archive.open(path).extract(into(tmp_path))


def test_missing_member_is_noticed(tmp_path: Path) -> None:
    path = crafted(tmp_path, sizes={"config.dump": 2})
    with pytest.raises(BadArchive, match=r"config\.dump is missing"):
        Archive.open(path).extract(into(tmp_path))


def test_bomb_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    path = crafted(tmp_path, sizes={"checkpoint/pages-1.img": 1 << 50})
    with pytest.raises(BadArchive, match="more than any checkpoint"):
        Archive.open(path)
    large = crafted(tmp_path, sizes={"checkpoint/pages-1.img": 1 << 41})
    with pytest.raises(NoSpace):
        Archive.open(large).extract(into(tmp_path))


BLOCK = bytes(8192)
VOUCHED = {
    "checkpoint/blocks-1.pages": b"\x01\x01",
    PAGES: BLOCK,
    "checkpoint/blocks-1.sha256": 2 * hashlib.sha256(bytes(4096)).digest(),
}


def vouched(tmp_path: Path, members: dict[str, bytes]) -> Archive:
    path = tmp_path / "vouched.tar"
    old_archives.write_contents(path, members, manifest(), None)
    return Archive.open(path)


def test_blocks_that_are_vouched_for_are_read(tmp_path: Path) -> None:
    place = into(tmp_path)

    vouched(tmp_path, VOUCHED).extract(place)

    assert BLOCK == (place / PAGES).read_bytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({PAGES: b"x" + BLOCK[1:]}, "altered"),
        ({PAGES: BLOCK[1:] + b"x"}, "altered"),
        ({PAGES: BLOCK + bytes(4096)}, "bytes, their file"),
        ({PAGES: b""}, "bytes, their file"),
        ({"checkpoint/blocks-1.pages": b"\x00\x02"}, "not sound"),
        ({"checkpoint/blocks-1.sha256": bytes(64)}, "altered"),
        ({"checkpoint/blocks-1.sha256": bytes(63)}, "do not go together"),
    ],
)
def test_blocks_that_are_not_are_refused(
    tmp_path: Path, changed: dict[str, bytes], said: str
) -> None:
    with pytest.raises(BadArchive, match=said):
        vouched(tmp_path, VOUCHED | changed).extract(into(tmp_path))


@pytest.mark.parametrize(
    "order", [(PAGES, *TABLES), (*sorted(TABLES), PAGES), (sorted(TABLES)[0], PAGES), (PAGES,)]
)
def test_tables_that_come_too_late_or_not_at_all_vouch_for_nothing(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    members = {name: VOUCHED[name] for name in order}
    damaged = members | {PAGES: b"x" + BLOCK[1:]}

    if order == (PAGES,):  # it has its own checksum then, as in an archive of before
        assert PAGES in vouched(tmp_path, damaged).extract(into(tmp_path))
        return
    with pytest.raises(BadArchive):
        vouched(tmp_path, damaged).extract(into(tmp_path))


def test_memory_that_is_missing_is_noticed(tmp_path: Path) -> None:
    extra = [member(name, data) for name, data in VOUCHED.items() if name != PAGES]
    path = crafted(tmp_path, *extra, sizes={name: len(data) for name, data in VOUCHED.items()})
    place = into(tmp_path)

    with pytest.raises(BadArchive, match=r"pages-1\.img is missing"):
        Archive.open(path).extract(place)
    (place / "again").mkdir()
    with pytest.raises(BadArchive, match=r"pages-1\.img is missing"):
        Archive.open(path).lay_out(place / "again")


def test_memory_that_comes_twice_is_refused(tmp_path: Path) -> None:
    extra = [member(name, data) for name, data in VOUCHED.items()]
    sizes = {name: len(data) for name, data in VOUCHED.items()}
    path = crafted(tmp_path, *extra[:2], *extra[1:], sizes=sizes)

    with pytest.raises(BadArchive, match="announces"):
        Archive.open(path).extract(into(tmp_path))


def test_compressed_zeros_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "zeros.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(64 << 20)))
    with pytest.raises(BadArchive):
        Archive.open(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x28\xb5\x2f\xfd broken", bytes(4096)])
def test_other_files_are_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(BadArchive):
        Archive.open(path)


def test_podman_s_own_archive_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "podman.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(member("checkpoint", type=tarfile.DIRTYPE)[0])
        tar.addfile(member("config.dump", b"{}")[0], io.BytesIO(b"{}"))
    with pytest.raises(BadArchive, match="no checkpoint made by pymigrate") as caught:
        Archive.open(path)
    assert "podman" in caught.value.hint


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Archive.open(tmp_path / "none")
    with pytest.raises(BadArchive, match="directory"):
        Archive.open(tmp_path)
    fifo = Path("/dev/null")
    with pytest.raises(BadArchive):
        Archive.open(fifo)


def test_newer_format_is_told(tmp_path: Path) -> None:
    document = json.loads(manifest().to_json())
    document["format"] = 99
    with pytest.raises(BadArchive, match="format 99"):
        Manifest.from_json(json.dumps(document).encode())


def test_file_appears_only_when_published(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), new_file.target(path) as target:
        _fail(target, ZeroDivisionError())
    assert [path] == list(tmp_path.iterdir())
    assert b"before" == path.read_bytes()


def test_full_disk_is_no_space_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoSpace), new_file.target(tmp_path / "out") as target:
        _fail(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert [] == list(tmp_path.iterdir())


def _fail(target: new_file.Target, error: Exception) -> None:
    target.stream.write(b"half")
    raise error


def test_killed_writer_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with new_file.target(path) as target:
        target.stream.write(b"half")
        assert [] == list(tmp_path.iterdir())
        target.publish()
    assert [path] == list(tmp_path.iterdir())


def test_file_system_without_nameless_files_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # EISDIR, as kernels before 3.11 said
    with new_file.target(tmp_path / "out") as target:
        target.stream.write(b"whole")
        target.publish()
    assert b"whole" == (tmp_path / "out").read_bytes()
    assert ["out"] == [path.name for path in tmp_path.iterdir()]


def test_device_or_pipe_is_neither_replaced_nor_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="not a regular file"), new_file.target(pipe):
        pass
    assert pipe.is_fifo()
    with pytest.raises(BadArchive, match="not a regular file"):
        Archive.open(pipe)


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError), new_file.target(tmp_path / "none/out"):
        pass
    with pytest.raises(UsageError), new_file.target(tmp_path / ("x" * 300)):
        pass
    with pytest.raises(UsageError), new_file.target(tmp_path):
        pass


@pytest.mark.parametrize("text", ["gzip", "zstd:0", "zstd:99", "none:1", "zstd:x", ""])
def test_unknown_compression_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Compression.parse(text)


@given(st.binary(max_size=2000))
def test_manifest_never_fails_but_by_bad_archive(data: bytes) -> None:
    with pytest.raises(BadArchive):
        Manifest.from_json(data)


def test_what_older_versions_would_misread_is_of_a_format_that_they_refuse() -> None:
    carried = (Tmpfs("/dev", "tmpfs", ("mode=755",)), Tmpfs("/tmp", "none", ()))
    made = replace(manifest(), tmpfs=carried)

    assert made == Manifest.from_json(made.to_json())
    assert carried == made.restore_options().tmpfs
    whole = made.with_members({"checkpoint/blocks-1.pages": 1})
    formats = (json.loads(each.to_json())["format"] for each in (manifest(), made, whole))
    assert (1, 2, 3) == tuple(formats)


@pytest.mark.parametrize(
    "said",
    [
        {},
        [7],
        [{"place": "/dev"}],
        [{"place": "/../x", "source": "t", "options": []}],
        [{"place": "/t", "source": "t", "options": []}] * 2,
        [{"place": f"/{n}", "source": "t", "options": []} for n in range(99)],
    ],
)
def test_a_manifest_with_impossible_tmpfs_is_damaged(said: object) -> None:
    document = json.loads(manifest().to_json()) | {"tmpfs": said}

    with pytest.raises(BadArchive, match="damaged"):
        Manifest.from_json(json.dumps(document).encode())


def test_manifest_survives_json() -> None:
    made = manifest().with_members({"config.dump": 7})
    assert made == Manifest.from_json(made.to_json())
