"""The tar format: headers decode to what was encoded, at the borders of every field too."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime import tree_format
from pymigrate.runtime.errors import BadArchive
from pymigrate.runtime.tree_format import Kind, Member
from pymigrate.runtime.tree_source import Source

parts = st.binary(min_size=1, max_size=255).filter(
    lambda part: part not in (b".", b"..") and not set(part) & set(b"/\0")
)
member_names = st.lists(parts, min_size=1, max_size=8).map(b"/".join)
ids = st.integers(0, 2**32 - 1) | st.sampled_from([0o7777777, 0o7777777 + 1])
sizes = st.integers(0, 2**63 - 1) | st.sampled_from([8**11 - 1, 8**11])
moments = st.integers(-(2**62), 2**62) | st.sampled_from([-1, 10**9, 8**11 * 10**9])
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=200).filter(lambda key: 0 not in key), st.binary(max_size=500)
).map(lambda found: tuple(sorted(found.items())))


def made(**fields: Any) -> Member:
    """Make one of just these fields: hypothesis would draw the others too."""
    return Member(**fields)


common = {
    "name": member_names,
    "mode": st.integers(0, 0o7777),
    "uid": ids,
    "gid": ids,
    "mtime_ns": moments,
    "xattrs": xattrs,
}
targets = st.binary(min_size=1, max_size=4095).filter(lambda target: 0 not in target)
members = st.one_of(
    st.builds(made, kind=st.just(Kind.FILE), size=sizes, **common),
    st.builds(
        made,
        kind=st.sampled_from([Kind.DIRECTORY, Kind.FIFO, Kind.SOCKET]),
        **common,
    ),
    st.builds(made, kind=st.just(Kind.SYMLINK), target=targets, **common),
    st.builds(
        made,
        kind=st.sampled_from([Kind.CHARACTER, Kind.BLOCK]),
        device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
        **common,
    ),
)


def decoded(data: bytes) -> Member:
    member = Source(io.BytesIO(data)).next_member()
    assert member is not None
    return member


@given(members)
def test_a_member_survives_its_headers(member: Member) -> None:
    assert decoded(tree_format.encode(member)) == member


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=200),
    member_names,
)
def test_a_map_of_holes_survives(steps: list[tuple[int, int]], name: bytes) -> None:
    extents, position = [], 0
    for gap, length in steps:
        extents.append((position + gap, length))
        position += gap + length
    member = Member(name, Kind.FILE, 0o644, 0, 0, 0, position + 9, extents=tuple(extents))
    assert decoded(tree_format.encode(member)) == member


@given(members)
def test_tarfile_agrees_on_what_it_knows(member: Member) -> None:
    stream = io.BytesIO(tree_format.encode(member) + tree_format.END)
    with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as tar:
        info = tar.next()
    assert info is not None
    assert info.name.encode("utf-8", "surrogateescape") == member.name
    assert (info.mode, info.uid, info.gid) == (member.mode, member.uid, member.gid)
    assert info.size == member.size
    assert info.linkname.encode("utf-8", "surrogateescape") == member.target
    assert info.mtime == pytest.approx(member.mtime_ns / 10**9, abs=1)


@pytest.mark.parametrize("length", range(90, 110))
def test_a_record_counts_its_own_length(length: int) -> None:
    record = tree_format.encode(
        Member(b"n" * length, Kind.SYMLINK, 0o777, 0, 0, 1, target=b"t" * length)
    )
    assert decoded(record).target == b"t" * length


@pytest.mark.parametrize(
    "records",
    [
        b"",
        b"7 a=b\n",
        b"5 a=b\n",
        b"6 a=b",
        b"6 a=bx",
        b"x a=b\n",
        b"6 aab\n",
        b"-6 a=b\n",
        b" 6 a=b\n",
        b"99999999999999 a=b\n",
    ],
)
def test_damaged_records_are_refused(records: bytes) -> None:
    if not records:
        assert tree_format.decode_records(records) == {}
        return
    with pytest.raises(BadArchive, match="damaged"):
        tree_format.decode_records(records)


@pytest.mark.parametrize(
    ("name", "plain"),
    [(b"./a/b", b"a/b"), (b"a//b/", b"a/b"), (b"./", b""), (b".", b""), (b"a/./b", b"a/b")],
)
def test_names_are_made_plain(name: bytes, plain: bytes) -> None:
    assert tree_format.member_name(name) == plain


def test_names_are_shown_without_what_a_terminal_obeys() -> None:
    assert tree_format.shown(b"a\x1b[2Jb\n\xff") == r"a\x1b[2Jb\n\\xff"


@pytest.mark.parametrize(
    "extents", [((5, 5), (0, 5)), ((0, 6), (5, 4)), ((0, 101),), ((0, 9),), ((101, 0), (0, 10))]
)
def test_an_impossible_map_is_refused(extents: tuple[tuple[int, int], ...]) -> None:
    member = Member(b"f", Kind.FILE, 0o644, 0, 0, 0, 100)
    with pytest.raises(BadArchive, match="map of holes"):
        tree_format.check_extents(member, extents, 10)
