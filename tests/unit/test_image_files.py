"""CRIU's images on their way: what is sent arrives, and no peer can make more than it said."""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import pytest

from pymigrate.checkpoint.requests import DUMP_LOG
from pymigrate.migrate import image_files
from pymigrate.runtime.errors import BadArchive, HostError
from pymigrate.runtime.tree import Limits
from pymigrate.transport.rpc import Writer


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / "pages-1.img").write_bytes(bytes(range(256)) * 8192)
    (directory / "empty.img").write_bytes(b"")
    (directory / "core-1.img").write_bytes(b"core")
    (directory / DUMP_LOG).write_bytes(b"nobody needs it there")
    return directory


def into(tmp_path: Path) -> Path:
    made = tmp_path / "into"
    made.mkdir()
    return made


def sent(images: Path, sizes: dict[str, int]) -> io.BytesIO:
    stream = io.BytesIO()
    image_files.send(images, sizes, cast("Writer", stream))
    return io.BytesIO(stream.getvalue())


def test_they_arrive_but_for_the_log(images: Path, tmp_path: Path) -> None:
    sizes = image_files.listed(images)
    there = into(tmp_path)

    image_files.receive(sizes, sent(images, sizes), there, Limits())

    expected = {path.name: path.read_bytes() for path in images.iterdir()}
    del expected[DUMP_LOG]
    assert expected == {path.name: path.read_bytes() for path in there.iterdir()}
    assert {0o600} == {path.stat().st_mode & 0o777 for path in there.iterdir()}


def test_a_file_that_became_shorter_is_told(images: Path) -> None:
    sizes = image_files.listed(images)
    (images / "core-1.img").write_bytes(b"co")

    with pytest.raises(HostError, match="core-1"):
        sent(images, sizes)


@pytest.mark.parametrize(("content", "reason"), [(b"123", "cut"), (b"12345", "more")])
def test_a_stream_of_another_length_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(BadArchive, match=reason):
        image_files.receive({"a": 4}, io.BytesIO(content), into(tmp_path), Limits())


@pytest.mark.parametrize("sizes", [{"a": 7, "b": 4}, {"a": 1 << 63}, {"a": 1, "b": 1, "c": 1}])
def test_more_than_was_announced_is_refused_before_anything_is_made(
    tmp_path: Path, sizes: dict[str, int]
) -> None:
    there = into(tmp_path)

    with pytest.raises(BadArchive, match="more than"):
        image_files.receive(sizes, io.BytesIO(), there, Limits(max_bytes=10, max_files=2))
    assert [] == list(there.iterdir())


def test_nothing_that_is_there_is_written_to(tmp_path: Path) -> None:
    there = into(tmp_path)
    (tmp_path / "victim").write_bytes(b"as it was")
    (there / "a").symlink_to(tmp_path / "victim")

    with pytest.raises(HostError, match="exists"):
        image_files.receive({"a": 1}, io.BytesIO(b"x"), there, Limits())
    assert b"as it was" == (tmp_path / "victim").read_bytes()
