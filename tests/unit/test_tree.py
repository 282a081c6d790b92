"""Trees as streams: what goes in comes out, and an archive made to do harm does none."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymigrate.runtime import tree
from pymigrate.runtime.errors import BadArchive, HostError, PymigrateError
from tests.fakes.trees import archive, look

FILE, LINK, HARD, DIRECTORY, DEVICE = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
)

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and not set(name) & set(b"/\0")
) | st.sampled_from([b"a", b"b", "ü".encode(), b"\xff\xfe", b"n" * 255, b"new\nline", b"-", b" "])
times = st.integers(0, 2**33 * 10**9)
files = st.tuples(
    st.just("file"),
    st.binary(max_size=3000),
    st.integers(0, 0o7777).map(lambda m: m | 0o400),
    times,
)
others = st.tuples(
    st.sampled_from(["symlink", "fifo", "socket", "sparse", "hardlink"]),
    st.binary(min_size=1, max_size=300).filter(lambda text: 0 not in text),
    st.integers(0, 0o777).map(lambda m: m | 0o400),
    times,
)
trees = st.recursive(
    st.dictionaries(names, files | others, max_size=4),
    lambda inner: st.dictionaries(names, files | others | inner, max_size=4),
    max_leaves=20,
)


def build(entries: dict[bytes, object], root: Path) -> None:
    """Make a generated tree."""
    made: list[Path] = []
    for name, entry in entries.items():
        path = root / os.fsdecode(name)
        if isinstance(entry, dict):
            path.mkdir()
            build(entry, path)
            continue
        assert isinstance(entry, tuple)
        kind, data, mode, mtime = entry
        if kind == "symlink":
            path.symlink_to(os.fsdecode(data))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        elif kind == "hardlink" and made:
            path.hardlink_to(made[-1])
            continue
        else:
            with path.open("xb") as stream:
                if kind == "sparse":
                    stream.truncate(200_000)
                    stream.seek(100_000)
                stream.write(data)
            made.append(path)
        if kind != "symlink":
            path.chmod(mode)
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)


@contextlib.contextmanager
def rooms() -> Iterator[tuple[Path, Path]]:
    """Two empty directories; hypothesis wants fresh ones for each example."""
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        source.mkdir()
        target.mkdir()
        yield source, target


def written(root: Path, *, sparse: bool = False) -> bytes:
    stream = io.BytesIO()
    tree.write(root, stream, sparse=sparse)
    return stream.getvalue()


@given(entries=trees, sparse=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(entries: dict[bytes, object], *, sparse: bool) -> None:
    with rooms() as (source, target):
        build(entries, source)
        stream = io.BytesIO()
        sent = tree.write(source, stream, sparse=sparse)
        stream.seek(0)
        assert tree.read(stream, target) == sent
        assert look(target) == look(source)
        assert written(target) == written(source)


@given(entries=trees)
@settings(max_examples=20, deadline=None)
def test_a_copy_is_the_same_tree_and_has_its_digest(entries: dict[bytes, object]) -> None:
    with rooms() as (source, target):
        build(entries, source)
        assert tree.copy(source, target) == tree.digest(source)
        assert look(target) == look(source)


@given(entries=trees, sparse=st.booleans())
@settings(max_examples=20, deadline=None)
def test_gnu_tar_reads_what_we_write(entries: dict[bytes, object], *, sparse: bool) -> None:
    with rooms() as (source, target):
        build(entries, source)
        subprocess.run(
            ["tar", "-xp", "--xattrs", "--xattrs-include=*", "-C", target],
            input=written(source, sparse=sparse),
            check=True,
            stderr=subprocess.DEVNULL,  # "Ignoring unknown extended header keyword"
        )
        expected = {
            name: seen for name, seen in look(source).items() if not stat.S_ISSOCK(seen.mode)
        }
        found = look(target)
        assert {name: found[name] for name in expected} == expected


@given(entries=trees)
@settings(max_examples=20, deadline=None)
def test_we_read_what_gnu_tar_writes(entries: dict[bytes, object]) -> None:
    with rooms() as (source, target):
        build(entries, source)
        form = ["--format=pax", "--sparse"] if len(entries) % 2 else ["--format=gnu"]
        packed = subprocess.run(
            ["tar", "-c", *form, "--xattrs", "--sort=name", "-C", source, "."],
            check=True,
            capture_output=True,
        ).stdout
        tree.read(io.BytesIO(packed), target)
        expected = {
            # GNU's own format has no parts of seconds.
            name: (seen.mode, seen.content, seen.mtime_ns // 10**9, seen.first_link == name)
            for name, seen in look(source).items()
            if not stat.S_ISSOCK(seen.mode)
        }
        assert {
            name: (seen.mode, seen.content, seen.mtime_ns // 10**9, seen.first_link == name)
            for name, seen in look(target).items()
        } == expected


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """Make a small tree with one of everything that needs no root."""
    root = tmp_path / "sample"
    root.mkdir()
    (root / "file").write_bytes(b"content" * 100)
    (root / "link").symlink_to("/etc/passwd")
    (root / "other").hardlink_to(root / "file")
    os.mkfifo(root / "queue")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    (root / ("d" * 200)).mkdir()
    (root / ("d" * 200) / ("f" * 200)).write_bytes(b"deep")
    with (root / "holes").open("wb") as stream:
        stream.truncate(300_000)
        stream.seek(150_000)
        stream.write(b"island")
    os.setxattr(root / "file", "user.a=b%", b"1\n2=3")
    os.utime(root, ns=(5, 5))
    return root


def test_an_archive_cut_anywhere_is_refused_and_touches_nothing_else(
    sample: Path, tmp_path: Path
) -> None:
    whole = written(sample, sparse=True)
    place = tmp_path / "place"
    for cut in {*range(0, len(whole), 173), *range(511, len(whole), 512), len(whole) - 1}:
        place.mkdir()
        (place / "into").mkdir()
        with pytest.raises(BadArchive, match="cut"):
            tree.read(io.BytesIO(whole[:cut]), place / "into")
        assert [path.name for path in place.iterdir()] == ["into"]
        shutil.rmtree(place)


def test_the_member_where_an_archive_is_cut_is_named(sample: Path, tmp_path: Path) -> None:
    whole = written(sample)
    (tmp_path / "into").mkdir()
    with pytest.raises(BadArchive, match="in or after file"):
        tree.read(io.BytesIO(whole[: whole.index(b"content") + 10]), tmp_path / "into")


class Trickle:
    """A stream that gives as little as it may."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.stream = io.BytesIO(data)
        self.piece = piece

    def read(self, size: int, /) -> bytes:
        return self.stream.read(min(size, self.piece))


class Drip:
    """A stream that takes as little as it may."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes, /) -> int:
        self.data += data[:1000]
        return len(data[:1000])


@pytest.mark.parametrize("piece", [1, 7, 512, 5000])
def test_streams_may_give_and_take_little_at_a_time(
    sample: Path, tmp_path: Path, piece: int
) -> None:
    drip = Drip()
    tree.write(sample, drip, sparse=True)
    assert drip.data == written(sample, sparse=True)
    (tmp_path / "into").mkdir()
    tree.read(Trickle(drip.data, piece), tmp_path / "into")
    assert look(tmp_path / "into") == look(sample)


def test_without_hashing_the_same_bytes_go(sample: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    assert tree.write(sample, stream, hashed=False).digest == ""
    assert stream.getvalue() == written(sample)
    stream.seek(0)
    (tmp_path / "into").mkdir()
    assert tree.read(stream, tmp_path / "into", hashed=False).digest == ""
    assert look(tmp_path / "into") == look(sample)


HOSTILE = {
    "absolute": (archive(("/evil", FILE, b"x")), "absolute"),
    "parent": (archive(("../evil", FILE, b"x")), r"\.\."),
    "parent inside": (archive(("a", DIRECTORY, ""), ("a/../../evil", FILE, b"x")), r"\.\."),
    "through a link": (archive(("a", LINK, ".."), ("a/evil", FILE, b"x")), "goes through a"),
    "through a link, deeper": (
        archive(("a", LINK, ".."), ("a/b/evil", FILE, b"x")),
        "goes through a",
    ),
    "a directory that is a link": (archive(("a", LINK, ".."), ("a", DIRECTORY, "")), "twice"),
    "a link over a directory": (archive(("a", DIRECTORY, ""), ("a", LINK, "..")), "twice"),
    "a file over a link": (archive(("a", LINK, "../evil"), ("a", FILE, b"x")), "twice"),
    "a file twice": (archive(("a", FILE, b"x"), ("a", FILE, b"y")), "twice"),
    "a hard link out": (archive(("a", HARD, "../evil")), r"\.\."),
    "a hard link to an absolute name": (archive(("a", HARD, "/etc/passwd")), "absolute"),
    "a hard link through a link": (
        archive(("a", LINK, "/etc"), ("b", HARD, "a/passwd")),
        "not there",
    ),
    "a hard link to a later file": (archive(("a", HARD, "b"), ("b", FILE, b"x")), "not there"),
    "a hard link to a directory": (
        archive(("d", DIRECTORY, ""), ("a", HARD, "d")),
        "cannot have one",
    ),
    "a hard link to itself": (archive(("a", HARD, "a")), "itself"),
    "a device": (archive(("null", DEVICE, "")), "device"),
    "the root is a file": (archive((".", FILE, b"x")), "root is not a directory"),
    "a long name": (archive(("n" * 256, FILE, b"x")), "too long"),
    "a long path": (archive(("n/" * 2500 + "a", FILE, b"x")), "too long"),
    "too deep": (archive(("n/" * 501 + "a", FILE, b"x")), "deep"),
    "a GNU long name that leads out": (
        archive(("../" * 50 + "evil", FILE, b"x"), form=tarfile.GNU_FORMAT),
        r"\.\.",
    ),
    "rubbish behind the end": (archive(("a", FILE, b"x")) + b"rubbish", "follows the end"),
    "no tar": (b"#!/bin/sh\n" * 1000, "no tar archive"),
    "nothing": (b"", "cut"),
    "zeros without end": (bytes(3 << 20), "follows the end"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_archive_made_to_do_harm_is_refused(case: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[case]
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(BadArchive, match=reason):
        tree.read(io.BytesIO(data), into)
    assert [path.name for path in tmp_path.iterdir()] == ["into"]


def test_limits_hold_before_anything_is_unpacked(tmp_path: Path) -> None:
    big = archive(("a", FILE, bytes(100_000)))
    (tmp_path / "into").mkdir()
    with pytest.raises(BadArchive, match="more than 99999 bytes"):
        tree.read(io.BytesIO(big), tmp_path / "into", limits=tree.Limits(max_bytes=99_999))
    assert not list((tmp_path / "into").iterdir())
    many = archive(*((f"f{number}", FILE, b"") for number in range(11)))
    with pytest.raises(BadArchive, match="f10: more than 10 files"):
        tree.read(io.BytesIO(many), tmp_path / "into", limits=tree.Limits(max_files=10))


def test_a_header_cannot_announce_more_than_an_extended_header_may_hold(tmp_path: Path) -> None:
    info = tarfile.TarInfo("PaxHeaders/a")
    info.type = tarfile.XHDTYPE
    info.size = 1 << 32
    with pytest.raises(BadArchive, match="too long"):
        tree.read(io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT) + bytes(10_000)), tmp_path)


@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=12)),
                     min_size=1, max_size=4),
    mended=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_damage_ends_in_an_error_of_ours_or_in_a_tree(
    changes: list[tuple[int, bytes]], *, mended: bool
) -> None:
    with rooms() as (source, target):
        build(
            {
                b"f": ("file", b"x" * 600, 0o600, 1),
                b"s": ("sparse", b"data", 0o600, 2),
                b"l": ("symlink", b"t" * 150, 0o600, 3),
                b"d": {b"n" * 120: ("hardlink", b"x", 0o600, 4)},
                b"h": ("hardlink", b"x", 0o600, 5),
            },
            source,
        )
        data = bytearray(written(source, sparse=True))
        for position, change in changes:
            place = position % len(data)
            data[place : place + len(change)] = change
        if mended:  # a checksum only keeps out accidents
            for start in range(0, len(data) - 511, 512):
                block = data[start : start + 512]
                if block[257:262] == b"ustar":
                    total = sum(block) - sum(block[148:156]) + 8 * 32
                    data[start + 148 : start + 156] = b"%06o\0 " % total
        shutil.rmtree(source)
        with contextlib.suppress(PymigrateError):
            tree.read(io.BytesIO(data), target, limits=tree.Limits(max_bytes=1 << 30))
        assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_tree_is_not_unpacked_over_another(sample: Path) -> None:
    with pytest.raises(ValueError, match="empty directory"):
        tree.read(io.BytesIO(written(sample)), sample)


def test_holes_of_zeros_are_made_again_without_a_map(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    content = b"a" + bytes(5 << 20) + b"b"
    (tmp_path / "source" / "file").write_bytes(content)
    tree.read(io.BytesIO(written(tmp_path / "source")), tmp_path / "target")
    assert (tmp_path / "target" / "file").read_bytes() == content
    assert (tmp_path / "target" / "file").stat().st_blocks * 512 < 1 << 20


def test_a_map_sends_only_what_is_there(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 39)
        stream.write(b"x")
    assert len(written(tmp_path, sparse=True)) < 20_000


def test_a_name_too_long_to_travel_is_said_while_writing(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("n" * 255, dir_fd=here)
        deeper = os.open("n" * 255, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    with pytest.raises(HostError, match="too long"):
        tree.digest(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 << 20))

    class Shrinking:
        def write(self, data: bytes, /) -> int:
            os.truncate(tmp_path / "file", 10)
            return len(data)

    with pytest.raises(HostError, match="file became shorter"):
        tree.write(tmp_path, Shrinking())


def test_an_error_of_the_stream_is_not_taken_for_one_of_the_tree(sample: Path) -> None:
    class Broken:
        def write(self, data: bytes, /) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        tree.write(sample, Broken())
