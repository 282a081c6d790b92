"""The journal of what happened to containers."""

from __future__ import annotations

import fcntl
import os
import select
from contextlib import closing
from pathlib import Path

import pytest

from pymigrate.runtime import events, log


def event(number: int, action: str = "start") -> events.Event:
    return events.Event(log.timestamp(number), action, "web", "f" * 64, {"number": number})


def numbers(path: Path) -> list[object]:
    """Return what the lines of a file say; each must be whole."""
    found = [events.parse(line) for line in path.read_bytes().splitlines()]
    return [each.attributes["number"] if each is not None else "torn" for each in found]


def test_an_event_is_read_as_it_was_written(tmp_path: Path) -> None:
    events.append(tmp_path / "events", event(7))

    assert events.parse((tmp_path / "events").read_bytes()) == event(7)
    assert (tmp_path / "events").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"time": 1}', b"\xff"])
def test_what_is_no_event_is_passed_over(line: bytes) -> None:
    assert events.parse(line) is None


def test_the_journal_keeps_the_last_events_in_two_files_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "events"
    for number in range(1000):
        events.append(path, event(number), size=4096)

    kept = numbers(log.older(path)) + numbers(path)
    assert kept == list(range(1000 - len(kept), 1000))
    assert path.stat().st_size <= 4096
    assert 2048 < log.older(path).stat().st_size <= 4096


def _writer(path: Path) -> int:
    """Start a process that appends 300 events; return its PID."""
    pid = os.fork()
    if pid == 0:
        try:
            for number in range(300):
                events.append(path, event(number), size=1 << 20)
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_lines_of_many_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events"
    writers = [_writer(path) for _ in range(3)]
    for pid in writers:
        assert os.waitpid(pid, 0)[1] == 0
    assert sorted(numbers(path), key=str) == sorted([*range(300)] * 3, key=str)


def test_a_full_old_file_takes_the_line_while_another_rotates(tmp_path: Path) -> None:
    path = tmp_path / "events"
    events.append(path, event(1), size=1)
    with path.open("rb") as rotating:
        fcntl.flock(rotating, fcntl.LOCK_EX)
        events.append(path, event(2), size=1)
    assert numbers(path) == [1, 2]
    assert not log.older(path).exists()


def test_a_watcher_is_woken_and_reads_across_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "events"
    events.append(path, event(0))
    with closing(events.Watcher(path, from_now=True)) as watcher:
        assert list(watcher.events()) == []
        found: list[object] = []
        for number in range(1, 200):
            events.append(path, event(number), size=4096)
            assert select.select([watcher], [], [], 10)[0]
            watcher.take_note()
            found += [each.attributes["number"] for each in watcher.events()]
    assert found == list(range(1, 200))


def test_the_journal_need_not_be_there_to_be_watched(tmp_path: Path) -> None:
    with closing(events.Watcher(tmp_path / "events", from_now=False)) as watcher:
        assert list(watcher.events()) == []
        events.append(tmp_path / "events", event(1))
        assert list(watcher.events()) == [event(1)]
