"""Filling memory: who is filled, with what, in which order; the kernel's side is played."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pymigrate.checkpoint import fill_words, filling, lazily
from pymigrate.checkpoint.memory_map import BLOCK, PAGE, Extent, PageFile, clipped
from pymigrate.checkpoint.pager import SOCKET, Pager
from pymigrate.checkpoint.space import Space
from pymigrate.runtime import userfault
from pymigrate.runtime.errors import BadArchive, NoSpace, RestoreFailed
from pymigrate.runtime.userfault import Changing, Gone

INNER = 7


class Keeper:
    """Keeps duplicates, as the supervisor does."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> None:
        old, self._held[name] = self._held.get(name), os.dup(fd)
        if old is not None:
            os.close(old)

    def kept(self) -> Mapping[str, int]:
        return {name: os.dup(fd) for name, fd in self._held.items()}

    def drop_kept(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()


@pytest.fixture
def filler(tmp_path: Path) -> Iterator[Pager]:
    made = Pager(tmp_path, Keeper(), lambda *_: None, lambda _: None, room=0)
    yield made
    made._places.spaces.clear()  # their descriptors are none
    made.close()


def pager(directory: Path, keeper: Keeper, room: int = 1 << 20) -> Pager:
    return Pager(directory, keeper, lambda *_: None, lambda _: None, room=room)


def test_what_lies_aside_outlives_a_pager_that_may_still_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper()
    cut = pager(tmp_path, keeper)
    for address, letter in ((0x7000, b"a"), (1 << 40, b"b")):
        cut.put_aside(INNER, address, memoryview(letter * PAGE))

    after = pager(tmp_path, keeper)
    cut.put_aside(INNER, 0x7000, memoryview(b"late" * (PAGE // 4)))
    cut.close()

    monkeypatch.setattr(userfault, "copy", lambda *_: None)
    assert (True, False) == (after.holds(INNER), after.holds(INNER + 1))
    assert [b"a" * PAGE, b"b" * PAGE] == [
        os.pread(after._early._files[INNER], PAGE, at) for at in (0x7000, 1 << 40)
    ]
    assert (tmp_path / SOCKET).exists()  # that CRIU finds the one that is there
    after.close()
    keeper.drop_kept()


def test_what_lies_aside_counts_for_the_next_pager_too(tmp_path: Path) -> None:
    keeper = Keeper()
    cut = pager(tmp_path, keeper, 3 * PAGE)
    cut.put_aside(INNER, 0x7000, memoryview(bytes(2 * PAGE)))
    cut.close()

    after = pager(tmp_path, keeper, 3 * PAGE)

    after.put_aside(INNER, 0x1000, memoryview(bytes(PAGE)))
    with pytest.raises(NoSpace):
        after.put_aside(INNER, 0x2000, memoryview(bytes(PAGE)))
    after.close()
    keeper.drop_kept()


def played(
    monkeypatch: pytest.MonkeyPatch, copy: Callable[[int], None]
) -> list[tuple[int, int, int]]:
    """Have this done before each copy; returns what was copied: descriptor, address, length."""
    done: list[tuple[int, int, int]] = []

    def act(fd: int, address: int, _source: int, length: int) -> None:
        copy(fd)
        done.append((fd, address, length))

    monkeypatch.setattr(userfault, "copy", act)
    return done


def test_a_child_that_is_forked_meanwhile_gets_the_page_too(
    filler: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler._places.spaces.append(Space("0", 100, INNER))

    def fork_first(_fd: int) -> None:
        if len(filler._places.spaces) == 1:  # as when the message of a fork is read, and then
            filler._places.spaces.append(Space("1", 101, INNER))
            raise Changing

    done = played(monkeypatch, fork_first)
    filler.fill(INNER, 0x1000, memoryview(bytearray(PAGE)))
    assert [(100, 0x1000, PAGE), (101, 0x1000, PAGE)] == done


def test_it_is_alone_when_the_last_process_is_gone(
    filler: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not filler.is_alone  # there may be some yet
    filler._places.spaces.append(Space("0", 100, INNER))
    filler._places.spaces.append(Space("1", 101, INNER))

    def gone(_fd: int) -> None:
        raise Gone

    played(monkeypatch, gone)
    filler.fill(INNER, 0x1000, memoryview(bytearray(PAGE)))
    assert filler.is_alone


FILE = PageFile(
    "pages-1.img",
    BLOCK + 8 * PAGE,
    INNER,
    lazy=(Extent(0, 0x100000, BLOCK), Extent(BLOCK + 2 * PAGE, 0x900000, 6 * PAGE)),
    eager=(Extent(BLOCK, 0x800000, 2 * PAGE),),
)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (0x100000, (FILE, 0)),
        (0x100000 + BLOCK - PAGE, (FILE, BLOCK - PAGE)),
        (0x800000 + PAGE, (FILE, BLOCK + PAGE)),
        (0x900000 + 5 * PAGE, (FILE, BLOCK + 7 * PAGE)),
        (0x900000 + 6 * PAGE, PAGE),  # nothing of the dump follows
        (0x900000 - 2 * PAGE, 2 * PAGE),
        (0x100000 + BLOCK, filling.AROUND * PAGE),
    ],
)
def test_a_page_is_found_or_zeros_up_to_the_next_one(address: int, expected: object) -> None:
    assert expected == filling._Processes([FILE]).find(INNER, address)


def test_a_process_without_pages_has_zeros() -> None:
    assert PAGE == filling._Processes([FILE]).find(INNER + 1, 0x100000)


def test_extents_are_cut_at_blocks() -> None:
    assert [Extent(0, 0x100000, BLOCK)] == list(FILE.within(0))
    assert [FILE.lazy[1]] == list(FILE.within(1))
    assert [2, 8 * PAGE] == [FILE.blocks, FILE.length(1)]
    middle = [Extent(PAGE, 0x100000 + PAGE, 2 * PAGE)]
    assert middle == list(clipped(FILE.lazy, PAGE, 3 * PAGE))
    assert [] == list(clipped(FILE.lazy, BLOCK, BLOCK + 2 * PAGE))


def heard(*lines: bytes) -> lazily.Filler:
    """Return a filler that has said this and has gone."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"".join(lines))
    return lazily.Filler(ours)


READY, ATTACHED = b'["ready", ""]\n', b'["attached", ""]\n'
FAILED = b'["failed", "the disk is gone"]\n'


@pytest.mark.parametrize("lines", [(READY, FAILED), (READY, ATTACHED, FAILED), (FAILED,)])
def test_why_it_failed_is_found_behind_all_that_it_said_before(lines: tuple[bytes, ...]) -> None:
    filler = heard(*lines)
    with pytest.raises(RestoreFailed, match="the disk is gone"):
        filler.check()
    filler._connection.close()


def test_an_end_is_a_failure_only_before_it_has_all_processes() -> None:
    whole = heard(READY, ATTACHED)
    whole.await_word(fill_words.ATTACHED)
    whole.check()
    whole._connection.close()
    cut = heard(READY)
    cut.await_word(fill_words.READY)
    with pytest.raises(RestoreFailed, match="killed"):
        cut.check()
    cut._connection.close()


class Played:
    """A pager that places nothing, and pages that are noted as they are read."""

    is_alone = False
    files = (PageFile("pages-2.img", 3 * BLOCK, INNER, (Extent(0, 0, 3 * BLOCK),), ()),)

    def __init__(self) -> None:
        self.read: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.placed: list[tuple[int, int]] = []

    def block(self, file: PageFile, number: int) -> bytes:
        self.read.put(number)
        return bytes(file.length(number))

    def fill(self, _inner: int, address: int, content: memoryview) -> None:
        self.placed.append((address, len(content)))

    def check(self) -> None: ...

    def finish(self) -> None: ...


def test_nothing_is_fetched_ahead_while_somebody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "CALM", 10_000.0)
    made = filling.Filling(tmp_path, Keeper(), lambda: None)
    made.close()
    played = Played()
    made._pager = played  # type: ignore[assignment]
    thread = threading.Thread(target=made.run, args=(played,))
    thread.start()
    made._hear_attached(1)
    first, second = BLOCK + PAGE, 2 * BLOCK + PAGE
    for _ in range(2):  # the second is heard only by one who has nothing else to do
        made._heard.put((INNER, first))
        assert played.read.get() == 1
    assert played.read.empty()
    monkeypatch.setattr(filling, "CALM", 0.0)
    made._heard.put((INNER, second))
    thread.join()
    assert [played.read.get(), played.read.get()] == [2, 0]
    assert played.read.empty()
    one, whole = [(first, PAGE)], [(BLOCK, BLOCK)]
    rest = [(second, PAGE), (2 * BLOCK, BLOCK), (0, BLOCK)]
    assert played.placed == [*one, *whole, *one, *rest]
    assert made.waited_for == [("pages-2.img", 1), ("pages-2.img", 2)]
    assert made.faults == 3


def test_what_was_waited_for_the_last_time_is_fetched_also_while_somebody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "CALM", 10_000.0)
    monkeypatch.setattr(filling, "THREADS", 1)
    made = filling.Filling(tmp_path, Keeper(), lambda: None, [("pages-2.img", 2)])
    made.close()
    played = Played()
    made._pager = played  # type: ignore[assignment]
    thread = threading.Thread(target=made.run, args=(played,))
    thread.start()
    made._hear_attached(1)
    assert played.read.get() == 2
    made._heard.put((INNER, PAGE))
    assert played.read.get() == 0
    assert played.read.empty()
    made._be_busy(0.0)
    thread.join()
    assert played.read.get() == 1
    assert made.waited_for == [("pages-2.img", 0)]


def test_what_was_waited_for_the_last_time_is_brought_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "CALM", 0.0)
    monkeypatch.setattr(filling, "THREADS", 1)
    made = filling.Filling(tmp_path, Keeper(), lambda: None, [("pages-2.img", 2)])
    made.close()
    played = Played()
    made._pager = played  # type: ignore[assignment]
    made._hear_attached(1)
    made.run(played)
    assert [2, 0, 1] == [played.read.get() for _ in range(3)]
    assert made.waited_for == []


def test_a_hint_that_cannot_be_kept_is_told_in_the_log_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "working-sets"
    in_the_way.write_text("")

    filling._keep(in_the_way / "hint.json", [("pages-2.img", 1)], 3)

    assert "working-sets" in capsys.readouterr().err


class Broken(Played):
    """Its last block is not what it has to be."""

    def block(self, file: PageFile, number: int) -> bytes:
        if number == file.blocks - 1:
            raise BadArchive("block 2 was altered")
        return super().block(file, number)


def test_a_block_that_is_altered_ends_it_and_is_never_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "CALM", 0.0)
    made = filling.Filling(tmp_path, Keeper(), lambda: None)
    made.close()
    broken = Broken()
    made._pager = broken  # type: ignore[assignment]
    made._hear_attached(1)
    with pytest.raises(BadArchive, match="block 2 was altered"):
        made.run(broken)  # where the rest is brought, in another thread
    assert {address for address, _ in broken.placed} <= {0, BLOCK}
    assert not [each for each in threading.enumerate() if each.name == "bring"]


def test_what_is_waited_for_and_altered_ends_it_too_and_those_who_bring_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "CALM", 10_000.0)  # nothing else is brought
    made = filling.Filling(tmp_path, Keeper(), lambda: None)
    made.close()
    broken = Broken()
    made._pager = broken  # type: ignore[assignment]
    made._hear_attached(1)
    made._heard.put((INNER, 2 * BLOCK + PAGE))
    with pytest.raises(BadArchive, match="block 2 was altered"):
        made.run(broken)
    assert broken.placed == []
    assert not [each for each in threading.enumerate() if each.name == "bring"]


def test_each_block_is_brought_once_however_many_bring_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "CALM", 0.0)
    monkeypatch.setattr(filling, "THREADS", 3)
    made = filling.Filling(tmp_path, Keeper(), lambda: None)
    made.close()
    played = Played()
    made._pager = played  # type: ignore[assignment]
    made._hear_attached(1)
    made.run(played)
    assert sorted(played.placed) == [(number * BLOCK, BLOCK) for number in range(3)]
