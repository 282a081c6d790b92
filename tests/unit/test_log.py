"""The log tells the output exactly, line by line, whatever its bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate import moments
from pymigrate.runtime import log
from pymigrate.runtime.errors import UsageError

PIECES = st.lists(st.tuples(st.sampled_from(log.STREAMS), st.binary(min_size=1, max_size=50)))


def read(path: Path) -> list[tuple[str, bytes]]:
    return [(entry.stream, entry.output) for entry in log.Reader(path).entries()]


@given(PIECES)
def test_output_can_be_told_from_the_log(pieces: list[tuple[str, bytes]]) -> None:
    lines = b"".join(log.format_entries("T", stream, data) for stream, data in pieces).split(b"\n")
    entries = [entry for line in lines if (entry := log.parse_entry(line)) is not None]

    for stream in log.STREAMS:
        wanted = b"".join(data for name, data in pieces if name == stream)
        assert wanted == b"".join(entry.output for entry in entries if entry.stream == stream)


def test_lines_are_as_podman_writes_them() -> None:
    when = "2017-07-14T02:40:00.000000001Z"
    text = log.format_entries(log.timestamp(1_500_000_000_000_000_001), "stdout", b"one\ntwo")

    assert f"{when} stdout F one\n{when} stdout P two\n" == text.decode()


@pytest.mark.parametrize("line", [b"", b"T stdout F", b"T other F x", b"T stdout X x"])
def test_what_is_no_entry_is_skipped(line: bytes) -> None:
    assert log.parse_entry(line) is None


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    writer = log.Writer(tmp_path / "log")
    reader = log.Reader(tmp_path / "log")
    writer.write("stdout", b"one\n")
    first = [entry.output for entry in reader.entries()]
    writer.write("stderr", b"two")

    assert [b"one\n"] == first
    assert [b"two"] == [entry.output for entry in reader.entries()]


def test_a_line_that_a_killed_writer_left_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"T stdout F one\nT stdout F tor")
    log.Writer(path).write("stdout", b"two\n")

    assert [b"one\n", b"tor\n", b"two\n"] == [output for _, output in read(path)]


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (0, b""),
        (1, b"last"),
        (2, b"three four\nlast"),
        (3, b"two\nthree four\nlast"),
        (99, b"one\ntwo\nthree four\nlast"),
    ],
)
def test_the_tail_counts_lines_of_output(tmp_path: Path, count: int, wanted: bytes) -> None:
    writer = log.Writer(tmp_path / "log")
    for piece in (b"one\ntwo\nthree ", b"four\nla", b"st"):
        writer.write("stdout", piece)
    reader = log.Reader(tmp_path / "log")
    reader.seek_tail(count)

    assert wanted == b"".join(entry.output for entry in reader.entries())


def test_the_tail_of_a_long_log_is_found_without_reading_it_all(tmp_path: Path) -> None:
    writer = log.Writer(tmp_path / "log")
    writer.write("stdout", b"".join(b"%d\n" % number for number in range(20_000)))
    reader = log.Reader(tmp_path / "log")
    reader.seek_tail(2)

    assert [b"19998\n", b"19999\n"] == [entry.output for entry in reader.entries()]


def test_a_full_disk_is_reported_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = log.Writer(tmp_path / "log")
    writer.write("stdout", b"one\n")
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 10:
            return real(fd, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert not writer.write("stdout", b"a longer line than fits\n")
    monkeypatch.undo()
    assert writer.write("stdout", b"two\n")

    assert [
        ("stdout", b"one\n"),
        ("stderr", b"[24 bytes of output were lost: the disk was full]\n"),
        ("stdout", b"two\n"),
    ] == read(tmp_path / "log")


# Rotation


def outputs(reader: log.Reader) -> bytes:
    return b"".join(entry.output for entry in reader.entries())


def test_a_log_is_bounded_and_its_end_is_kept(tmp_path: Path) -> None:
    writer = log.Writer(tmp_path / "log", size=500)
    for number in range(200):
        writer.write("stdout", b"%d\n" % number)

    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    left = outputs(log.Reader(tmp_path / "log")).split()
    assert left == [b"%d" % number for number in range(200 - len(left), 200)]
    assert len(left) >= 5


def test_a_reader_follows_across_a_rotation_and_misses_nothing(tmp_path: Path) -> None:
    writer = log.Writer(tmp_path / "log", size=500)
    writer.write("stdout", b"first\n")
    reader = log.Reader(tmp_path / "log", writer.length, writer.inode)
    found = b""
    for number in range(60):
        writer.write("stdout", b"%d\n" % number)
        if number % 5 == 0:  # less often than it is rotated twice
            found += outputs(reader)
    found += outputs(reader)

    assert found.split() == [b"%d" % number for number in range(60)]


def test_a_reader_that_was_left_behind_goes_on_with_what_is_left(tmp_path: Path) -> None:
    writer = log.Writer(tmp_path / "log", size=500)
    writer.write("stdout", b"first\n")
    reader = log.Reader(tmp_path / "log")
    outputs(reader)
    for number in range(200):
        writer.write("stdout", b"%d\n" % number)

    found, left = outputs(reader), outputs(log.Reader(tmp_path / "log"))
    assert found.endswith(left)
    rest = found.removesuffix(left).split()  # of its own file, which it still holds
    assert rest == [b"%d" % number for number in range(len(rest))]


def test_an_offset_belongs_to_its_file(tmp_path: Path) -> None:
    writer = log.Writer(tmp_path / "log", size=500)
    writer.write("stdout", b"before\n")
    place = writer.length, writer.inode
    writer.write("stdout", b"x" * 300 + b"\n")
    writer.write("stdout", b"y" * 300 + b"\n")  # in another file

    assert writer.inode != place[1]
    assert outputs(log.Reader(tmp_path / "log", *place)) == b"x" * 300 + b"\n" + b"y" * 300 + b"\n"


@pytest.mark.parametrize("count", range(12))
def test_a_tail_may_begin_before_the_rotation(tmp_path: Path, count: int) -> None:
    writer = log.Writer(tmp_path / "log", size=300)
    for number in range(50):
        writer.write("stdout", b"%d\n" % number)
    reader = log.Reader(tmp_path / "log")
    kept = outputs(log.Reader(tmp_path / "log")).splitlines()
    reader.seek_tail(count)

    assert outputs(reader).splitlines() == (kept[-count:] if count else [])


def test_what_is_older_than_asked_for_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(
        log.format_entries(log.timestamp(1_000_000_000), "stdout", b"old\n")
        + log.format_entries(log.timestamp(2_000_000_000), "stdout", b"new\n")
    )

    assert outputs(log.Reader(tmp_path / "log", since=log.timestamp(1_500_000_000))) == b"new\n"


def test_moments_are_times_or_ago() -> None:
    assert moments.since(None) == ""
    assert moments.since("10m", now=1_500_000_600.0) == log.timestamp(1_500_000_000 * 10**9)
    assert moments.since("2017-07-14T02:40:00Z") == log.timestamp(1_500_000_000 * 10**9)
    exact = log.timestamp(1_500_000_000 * 10**9 + 999_999_999)  # a float would round it up
    assert moments.since(exact) == exact
    assert moments.since("1500000000.999999999") == exact
    assert moments.since("2017-07-14T04:40:00.5+02:00") == "2017-07-14T02:40:00.500000000Z"
    assert moments.since("1500000000") == log.timestamp(1_500_000_000 * 10**9)
    for bad in ("", "yesterday", "10x", "-5m", "1e400", "9" * 400):
        with pytest.raises(UsageError):
            moments.since(bad)


def test_one_piece_of_many_short_lines_is_bounded_too(tmp_path: Path) -> None:
    writer = log.Writer(tmp_path / "log", size=500)
    writer.write("stdout", b"".join(b"%d\n" % number for number in range(1000)))
    writer.write("stderr", b"x" * 2000)  # longer than a log may be: whole, in one of its own

    assert (tmp_path / "log.1").stat().st_size <= 500
    assert (tmp_path / "log").stat().st_size < 2100
    assert outputs(log.Reader(tmp_path / "log")).endswith(b"999\n" + b"x" * 2000)
