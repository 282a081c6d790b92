"""What processes do to their memory before it is there: they never see a page that they gave up.

The kernel and the process are real, its userfaultfd is its own; CRIU is played by the words that it
says to a pager. Each page of the source has a number of its own, made from its address.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pymigrate.checkpoint.pager import SOCKET, Pager
from pymigrate.checkpoint.ready import PAGE, Content
from pymigrate.checkpoint.space_log import SpaceLog
from tests.unit.test_filling import Keeper

pytestmark = [pytest.mark.privileged, pytest.mark.requires("userfaultfd")]

INNER = 7
PATIENCE = 20.0
_FINISHED = 0x52535446
MOST = 16 * PAGE
"""Bytes that one answer has."""

COUNT = 256
"""Pages of which the process uses some, from its base on."""

# In pages from its base on, 0 to 32 is one mapping, 32 to 48 is another, and both are registered,
# as is a heap of 32 pages. Does what it is told by lines, and says what that returned.
PROGRAM = f"""
import ctypes, fcntl, json, os, socket, sys
from concurrent.futures import ThreadPoolExecutor
from pymigrate.runtime import syscalls, userfault

libc = ctypes.CDLL(None, use_errno=True)
libc.memcpy.restype = libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = ctypes.c_void_p
word, address = ctypes.c_size_t, ctypes.c_void_p
MAYMOVE, FIXED, DONTUNMAP = 1, 3, 7

def done(result):
    if result in (-1, (1 << 64) - 1):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def at(page):
    return base + page * {PAGE}

def mmap(start, end):
    done(libc.mmap(address(at(start)), word((end - start) * {PAGE}), 3, 0x32, -1, 0))

def munmap(start, end):
    done(libc.munmap(address(at(start)), word((end - start) * {PAGE})))

def mremap(start, end, pages, flags=0, to=0):
    sizes = word((end - start) * {PAGE}), word(pages * {PAGE})
    done(libc.mremap(address(at(start)), *sizes, flags, address(at(to))))

def madvise(start, end, advice=4):
    done(libc.madvise(address(at(start)), word((end - start) * {PAGE}), advice))

def brk(pages):
    return done(libc.sbrk(ctypes.c_ssize_t(pages * {PAGE})))

def seen(page):
    buffer = ctypes.create_string_buffer({PAGE})
    libc.memcpy(buffer, address(page), word({PAGE}))  # without the interpreter's lock
    (number,) = set(memoryview(buffer).cast("B").cast("Q"))
    return number

def look(start, end, origin=None):
    return [seen(at(page) if origin is None else origin + page * {PAGE})
            for page in range(start, end)]

def look_in_child(start, end):
    hears, tells = os.pipe()
    if os.fork() == 0:
        os.write(tells, json.dumps(look(start, end)).encode())
        os._exit(0)
    os.close(tells)
    with open(hears) as said:
        found = json.load(said)
    os.wait()
    return found

others = []

def thread(act):
    others.append(pool.submit(act))

def joined():
    return others.pop().result()

pool = ThreadPoolExecutor(1)
pool.submit(int).result()  # that its thread is there
fd = syscalls.userfaultfd(os.O_CLOEXEC)
userfault.agree(fd, userfault.NEEDED)

def register(start, pages):
    argument = userfault._REGISTER.pack(start, pages * {PAGE}, 1, 0)
    fcntl.ioctl(fd, userfault._UFFDIO_REGISTER, bytearray(argument))

base = done(libc.mmap(None, word({COUNT} * {PAGE}), 0, 0x22, -1, 0))
munmap(0, {COUNT})
mmap(0, 32)
mmap(32, 48)
register(at(0), 32)
register(at(32), 16)
heap = -(-brk(33) // {PAGE}) * {PAGE}
register(heap, 32)
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"x"], [fd])
os.close(fd)
print(json.dumps([base, heap]), flush=True)
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


@dataclass
class Process:
    """The process, and a copy of its userfaultfd."""

    process: subprocess.Popen[str]
    descriptor: int
    base: int
    heap: int

    def do(self, line: str) -> list[int] | None:
        """Have it do something; returns what it saw."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        assert said, f"it ended at {line}"
        found: list[int] | None = json.loads(said)
        return found


@contextmanager
def running() -> Iterator[Process]:
    ours, its = socket.socketpair()
    with (
        ours,
        its,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(its.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[its.fileno()],
        ) as process,
    ):
        try:
            assert process.stdout is not None
            where = json.loads(process.stdout.readline())
            _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
            yield Process(process, descriptor, *where)
        finally:
            process.kill()


@pytest.fixture
def process() -> Iterator[Process]:
    with running() as found:
        yield found


def content(address: int, pages: int) -> memoryview:
    """Return what the source has in pages that it has: each is full of its address."""
    every = (struct.pack("=Q", address + at * PAGE) * (PAGE // 8) for at in range(pages))
    return memoryview(b"".join(every))


@dataclass
class Source:
    """Answers what is waited for, in a thread, as a lane does: with the pages behind it."""

    directory: Path
    keeper: Keeper = field(default_factory=Keeper)
    wanted: queue.SimpleQueue[tuple[int, int] | None] = field(default_factory=queue.SimpleQueue)
    attached: threading.Event = field(default_factory=threading.Event)
    failed: threading.Event = field(default_factory=threading.Event)

    def pager(self) -> Pager:
        return Pager(
            self.directory,
            self.keeper,
            lambda inner, address: self.wanted.put((inner, address)),
            lambda _: self.attached.set(),
            room=1 << 26,
            failed=self.failed.set,
        )

    @contextmanager
    def answering(self, pager: Pager, process: Process) -> Iterator[None]:
        areas = [(start, start + pages * PAGE) for start, pages in everything(process)]

        def answer() -> None:
            while (wanted := self.wanted.get()) is not None:
                inner, address = wanted
                count = next((end - address for start, end in areas if start <= address < end), 0)
                length = min(count, MOST) or PAGE
                whole = content(address, length // PAGE) if count else None
                pager.answer(inner, address, length, whole)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            self.wanted.put(None)
            thread.join()

    def restore(self, process: Process) -> None:
        """Say what CRIU says once it has restored the process."""
        with socket.socket(socket.AF_UNIX) as criu:
            here = Path.cwd()
            os.chdir(self.directory)  # the path of a socket may only have 107 bytes
            try:
                criu.connect(SOCKET)
            finally:
                os.chdir(here)
            criu.sendall(struct.pack("=i", INNER))
            socket.send_fds(criu, [b"x"], [process.descriptor])
            os.close(process.descriptor)
            criu.sendall(struct.pack("=i", _FINISHED))
            assert self.attached.wait(PATIENCE)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.keeper.drop_kept()


def everything(process: Process) -> list[tuple[int, int]]:
    """Return all that the source has: an address and how many pages."""
    return [(process.base, 48), (process.heap, 32)]


def by_faults(_pager: Pager, _process: Process) -> None:
    """Nothing comes but what is waited for."""


def as_it_comes(pager: Pager, process: Process) -> None:
    for address, pages in everything(process):
        pager.fill(INNER, address, content(address, pages))


def from_what_lies_aside(pager: Pager, process: Process) -> None:
    for address, pages in everything(process):
        pager.put_aside(INNER, address, content(address, pages))
        pager.ready.settle(INNER, address, pages * PAGE, Content.ASIDE)


Bring = Callable[[Pager, Process], None]


@dataclass(frozen=True)
class Case:
    """What the process does, and which page of the source each page is then; None is zeros."""

    does: tuple[str, ...]
    sees: tuple[tuple[int, int, tuple[int | None, ...]], ...]

    def expected(self, process: Process) -> Iterator[tuple[str, list[int]]]:
        """Yield what it is to be asked, and what it must say."""
        for start, end, origins in self.sees:
            numbers = [0 if each is None else process.base + each * PAGE for each in origins]
            yield f"look({start}, {end})", numbers


ZEROS = (None,) * COUNT


def own(start: int, end: int) -> tuple[int | None, ...]:
    """Return the pages from one on to another."""
    return tuple(range(start, end))


CASES = {
    "nothing": Case((), ((0, 48, own(0, 48)),)),
    "a neighbour is unmapped and grown over": Case(
        ("munmap(16, 32)", "mremap(0, 16, 32)"), ((0, 32, own(0, 16) + ZEROS[:16]),)
    ),
    "a neighbour is mapped anew, unmapped and grown over": Case(
        ("mmap(16, 32)", "look(16, 32)", "munmap(16, 32)", "mremap(0, 16, 24)", "mmap(24, 32)"),
        ((0, 32, own(0, 16) + ZEROS[:16]),),
    ),
    "a mapping is moved onto another": Case(
        ("mremap(0, 16, 16, FIXED, 32)",), ((16, 48, own(16, 32) + own(0, 16)),)
    ),
    "a mapping is moved onto another and grows": Case(
        ("mremap(0, 16, 32, FIXED, 32)",),
        ((16, 64, own(16, 32) + own(0, 16) + ZEROS[:16]),),
    ),
    "a mapping is moved and shrinks": Case(
        ("mremap(0, 16, 8, FIXED, 36)",),
        ((16, 48, own(16, 36) + own(0, 8) + own(44, 48)),),
    ),
    "a mapping is moved and what was there grown over": Case(
        ("mremap(16, 32, 16, FIXED, 64)", "mremap(0, 16, 32)"),
        ((0, 32, own(0, 16) + ZEROS[:16]), (64, 80, own(16, 32))),
    ),
    "a mapping is moved away, and the place stays mapped": Case(
        ("mremap(0, 32, 32, DONTUNMAP, 64)",), ((0, 32, ZEROS[:32]), (64, 96, own(0, 32)))
    ),
    "memory is given back": Case(
        ("madvise(4, 12)",), ((0, 32, own(0, 4) + ZEROS[:8] + own(12, 32)),)
    ),
    "memory is given back for when it is needed elsewhere": Case(
        ("madvise(4, 12, 8)",), ((0, 32, own(0, 4) + ZEROS[:8] + own(12, 32)),)
    ),
    "memory is given back, and all of it moved and grown": Case(
        ("madvise(4, 12)", "mremap(0, 32, 48, MAYMOVE | FIXED, 64)"),
        ((64, 112, own(0, 4) + ZEROS[:8] + own(12, 32) + ZEROS[:16]),),
    ),
    "there and back": Case(
        ("mremap(0, 8, 8, FIXED, 64)", "mremap(16, 24, 8, FIXED, 128)",
         "mremap(64, 72, 8, FIXED, 16)", "mremap(128, 136, 8, FIXED, 0)"),
        ((0, 32, own(16, 24) + own(8, 16) + own(0, 8) + own(24, 32)),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bring", [by_faults, as_it_comes, from_what_lies_aside])
@pytest.mark.parametrize("name", CASES)
def test_nobody_sees_a_page_that_it_gave_up(
    source: Source, process: Process, name: str, bring: Bring
) -> None:
    case = CASES[name]
    pager = source.pager()
    try:
        source.restore(process)
        with source.answering(pager, process):
            for line in case.does:
                process.do(line)
            bring(pager, process)
            for line, expected in case.expected(process):
                assert expected == process.do(line)
                assert expected == process.do(line.replace("look", "look_in_child"))
            pager.finish()
            for line, expected in case.expected(process):
                assert expected == process.do(line)
    finally:
        pager.close()


@pytest.mark.parametrize("bring", [by_faults, as_it_comes])
@pytest.mark.parametrize("name", CASES)
def test_nor_does_the_next_pager_bring_one(
    source: Source, process: Process, name: str, bring: Bring
) -> None:
    """Nothing has come when the first one ends, which has heard of all that was done."""
    case = CASES[name]
    first = source.pager()
    try:
        source.restore(process)
        for line in case.does:
            if not line.startswith("look"):
                process.do(line)
    finally:
        first.close()

    pager = source.pager()
    try:
        with source.answering(pager, process):
            bring(pager, process)
            for line, expected in case.expected(process):
                assert expected == process.do(line)
                assert expected == process.do(line.replace("look", "look_in_child"))
    finally:
        pager.close()


class Killed(BaseException):
    """Ends the thread that hears, amid what it does."""


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.does])
def test_nor_where_the_first_is_killed_when_it_has_read_and_not_yet_followed(
    source: Source, process: Process, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process goes on with what it does, of which the second one hears the rest."""
    case = CASES[name]
    first = source.pager()
    *before, last = case.does
    with ThreadPoolExecutor(1) as pool:
        try:
            source.restore(process)
            for line in before:
                if not line.startswith("look"):
                    process.do(line)
            with monkeypatch.context() as patch:
                patch.setattr(SpaceLog, "follow", kill)
                doing = pool.submit(process.do, last)
                # What grows in place tells nobody.
                while not (source.failed.wait(0.01) or doing.done()):
                    pass
        finally:
            first.close()

        pager = source.pager()
        try:
            doing.result(PATIENCE)
            with source.answering(pager, process):
                as_it_comes(pager, process)
                for line, expected in case.expected(process):
                    assert expected == process.do(line)
        finally:
            pager.close()


def kill(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("bring", [by_faults, as_it_comes])
def test_a_heap_that_shrinks_and_grows_again_has_zeros(
    source: Source, process: Process, bring: Bring
) -> None:
    pager = source.pager()
    try:
        source.restore(process)
        with source.answering(pager, process):
            process.do("brk(-17)")
            process.do("brk(33)")
            bring(pager, process)
            left = [process.heap + at * PAGE for at in range(15)]
            assert left == process.do("look(0, 15, heap)")
            assert [0] * 30 == process.do("look(17, 47, heap)")
    finally:
        pager.close()


def test_who_waits_for_what_another_thread_gives_up_is_not_left_waiting(
    source: Source, process: Process
) -> None:
    """The answer to what it asked for belongs nowhere any more."""
    pager = source.pager()
    try:
        source.restore(process)
        process.do("thread(lambda: look(20, 21))")
        assert (INNER, process.base + 20 * PAGE) == source.wanted.get(timeout=PATIENCE)
        process.do("madvise(16, 32)")
        assert [0] == process.do("joined()")
    finally:
        pager.close()
