"""The conversation about memory, with a target that is a queue of news."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
import pytest

from pymigrate.migrate.batching import pack
from pymigrate.migrate.memory_reader import SMALL
from pymigrate.migrate.memory_sender import MemorySender
from pymigrate.runtime.errors import MigrationError, ProtocolError, Unreachable
from pymigrate.runtime.memory import Memories, Memory, inner_pid
from pymigrate.transport import compression, pages
from pymigrate.transport import messages as m
from pymigrate.transport.conversation import Speaker
from pymigrate.transport.frames import Buffer
from pymigrate.transport.pages import Batch, Kind, News, Stage

MIB = 16
ABSENT = 0x10000  # below what a program has


class Target(Speaker):
    """Takes each batch before the sender hears that it was sent, and tells what it is told to."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.compressed = False
        self.news: queue.Queue[bytes | Exception] = queue.Queue()
        self._taken = 0

    def say(
        self, piece: Buffer, packed: bytes | None = None, done: Callable[[], None] = lambda: None
    ) -> int:
        if packed is not None:
            self.compressed = True
            piece = compression.decompress(packed, len(piece))
        self.batches.append(pages.decode(bytes(piece)))
        self._taken += len(piece)
        self.news.put(pages.news(News.TAKEN, value=self._taken))
        self.news.join()
        done()
        return len(piece)

    def end(self) -> None:
        self.news.put(pages.news(News.COMPLETE))

    def hear(self, timeout: float | None = None) -> Buffer | None:
        try:
            told = self.news.get(timeout=timeout)
        except queue.Empty:
            return None
        self.news.task_done()
        if isinstance(told, Exception):
            raise told
        return told


@contextmanager
def talking(
    limit: float | None = None, *, ahead: bool = False
) -> Iterator[tuple[MemorySender, Target, list[BaseException]]]:
    target = Target()
    failures: list[BaseException] = []
    sender = MemorySender(target, m.PagesTaken, failures.append, limit=limit, ahead=ahead)
    try:
        yield sender, target, failures
    finally:
        sender.close()


@contextmanager
def stopped(program: str) -> Iterator[tuple[int, bytes]]:
    """Run a program until its first line, and stop it: it is the same whenever it is looked at."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        yield process.pid, said
        process.send_signal(signal.SIGCONT)
        process.communicate(b"\n")


@pytest.fixture
def pid() -> Iterator[int]:
    """Run a process with memory of which each page is another."""
    program = (
        f"a = bytearray({MIB} << 20)\n"
        "for at in range(0, len(a), 4096): a[at:at+8] = at.to_bytes(8, 'big') or b'x'\n"
        "a[0] = 1; print('ready', flush=True); input()"
    )
    with stopped(program) as (found, _):
        yield found


def test_what_is_taken_at_once_never_closes_the_window(pid: int) -> None:
    with talking() as (sender, target, _):
        first = sender.round([pid])
        second = sender.round([pid])

    assert first * pages.PAGE > MIB << 20
    assert second == 0  # nothing has changed
    assert {Stage.EARLY} == {batch.stage for batch in target.batches}


def test_after_rounds_only_what_changed_goes_again(pid: int) -> None:
    with talking() as (sender, target, _):
        sender.round([pid])
        early = len(target.batches)
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.freeze([pid])
        sender.begin()
        sender.wait()

    assert sender.sent.content == 0
    assert sender.sent.same == sender.sent.early
    assert not any(len(batch.content) for batch in target.batches[early:])


def test_a_target_that_keeps_it_is_sent_all_before_it_has_processes(pid: int) -> None:
    with talking(ahead=True) as (sender, target, _):
        sender.freeze([pid])
        sender.begin()
        sender._await(lambda: sender._has_gone)

        assert memory_of(pid).keys() <= sent(target, 0)
        assert {Stage.FINAL} == {batch.stage for batch in target.batches}
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.wait()


def test_a_target_that_would_lose_it_is_sent_nothing_before_it_has_processes(pid: int) -> None:
    with talking() as (sender, target, _):
        sender.freeze([pid])
        sender.begin()
        inner = inner_pid(pid)
        target.news.put(pages.news(News.WANTED, inner=inner, value=ABSENT))
        sender._await(lambda: ABSENT in sent(target, 0))
        assert {ABSENT} == sent(target, 0)

        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.wait()
        assert memory_of(pid).keys() <= sent(target, 0)


def test_small_areas_go_first_where_nothing_lies_at_the_target(pid: int) -> None:
    with Memories.of([pid]) as memories:
        (memory,) = memories.by_inner.values()
        large = [area for area in memory.areas() if area.length > SMALL]
    with talking(ahead=True) as (sender, target, _):
        sender.freeze([pid])
        sender.begin()
        sender._await(lambda: sender._has_gone)
        order = [at for batch in target.batches for at in addresses(batch)]

    is_large = [any(area.start <= at < area.end for area in large) for at in order]
    assert {True, False} == set(is_large)
    assert is_large == sorted(is_large)


def sent(target: Target, since: int) -> set[int]:
    """Return of which pages the batches from that one on are."""
    return {at for batch in target.batches[since:] for at in addresses(batch)}


def has_come(target: Target, address: int) -> bool:
    return address in sent(target, 0)


CODE = """
import ctypes, mmap
a = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
a[:] = b"c" * len(a)
print(ctypes.addressof(ctypes.c_char.from_buffer(a)), flush=True)
input()
"""


@pytest.mark.parametrize("rounds", [0, 1])
def test_code_is_not_looked_at_while_criu_is_in_it(rounds: int) -> None:
    with stopped(CODE) as (pid, said), talking(ahead=True) as (sender, target, _):
        code = int(said)
        for _ in range(rounds):
            sender.round([pid])  # after which what it sent is looked at first
        early = len(target.batches)
        sender.freeze([pid], traced=True)
        sender.begin()
        others = memory_of(pid).keys() - set(range(code, code + (1 << 16), pages.PAGE))
        sender._await(lambda: others <= sent(target, early))
        before = sent(target, early)
        sender.release()
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.wait()
        after = sent(target, early)

    assert code not in before
    assert code in after


AIO = """
import ctypes, os
number = {"x86_64": 206, "aarch64": 0}[os.uname().machine]
assert not ctypes.CDLL(None).syscall(number, 8, ctypes.byref(ctypes.c_ulong()))  # io_setup(2)
print("ready", flush=True)
input()
"""


def test_memory_that_the_kernel_may_still_write_to_is_looked_at_when_criu_is_done() -> None:
    with stopped(AIO) as (pid, _), talking(ahead=True) as (sender, target, _):
        sender.freeze([pid], traced=True)
        sender.begin()
        asked = [ABSENT + number * pages.PAGE for number in range(5)]
        for address in asked:  # between two of these it could look at memory
            wanted = pages.news(News.WANTED, inner=inner_pid(pid), value=address)
            target.news.put(wanted)
            sender._await(partial(has_come, target, address))
        before = sent(target, 0)
        sender.release()
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.wait()
        memory = memory_of(pid)

    assert set(asked) == before
    assert memory.keys() <= sent(target, 0)


def test_a_wanted_page_is_sent_though_nothing_else_is(pid: int) -> None:
    with talking() as (sender, target, _):
        sender.round([pid])
        run = target.batches[0].runs[0]
        sender.freeze([pid])
        inner = target.batches[0].inner
        target.news.put(pages.news(News.WANTED, inner=inner, value=run.address))
        target.news.join()
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.begin()
        sender.wait()

    final = [batch for batch in target.batches if batch.stage is Stage.FINAL]
    sent = [at for batch in final for at in addresses(batch)]
    assert run.address == sent[0]
    assert len(sent) == len(set(sent))  # and not a second time with the rest


def test_what_came_by_the_lane_does_not_go_again(pid: int) -> None:
    there = sorted(memory_of(pid))[3:9]
    with talking() as (sender, target, _):
        sender.freeze([pid])
        inner = inner_pid(pid)
        target.news.put(b"".join(pages.placed(inner, at, 1) for at in there))
        target.news.put(pages.news(News.ATTACHED, value=1))
        target.news.join()
        sender.begin()
        sender.wait()
        memory = memory_of(pid)

    assert memory.keys() - set(there) <= sent(target, 0)
    assert not set(there) & sent(target, 0)
    assert sender.sent.content >= len(there)


@pytest.mark.parametrize("value", [0x5000, (1 << 63) - 4096 + 5], ids=["none", "beyond"])
def test_a_target_that_says_nonsense_of_what_is_there_is_refused(value: int) -> None:
    with talking() as (sender, target, failures):
        sender.freeze([])
        target.news.put(pages.news(News.PLACED, inner=7, value=value))
        with pytest.raises(ProtocolError, match="said to be in place"):
            sender.await_attached()

    assert failures


@pytest.mark.parametrize("limit", [None, 1e6])
def test_the_target_gets_every_page_as_it_is_compressed_or_not(
    pid: int, limit: float | None
) -> None:
    with talking(limit) as (sender, target, _):
        sender.round([pid])
        early = [batch for batch in target.batches if batch.stage is Stage.EARLY]

    seen: dict[int, bytes] = {}
    for batch in early:
        contents = [batch.content[at : at + 4096] for at in range(0, len(batch.content), 4096)]
        seen |= dict(zip(addresses(batch), map(bytes, contents), strict=True))
    assert {limit is not None} == {target.compressed}
    assert memory_of(pid) == seen


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_pages_that_are_kept_move_to_the_front(count: int) -> None:
    for bits in range(1 << min(count, 7)):
        kept = np.array([bits >> (at % 7) & 1 for at in range(count)], np.bool_)
        content = bytearray(b"".join(bytes([at + 1]) * 4096 for at in range(count)))

        left = pack(memoryview(content), kept)

        expected = b"".join(bytes([at + 1]) * 4096 for at in range(count) if kept[at])
        assert (int(kept.sum()), expected) == (left, bytes(content[: len(expected)]))


@pytest.mark.parametrize("wanted", [False, True])
def test_memory_of_a_frozen_process_that_was_killed_is_not_taken_for_zeros(
    pid: int, wanted: bool
) -> None:
    with talking() as (sender, target, _):
        sender.freeze([pid])
        inner = inner_pid(pid)
        with closing(Memory.open(pid)) as memory:
            address = memory.areas()[0].start
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if wanted:
            target.news.put(pages.news(News.WANTED, inner=inner, value=address))
            target.news.join()
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.begin()
        with pytest.raises(MigrationError, match=f"process {inner} was killed"):
            sender.wait()

    assert not [batch for batch in target.batches if batch.stage is Stage.FINAL]


def test_the_end_is_not_said_amid_a_page_that_is_wanted(pid: int) -> None:
    """Its numbers would be those before the page: the target takes that for damage."""
    with talking() as (sender, target, _):
        sender.freeze([pid])
        inner = inner_pid(pid)
        speaking, ended = threading.Event(), threading.Event()
        overlaps = []
        say, end = target.say, target.end

        def slowly(
            piece: Buffer, packed: bytes | None = None, done: Callable[[], None] = lambda: None
        ) -> int:
            speaking.set()
            early = ended.wait(0.2)  # time for an end that does not wait
            length = 0 if early else say(piece, packed, done)
            speaking.clear()
            return length

        def note() -> None:
            overlaps.append(speaking.is_set())
            ended.set()
            end()

        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.begin()
        sender.await_attached()
        sender.await_pager()  # after this there is no other work
        target.say, target.end = slowly, note  # type: ignore[method-assign]
        target.news.put(pages.news(News.WANTED, inner=inner, value=ABSENT))
        assert speaking.wait(10)
        sender.wait()

    assert [False] == overlaps


def addresses(batch: Batch) -> list[int]:
    return [run.address + n * pages.PAGE for run in batch.runs for n in range(run.pages)]


def test_nothing_is_committed_on_a_pager_that_never_answered() -> None:
    with talking() as (sender, target, failures):
        sender.freeze([])
        target.news.put(Unreachable("beta: no sign of life"))
        with pytest.raises(Unreachable):
            sender.await_attached()

    assert ["beta: no sign of life"] == [str(each) for each in failures]
    assert sender.has_failed


def test_a_pager_that_has_the_processes_is_attached() -> None:
    with talking() as (sender, target, _):
        target.news.put(pages.news(News.ATTACHED, value=1))
        sender.await_attached()


def test_a_target_that_takes_nothing_yet_is_waited_for() -> None:
    with talking() as (sender, target, _):
        sender.await_pager()

    assert [(Stage.EARLY, [])] == [(batch.stage, list(batch.runs)) for batch in target.batches]


def test_a_target_that_is_not_there_is_told() -> None:
    with talking() as (sender, target, _):
        target.say = lambda *_, **__: 0  # type: ignore[method-assign]  # it takes nothing
        target.news.put(Unreachable("beta: no sign of life"))
        with pytest.raises(Unreachable):
            sender.await_pager()


class Holding(Target):
    """Keeps what comes early, and says what it keeps; its line can be cut at any piece."""

    def __init__(self, held: dict[tuple[int, int], bytes], cut: int, *, taken: bool) -> None:
        super().__init__()
        self._held = held
        self._left = cut
        self._last_arrives = taken

    def say(
        self, piece: Buffer, packed: bytes | None = None, done: Callable[[], None] = lambda: None
    ) -> int:
        self._left -= 1
        if self._left < 0 and not self._last_arrives:
            raise Unreachable("cut before it arrived")
        batch = pages.decode(bytes(piece))
        self._keep(batch)
        if self._left < 0:
            raise Unreachable("cut before anybody heard that it arrived")
        return super().say(piece, packed, done)

    def _keep(self, batch: Batch) -> None:
        if [Kind.SAME] == [run.kind for run in batch.runs]:
            if any(inner == batch.inner for inner, _ in self._held):
                self.news.put(pages.news(News.HELD, inner=batch.inner))
            return
        for at, address in enumerate(addresses(batch)):
            content = batch.content[at * pages.PAGE : (at + 1) * pages.PAGE]
            self._held[batch.inner, address] = bytes(content)


def memory_of(pid: int) -> dict[int, bytes]:
    """Read all that is not zero."""
    found = {}
    with Memories.of([pid]) as memories:
        (memory,) = memories.by_inner.values()
        for each in (found for area in memory.areas() for found in memory.pages(area)):
            into = bytearray(each.length)
            memory.read([each], memoryview(into))
            for at in range(0, each.length, pages.PAGE):
                found[each.start + at] = bytes(into[at : at + pages.PAGE])
    return {address: page for address, page in found.items() if any(page)}


@pytest.mark.parametrize("taken", [True, False])
def test_cut_at_any_piece_a_round_goes_on_from_what_the_target_holds(pid: int, taken: bool) -> None:
    expected = memory_of(pid)
    for cut in (1, 2, 3, 5, MIB * 256 // pages.MAX_PAGES - 1):
        held: dict[tuple[int, int], bytes] = {}
        first = MemorySender(Holding(held, cut, taken=taken), m.PagesTaken)
        with pytest.raises(Unreachable):
            first.round([pid])
        first.close()
        arrived = len(held)

        line = Holding(held, 1 << 30, taken=True)
        second = MemorySender(line, m.PagesTaken, after=first)
        second.await_pager()
        again = second.round([pid])
        second.close()

        assert expected == {address: page for (_, address), page in held.items()}
        assert len(expected) - arrived <= again <= len(expected) - arrived + pages.MAX_PAGES


def test_what_the_target_does_not_hold_any_more_goes_again(pid: int) -> None:
    first = MemorySender(Holding({}, MIB // 2, taken=True), m.PagesTaken)
    with pytest.raises(Unreachable):
        first.round([pid])
    first.close()
    held: dict[tuple[int, int], bytes] = {}  # its host was started anew

    second = MemorySender(Holding(held, 1 << 30, taken=True), m.PagesTaken, after=first)
    second.await_pager()
    again = second.round([pid])
    second.close()

    assert again == len(held) == len(memory_of(pid))


def test_a_line_that_is_cut_before_the_freeze_concerns_nobody_else() -> None:
    with talking() as (sender, target, failures):
        target.news.put(Unreachable("beta: no sign of life"))
        with pytest.raises(Unreachable):
            sender.await_attached()
        with pytest.raises(Unreachable):
            sender.freeze([])

    assert [] == failures


class Satisfied(Target):
    """Has all memory, which it says after the first piece, and does not say what it takes."""

    def say(
        self, piece: Buffer, packed: bytes | None = None, done: Callable[[], None] = lambda: None
    ) -> int:
        self.batches.append(pages.decode(bytes(piece)))
        if len(self.batches) == 1:
            self.news.put(pages.news(News.COMPLETE))
        done()
        return len(piece)

    def end(self) -> None:
        pass


def test_what_is_ready_to_be_sent_does_not_keep_one_who_has_all_of_it_already(pid: int) -> None:
    target = Satisfied()
    sender = MemorySender(target, m.PagesTaken)
    target.news.put(pages.news(News.ATTACHED, value=1))
    sender.freeze([pid])
    sender.begin()

    taken = sender.wait()
    sender.close()

    assert m.PagesTaken() == taken
    assert len(target.batches) < MIB
