"""Both ends of what is waited for: the process that reads it, and who puts it in place."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from pymigrate.checkpoint.pager import Pager
from pymigrate.migrate.lane_process import Asked, LaneProcess
from pymigrate.migrate.wanted_receiver import MOST, WantedReceiver, check
from pymigrate.migrate.wanted_sender import WINDOW, alike, answer
from pymigrate.runtime.errors import MigrationError, ProtocolError, Unreachable
from pymigrate.runtime.memory import Memory
from pymigrate.transport import direct, loopback, pages, tls
from pymigrate.transport.conversation import Listener
from pymigrate.transport.frames import Frame
from pymigrate.transport.frames import Kind as Frames
from pymigrate.transport.lane import Lane, Way
from pymigrate.transport.link import Link
from pymigrate.transport.pages import PAGE, Batch, Kind, News, Run, Runs, Stage
from tests.unit.test_memory_sender import stopped

HERE = "127.0.0.1"
WAIT = 20.0
COUNT = 64
# Of every 32 pages 24 hold their number and the others were never touched; one cannot be read.
# Beside them there is a page of a file.
MEMORY = f"""
import ctypes, mmap
a = mmap.mmap(-1, {COUNT} * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for number in range({COUNT}):
    if number % 32 < 24:
        a[number * 4096] = number + 1
base = ctypes.addressof(ctypes.c_char.from_buffer(a))
hidden = ctypes.c_void_p(base + 40 * 4096)
assert not ctypes.CDLL(None).mprotect(hidden, ctypes.c_size_t(4096), 0)
with open("/proc/self/exe", "rb") as stream:
    file = mmap.mmap(stream.fileno(), 4096, mmap.MAP_PRIVATE)
assert file[0]
print(base, ctypes.addressof(ctypes.c_char.from_buffer(file)), flush=True)
input()
"""


@dataclass
class Held:
    """A process that stands still."""

    pid: int
    base: int
    file: int


@pytest.fixture(scope="module")
def held() -> Iterator[Held]:
    with stopped(MEMORY) as (pid, said):
        yield Held(pid, *map(int, said.split()))


@pytest.fixture
def memory(held: Held) -> Iterator[Memory]:
    with contextlib.closing(Memory.open(held.pid)) as memory:
        yield memory


def asked(memory: Memory, address: int) -> Batch:
    buffer = bytearray(WINDOW * PAGE + pages.TRAILER)
    length = answer(memory, address, buffer)
    return pages.decode(memoryview(buffer)[:length])


@pytest.mark.parametrize(
    ("number", "behind"), [(0, WINDOW), (3, WINDOW), (20, 4), (23, 1), (39, WINDOW), (40, WINDOW)]
)
def test_an_answer_has_the_page_and_what_is_behind_it(
    held: Held, memory: Memory, number: int, behind: int
) -> None:
    """Also what the process itself may not read, as number 40."""
    batch = asked(memory, held.base + number * PAGE)

    run = Run(held.base + number * PAGE, behind, Kind.CONTENT)
    assert (Stage.FINAL, memory.inner, [run]) == (batch.stage, batch.inner, [*batch.runs])
    first = [batch.content[at] for at in range(0, len(batch.content), PAGE)]
    assert [number + 1 + at for at in range(behind)] == first


def test_pages_that_nobody_touched_are_zeros(held: Held, memory: Memory) -> None:
    batch = asked(memory, held.base + 30 * PAGE)

    assert [Run(held.base + 30 * PAGE, 2, Kind.ZERO)] == [*batch.runs]


def test_what_a_restore_does_not_fill_is_zeros_too(held: Held, memory: Memory) -> None:
    """Whoever asks has no file there any more, but a mapping of its own that has grown."""
    batch = asked(memory, held.file)

    assert Kind.ZERO is batch.runs[0].kind


def test_a_process_that_has_ended_has_no_zeros() -> None:
    """Its memory reads as never touched: what it held would be lost without a word."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        memory = Memory.open(process.pid)
        process.kill()
        process.wait()
        with contextlib.closing(memory), pytest.raises(MigrationError, match="no memory"):
            asked(memory, 0x10000)


@pytest.mark.parametrize(("flags", "count"), [("x", 1), ("xx--", 2), ("-x", 1), ("---", 3)])
def test_what_is_alike_is_counted_from_the_first(flags: str, count: int) -> None:
    assert count == alike([each == "x" for each in flags])


@dataclass
class Scene:
    """The process, and the target's end of its lane."""

    process: LaneProcess
    lane: Lane
    undo: contextlib.ExitStack

    def ask(self, held: Held, number: int) -> Batch:
        word = pages.news(News.WANTED, inner=inner(held), value=held.base + number * PAGE)
        self.lane.say(Frames.EVENT, word)
        return pages.decode(self.lane.hear(Frames.DATA))


def inner(held: Held) -> int:
    with contextlib.closing(Memory.open(held.pid)) as memory:
        return memory.inner


Start = Callable[..., Scene]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as undo:

        def start(*, silence: float = WAIT) -> Scene:
            ours = tls.Identity.make()
            door = direct.open_door(HERE, ours.certificate, Link, peer="alpha", lane=True)
            undo.callback(door.close)
            where = (HERE, door.port)
            bulk = tls.connect(where, ours, door.certificate, peer="beta", timeout=WAIT)
            undo.callback(bulk.close)
            way = Way(where, ours, door.certificate, "beta", min(1.0, silence / 3), silence)
            process = LaneProcess.start()
            undo.callback(process.release)
            undo.callback(process.close)
            assert process.connect(way)
            link, channel = door.link(), door.lane()
            assert link is not None
            assert channel is not None
            undo.callback(link.close)
            return Scene(process, undo.enter_context(contextlib.closing(Lane(channel))), undo)

        yield start


def test_what_is_wanted_is_sent_as_soon_as_the_processes_are_known(
    start: Start, held: Held
) -> None:
    scene = start()
    word = pages.news(News.WANTED, inner=inner(held), value=held.base)
    scene.lane.say(Frames.EVENT, word)  # before that it has to wait
    scene.process.serve([held.pid])

    first = pages.decode(scene.lane.hear(Frames.DATA))
    again = scene.ask(held, 0)

    assert 1 == first.content[0]
    assert bytes(first.content) == bytes(again.content)
    told = scene.process.hear()
    assert isinstance(told, Asked)
    assert told.times >= 1
    assert told.bytes > PAGE


def test_a_process_that_there_is_not_is_an_error(start: Start, held: Held) -> None:
    scene = start()
    scene.process.serve([held.pid])
    scene.lane.say(Frames.EVENT, pages.news(News.WANTED, inner=1 << 30, value=held.base))

    with pytest.raises(MigrationError, match=f"a process {1 << 30}, there is none"):
        scene.process.hear()


@pytest.mark.parametrize(
    "word",
    [
        pages.news(News.COMPLETE),
        pages.news(News.WANTED, inner=1, value=1),
        pages.news(News.WANTED, inner=1, value=1 << 63),
        b"\xff" * 16,
        b"x",
    ],
)
def test_another_word_than_for_a_page_is_refused(start: Start, held: Held, word: bytes) -> None:
    scene = start()
    scene.process.serve([held.pid])
    scene.lane.say(Frames.EVENT, word)

    with pytest.raises((MigrationError, Unreachable), match=r"news of|said"):
        scene.process.hear()


def test_who_asks_without_end_and_takes_nothing_is_given_up(start: Start, held: Held) -> None:
    """It holds no more than the socket does, and the process is not kept by it."""
    scene = start(silence=0.5)
    scene.process.serve([held.pid])
    word = pages.news(News.WANTED, inner=inner(held), value=held.base) * 4096
    with contextlib.suppress(Unreachable):
        for _ in range(64):
            scene.lane._channel.send(Frame(Frames.EVENT, word), timeout=5.0)

    with pytest.raises(Unreachable, match=r"taken nothing|sign of life|lost"):
        hear_to_the_end(scene.process)


def hear_to_the_end(process: LaneProcess) -> None:
    while process.hear() is not None:
        pass


def test_a_lane_that_is_dropped_silently_is_noticed(start: Start) -> None:
    scene = start(silence=0.5)  # in which nobody here says anything

    with pytest.raises(Unreachable, match=r"no sign of life for 0\.5 s"):
        scene.process.hear()


def test_a_port_that_does_not_answer_is_no_way(caplog: pytest.LogCaptureFixture) -> None:
    ours = tls.Identity.make()
    with contextlib.closing(direct.open_door(HERE, ours.certificate, Link, peer="alpha")) as door:
        way = Way((HERE, door.port), ours, door.certificate, "beta")
    process = LaneProcess.start()
    with contextlib.ExitStack() as undo:
        undo.callback(process.release)
        undo.callback(process.close)
        assert not process.connect(way)

    assert "refused" in caplog.text


def test_a_process_that_is_killed_is_noticed_on_both_ends(start: Start) -> None:
    scene = start()
    os.kill(scene.process._pid, signal.SIGKILL)

    with pytest.raises(Unreachable, match="has ended"):
        scene.process.hear()
    with pytest.raises(Unreachable):
        scene.lane.hear(Frames.DATA)


def test_a_process_that_is_stopped_can_be_ended(start: Start) -> None:
    scene = start()
    os.kill(scene.process._pid, signal.SIGSTOP)

    scene.process.close()

    assert scene.process.hear() is None
    assert not Path(f"/proc/{scene.process._pid}").exists()


PARENT = """
import os, signal, sys
from pymigrate.migrate.lane_process import LaneProcess
from pymigrate.transport.lane import Way
process = LaneProcess.start()
assert process.connect(Way.unpack(sys.stdin.buffer.read()))
print(process._pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("is_busy", [False, True])
def test_it_ends_with_who_started_it(is_busy: bool, held: Held) -> None:
    ours = tls.Identity.make()
    with contextlib.ExitStack() as undo:
        door = direct.open_door(HERE, ours.certificate, Link, peer="alpha", lane=True)
        undo.callback(door.close)
        where = (HERE, door.port)
        undo.callback(tls.connect(where, ours, door.certificate, peer="b", timeout=WAIT).close)
        way = Way(where, ours, door.certificate, "beta")
        command = [sys.executable, "-I", "-c", PARENT]
        ended = subprocess.run(command, input=way.pack(), stdout=subprocess.PIPE, check=False)
        assert -signal.SIGKILL == ended.returncode
        link, channel = door.link(), door.lane()
        assert link is not None
        assert channel is not None
        undo.callback(link.close)
        lane = undo.enter_context(contextlib.closing(Lane(channel)))
        if is_busy:  # it may be about to answer, or be gone already
            with contextlib.suppress(Unreachable):
                lane.say(Frames.EVENT, pages.news(News.WANTED, inner=1, value=0))

        with pytest.raises(Unreachable):
            lane.hear(Frames.DATA)  # its end of the connection was the process's alone
        assert has_ended(int(ended.stdout))


def has_ended(pid: int) -> bool:
    """Wait for the end of a process that is nobody's child."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], WAIT)[0])
    finally:
        os.close(process)


# The target.


@dataclass
class Placed:
    """What a pager was asked to put in place."""

    answers: list[tuple[int, int, int, bytes | None]] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, inner: int, address: int, length: int, content: memoryview | None) -> None:
        with self.came:
            held = None if content is None else bytes(content)
            self.answers.append((inner, address, length, held))
            self.came.notify_all()


@dataclass
class Taking:
    """A receiver, the source's end of its lane, and the conversation that it belongs to."""

    receiver: WantedReceiver
    source: Lane
    placed: Placed
    listener: Listener


@pytest.fixture
def taking() -> Iterator[Taking]:
    (near, far), (bulk, _) = loopback.pair("alpha"), loopback.pair("alpha")
    placed = Placed()
    with Link(bulk) as link:
        listener = Listener(link)
        receiver = WantedReceiver(Lane(near), listener)
        receiver.start(cast("Pager", placed))
        yield Taking(receiver, Lane(far), placed, listener)
        receiver.close()


def said(*runs: Run, content: bytes = b"", stage: Stage = Stage.FINAL) -> bytes:
    return pages.encode(Batch(stage, 7, Runs.of(runs), memoryview(content)))


def test_what_comes_is_put_in_place_at_once(taking: Taking) -> None:
    taking.receiver.want(7, 0x5000)
    ((kind, inner_pid, address),) = pages.parse_news(taking.source.hear(Frames.EVENT))
    assert (News.WANTED, 7, 0x5000) == (kind, inner_pid, address)

    content = b"a" * PAGE + b"b" * PAGE
    taking.source.say(Frames.DATA, said(Run(0x5000, 2, Kind.CONTENT), content=content))
    taking.source.say(Frames.DATA, said(Run(0x9000, 3, Kind.ZERO)))

    with taking.placed.came:
        assert taking.placed.came.wait_for(lambda: len(taking.placed.answers) == 2, WAIT)
    expected = [(7, 0x5000, 2 * PAGE, content), (7, 0x9000, 3 * PAGE, None)]
    assert expected == taking.placed.answers


def test_what_is_in_place_is_told_once_and_not_too_much_of_it_at_once(
    taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pymigrate.migrate.wanted_receiver.TOLD", 2)
    for run in (Run(0x5000, 2, Kind.CONTENT), Run(0x9000, 3, Kind.ZERO), Run(0, 1, Kind.ZERO)):
        content = b"a" * PAGE * run.pages if run.kind is Kind.CONTENT else b""
        taking.source.say(Frames.DATA, said(run, content=content))
    with taking.placed.came:
        assert taking.placed.came.wait_for(lambda: len(taking.placed.answers) == 3, WAIT)
    taking.receiver.stop()  # which waits for the last one

    told = [pages.parse_news(taking.receiver.placed()) for _ in range(3)]
    assert [2, 1, 0] == [len(words) for words in told]
    assert [(7, (0x5000, 2)), (7, (0x9000, 3)), (7, (0, 1))] == [
        (inner, pages.placed_pages(value)) for words in told for _, inner, value in words
    ]


def test_nothing_is_put_in_place_once_all_is_there(taking: Taking) -> None:
    taking.receiver.stop()
    taking.source.say(Frames.DATA, said(Run(0x5000, 1, Kind.ZERO)))
    taking.source.say(Frames.DATA, b"no batch")  # heard after that, and ends it

    with pytest.raises(ProtocolError):
        taking.listener.hear()
    assert [] == taking.placed.answers


@pytest.mark.parametrize(
    "word",
    [
        said(Run(0, 1, Kind.CONTENT), content=b"x" * PAGE, stage=Stage.EARLY),
        said(Run(0, 1, Kind.SAME)),
        said(),
        said(Run(0, MOST + 1, Kind.ZERO)),
        said(Run(0, 1 << 31, Kind.ZERO)),
        said(Run(0, MOST + 1, Kind.CONTENT), content=b"x" * PAGE * (MOST + 1)),
    ],
    ids=["early", "same", "nothing", "zeros", "endless", "content"],
)
def test_what_is_no_answer_breaks_off_the_conversation(taking: Taking, word: bytes) -> None:
    with pytest.raises(ProtocolError):
        check(pages.decode(word))
    taking.source.say(Frames.DATA, word)

    with pytest.raises(ProtocolError):
        taking.listener.hear()
    assert [] == taking.placed.answers


def test_a_lane_that_is_cut_breaks_off_the_conversation(taking: Taking) -> None:
    taking.source.close()

    with pytest.raises(Unreachable, match="waited for"):
        taking.listener.hear()


def test_a_lane_that_we_close_breaks_off_nothing(taking: Taking) -> None:
    taking.receiver.close()

    taking.listener.tell(pages.news(News.COMPLETE))
