"""Streams of changes from a peer that means harm, or whose line was cut."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymigrate.runtime import tree
from pymigrate.runtime.errors import BadArchive, PymigrateError
from pymigrate.runtime.tree_apply import Applied, apply
from pymigrate.runtime.tree_format import Kind
from pymigrate.runtime.tree_records import (
    Dress,
    End,
    Header,
    Keep,
    Link,
    MakeDirectory,
    MakeFile,
    MakeNode,
    OpenFile,
    Place,
    Record,
    Remove,
    Truncate,
    Write,
    Zero,
    decode,
    encode,
)
from tests.fakes.trees import look

HEADER = Header(b".stash")
OWNER = (os.geteuid(), os.getegid())
PLAIN = (0o644, *OWNER, 1_000_000_000, ())


def stream(*records: Record, end: bool = True, header: bool = True) -> bytes:
    """Return a stream, with its beginning and its end."""
    whole = [*([HEADER] if header else []), *records, *([End()] if end else [])]
    return b"".join(b"".join(encode(record)) for record in whole)


def place(into: Path) -> None:
    """Make a tree with one thing of each kind, and links that lead out of it."""
    (into / "d").mkdir()
    (into / "d" / "file").write_bytes(b"content")
    (into / "out").symlink_to("../outside")
    (into / "leads out").symlink_to("../outside/secret")
    os.mkfifo(into / "fifo")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "into").mkdir()
    place(tmp_path / "into")
    return tmp_path / "into"


def applied(data: bytes, into: Path, *, overlay: bool = False) -> Applied:
    return apply(io.BytesIO(data), into, overlay=overlay)


HOSTILE = {
    "a name that leads out": (stream(MakeFile(b"../evil")), r"\.\."),
    "an absolute name": (stream(MakeFile(b"/evil")), "absolute"),
    "a name written otherwise": (stream(MakeFile(b"d//evil")), "plain name"),
    "a name with a dot": (stream(MakeFile(b"./evil")), "plain name"),
    "an empty name": (stream(Remove(b"")), "plain name"),
    "a NUL in a name": (stream(MakeFile(b"a\0b")), "NUL"),
    "a long name": (stream(MakeFile(b"n" * 256)), "too long"),
    "too deep": (stream(MakeDirectory(b"/".join([b"n"] * 501))), "deep"),
    "a file through a link": (stream(MakeFile(b"out/evil")), "not here"),
    "a directory through a link": (stream(MakeDirectory(b"out/evil")), "not here"),
    "a link through a link": (stream(Link(b"copy", b"out/secret")), "not here"),
    "removing through a link": (stream(Remove(b"out/secret")), "not here"),
    "keeping through a link": (stream(Keep(0, b"out/secret")), "not here"),
    "keeping a link": (stream(Keep(0, b"leads out")), "none here"),
    "keeping a directory": (stream(Keep(0, b"d")), "none here"),
    "keeping what is not there": (stream(Keep(0, b"nothing")), "not here"),
    "opening a link": (stream(OpenFile(b"leads out")), "none here"),
    "opening a FIFO": (stream(OpenFile(b"fifo")), "none here"),
    "opening a directory": (stream(OpenFile(b"d")), "none here"),
    "opening what is not there": (stream(OpenFile(b"nothing")), "not here"),
    "a file over a file": (stream(MakeFile(b"d/file")), "there already"),
    "a file over a link": (stream(MakeFile(b"leads out")), "there already"),
    "a directory over a link": (stream(MakeDirectory(b"out")), "there already"),
    "a link over a file": (stream(MakeNode(b"d/file", Kind.SYMLINK, target=b"x")), "already"),
    "a hard link over a file": (stream(Link(b"fifo", b"d/file")), "already"),
    "a hard link to a directory": (stream(Link(b"copy", b"d")), "cannot make|not here"),
    "placing what was not kept": (stream(Place(0, b"copy")), "nothing was put aside"),
    "placing another number": (stream(Keep(0, b"d/file"), Place(1, b"copy")), "not here"),
    "placing over a file": (stream(Keep(0, b"d/file"), Place(0, b"fifo")), "already"),
    "into what is put aside": (stream(Keep(0, b"d/file"), MakeFile(b".stash/x")), "ours"),
    "removing after making": (stream(MakeFile(b"new"), Remove(b"d")), "order"),
    "keeping after removing": (stream(Remove(b"d"), Keep(0, b"fifo")), "order"),
    "a second header": (stream(HEADER), "order"),
    "no header": (stream(MakeFile(b"new"), header=False), "order"),
    "a stash that is there": (
        stream(Header(b"d"), Keep(0, b"d/file"), header=False),
        "already",
    ),
    "a stash that leads out": (
        stream(Header(b"d/x"), header=False),
        "plain name",
    ),
    "content of nothing": (stream(Write(0, b"x")), "no file"),
    "content after another record": (
        stream(OpenFile(b"d/file"), MakeDirectory(b"e"), Write(0, b"x")),
        "no file",
    ),
    "another file is dressed": (stream(OpenFile(b"d/file"), Dress(b"fifo", *PLAIN)), "is open"),
    "a file that is not open is dressed": (stream(Dress(b"d/file", *PLAIN)), "not open"),
    "dressing through a link": (stream(Dress(b"out/secret", *PLAIN)), "not here"),
    "a device": (stream(MakeNode(b"null", Kind.CHARACTER, (1, 3))), "device node"),
    "an impossible device": (stream(MakeNode(b"null", Kind.BLOCK, (1 << 20, 3))), "device number"),
    "a directory as a node": (stream(MakeNode(b"e", Kind.DIRECTORY)), "unknown type"),
    "a link to nowhere at all": (stream(MakeNode(b"e", Kind.SYMLINK)), "impossible target"),
    "a long link": (stream(MakeNode(b"e", Kind.SYMLINK, target=b"x" * 5000)), "impossible target"),
    "an impossible mode": (stream(Dress(b"d", 0o10000, *OWNER, 0, ())), "mode"),
    "an attribute without a name": (stream(Dress(b"d", 0, *OWNER, 0, ((b"", b""),))), "attribute"),
    "a large attribute": (
        stream(Dress(b"d", 0, *OWNER, 0, ((b"user.a", bytes(70_000)),))),
        "attribute",
    ),
    "an impossible size": (stream(OpenFile(b"d/file"), Truncate(1 << 63)), "impossible size"),
    "an impossible offset": (stream(OpenFile(b"d/file"), Write(2**63 - 1, b"x")), "impossible"),
    "impossible zeros": (stream(OpenFile(b"d/file"), Zero(2**62, 2**62)), "impossible size"),
    "an unknown record": (stream(end=False) + b"X\0\0\0\0", "unknown record"),
    "a large record": (stream(end=False) + b"W\xff\xff\xff\xff", "of 4294967295 bytes"),
    "a short record": (stream(end=False) + b"M\0\0\0\1x", "damaged record"),
    "cut": (stream(MakeFile(b"new"), end=False), "cut"),
    "nothing": (b"", "cut"),
    "rubbish behind the end": (stream() + b"x", "follows the end"),
    "another version": (b"H\0\0\0\x02\x63a", "not known"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_changes_made_to_do_harm_are_refused(case: str, into: Path) -> None:
    data, reason = HOSTILE[case]
    outside = look(into.parent / "outside")
    with pytest.raises(PymigrateError, match=reason):
        applied(data, into)
    assert look(into.parent / "outside") == outside
    assert sorted(path.name for path in into.parent.iterdir()) == ["into", "outside"]


def test_two_files_are_not_kept_under_one_number(into: Path) -> None:
    (into / "other").write_bytes(b"other")
    with pytest.raises(BadArchive, match="already"):
        applied(stream(Keep(0, b"d/file"), Keep(0, b"other")), into)


def test_limits_hold_before_anything_is_made(into: Path) -> None:
    writing = stream(OpenFile(b"d/file"), Write(0, bytes(6)), Write(0, bytes(6)))
    with pytest.raises(BadArchive, match="d/file: more than 11 bytes"):
        apply(io.BytesIO(writing), into, limits=tree.Limits(max_bytes=11))
    making = stream(*(MakeFile(b"f%d" % number) for number in range(11)))
    with pytest.raises(BadArchive, match="f10: more than 10 files"):
        apply(io.BytesIO(making), into, limits=tree.Limits(max_files=10))
    assert not (into / "f10").exists()


def test_a_link_is_dressed_itself_and_not_what_it_leads_to(into: Path) -> None:
    before = (into.parent / "outside" / "secret").stat()
    applied(stream(Dress(b"leads out", 0o777, *OWNER, 5, ())), into)
    after = (into.parent / "outside" / "secret").stat()
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)
    assert (into / "leads out").lstat().st_mtime_ns == 5


def test_removing_a_directory_removes_links_in_it_and_nothing_behind_them(into: Path) -> None:
    (into / "d" / "link").symlink_to("../../outside")
    applied(stream(Remove(b"d")), into)
    assert not (into / "d").exists()
    assert (into.parent / "outside" / "secret").read_bytes() == b"secret"


def test_a_whiteout_needs_an_overlay(into: Path) -> None:
    whiteout = stream(MakeNode(b"gone", Kind.CHARACTER), Dress(b"gone", *PLAIN))
    with pytest.raises(BadArchive, match="device node"):
        applied(whiteout, into)
    if os.geteuid() == 0:
        applied(whiteout, into, overlay=True)
        assert stat.S_ISCHR((into / "gone").lstat().st_mode)


def test_attributes_that_are_not_mentioned_are_removed(into: Path) -> None:
    os.setxattr(into / "d" / "file", "user.old", b"1")
    os.setxattr(into / "d", "user.old", b"1")
    dressed = ((b"user.new", b"2"),)
    records = (
        OpenFile(b"d/file"),
        Dress(b"d/file", 0o600, *OWNER, 7, dressed),
        Dress(b"d", 0o700, *OWNER, 7, dressed),
    )
    applied(stream(*records), into)
    for path in (into / "d", into / "d" / "file"):
        assert os.listxattr(path) == ["user.new"]
        assert path.stat().st_mtime_ns == 7


names = st.sampled_from([b"a", b"d/file", "ü".encode(), b"\xff", b"d/" + b"n" * 255])
sizes = st.integers(0, 2**62 - 1)  # two of them are a size that a file can have
records = st.one_of(
    st.builds(Keep, st.integers(0, 2**64 - 1), names),
    st.builds(Remove, names),
    st.builds(MakeDirectory, names),
    st.builds(MakeFile, names),
    st.builds(OpenFile, names),
    st.builds(Place, st.integers(0, 2**64 - 1), names),
    st.builds(Link, names, names),
    st.builds(MakeNode, names, st.just(Kind.FIFO)),
    st.builds(MakeNode, names, st.just(Kind.SYMLINK), st.just((0, 0)), st.just(b"../../x")),
    st.builds(Write, sizes, st.binary(max_size=40)),
    st.builds(Zero, sizes, sizes),
    st.builds(Truncate, sizes),
    st.builds(
        Dress,
        names | st.just(b""),
        st.integers(0, 0o7777),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.lists(st.tuples(st.binary(min_size=1, max_size=9).filter(lambda k: 0 not in k),
                           st.binary(max_size=9)), max_size=3).map(tuple),
    ),
)  # fmt: skip


@given(given=st.lists(records, max_size=8), piece=st.integers(1, 50))
def test_what_is_encoded_is_decoded(given: list[Record], piece: int) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, piece))

    found = list(decode(Slow(stream(*given))))
    assert found == [HEADER, *given, End()]


@contextlib.contextmanager
def somewhere() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "outside").mkdir()
        (root / "outside" / "secret").write_bytes(b"secret")
        (root / "into").mkdir()
        place(root / "into")
        yield root


@given(
    given=st.lists(records, max_size=8),
    changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 500),
)
@settings(max_examples=300, deadline=None)
def test_any_records_with_any_damage_touch_nothing_outside(
    given: list[Record], changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(stream(*given))
    for at, value in changes:
        if at < len(data):
            data[at] = value
    with somewhere() as root:
        outside = look(root / "outside")
        with contextlib.suppress(PymigrateError):
            applied(bytes(data[: cut or None]), root / "into", overlay=True)
        assert look(root / "outside") == outside
        assert sorted(path.name for path in root.iterdir()) == ["into", "outside"]
