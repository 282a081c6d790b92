"""Writes to a running process's memory are known from the kernel, and the process notices nothing.

The process is one of ours that does what it is told, line by line, in Python.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pymigrate.checkpoint.memory_looks import MemoryLooks
from pymigrate.checkpoint.page_layout import WINDOW
from pymigrate.checkpoint.repository import Repository
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_writer import writing
from pymigrate.checkpoint.snapshot_memory import SnapshotMemory
from pymigrate.runtime import tracee, userfault
from pymigrate.runtime.memory import Memory, Range
from pymigrate.runtime.write_tracking import WriteTracking, is_here
from pymigrate.transport import pages
from pymigrate.transport.pages import Kind, News, Stage
from tests.unit.test_memory_sender import talking

PAGE = mmap.PAGESIZE
COUNT = 64

pytestmark = pytest.mark.skipif(not is_here(), reason="this kernel cannot track writes (6.7 can)")

PROGRAM = """
import ctypes, mmap, os, select, signal, sys, threading, time
PAGE, COUNT = mmap.PAGESIZE, 64
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
libc.mremap.argtypes = (ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_int, ctypes.c_void_p)
libc.munmap.argtypes = libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.mprotect.argtypes = libc.madvise.argtypes

def make(at=None):
    fixed = 0x10 if at else 0  # MAP_FIXED
    made = libc.mmap(at, COUNT * PAGE, 3, 0x22 | fixed, -1, 0)
    assert made != 2**64 - 1
    return made

def write(start, *pages):
    for page in pages:
        ctypes.memmove(start + page * PAGE, bytes([page + 1]) * PAGE, PAGE)

def run(text):
    return eval(text, globals())

for line in sys.stdin:
    print(run(line), flush=True)
"""


@dataclass
class Program:
    """The process, and what it is told."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Its PID."""
        return self.process.pid

    def begin(self, line: str) -> None:
        """Tell it to do something that takes its time."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Return what came of it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, line: str) -> str:
        """Tell it to do something, and return what came of it."""
        self.begin(line)
        return self.answer()

    def area(self, *pages: int) -> int:
        """Have it map some memory and write to some pages of it; return where."""
        start = int(self.do("make()"))
        self.write(start, *pages)
        return start

    def write(self, start: int, *pages: int) -> None:
        """Have it write to pages."""
        assert (
            self.do(f"write({start}, {', '.join(map(str, pages))})" if pages else "None") == "None"
        )


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a process to stand still for as long as a busy machine may need."""
    monkeypatch.setattr(tracee, "PATIENCE", 30.0)


@pytest.fixture
def program() -> Iterator[Program]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Program(process)
        process.kill()


@pytest.fixture
def memory(program: Program) -> Iterator[Memory]:
    program.do("0")
    memory = Memory.open(program.pid)
    yield memory
    memory.close()


@pytest.fixture
def tracking(program: Program) -> Iterator[WriteTracking]:
    program.do("0")
    with WriteTracking() as tracking:
        tracking.watch([program.pid])
        yield tracking


def numbers(ranges: list[Range], start: int) -> set[int]:
    """Return which pages these are, counted from a start; those of other areas are left out."""
    found = {(at - start) // PAGE for each in ranges for at in range(each.start, each.end, PAGE)}
    return found & set(range(COUNT))


def written(tracking: WriteTracking, memory: Memory, start: int) -> set[int]:
    """Return which of its pages were written, as a round of a move asks."""
    found: list[Range] = []
    for area in memory.areas():
        found += tracking.written(memory, area)
    return numbers(found, start)


def clean(tracking: WriteTracking, memory: Memory, start: int) -> tuple[set[int], set[int]]:
    """Return which were not written since, and which others there are, as the last look does."""
    unwritten: list[Range] = []
    others: list[Range] = []
    for area in memory.areas():
        regions, rest = tracking.sort(memory, area)
        unwritten += [Range(*pair) for pair in regions.tolist()]
        others += rest
    return numbers(unwritten, start), numbers(others, start)


def test_all_is_written_at_first_and_then_what_was_written(
    program: Program, memory: Memory, tracking: WriteTracking
) -> None:
    start = program.area(1, 2, 3, 40)
    assert {1, 2, 3, 40} == written(tracking, memory, start)
    assert set() == written(tracking, memory, start)
    program.write(start, 2, 50)
    assert {2, 50} == written(tracking, memory, start)
    program.write(start, 40, 63)
    assert ({1, 2, 3, 50}, {40, 63}) == clean(tracking, memory, start)
    assert {40, 63} == written(tracking, memory, start)  # to sort changes nothing


@pytest.mark.parametrize(
    "change",
    [
        "libc.mremap({start}, COUNT * PAGE, COUNT * PAGE, 3, {other})",  # moved there
        "libc.munmap({other}, COUNT * PAGE, 0), make({other}), write({other}, 1, 2)",
        "libc.mmap({other}, COUNT * PAGE, 3, 0x32, -1, 0), write({other}, 1, 2)",
        "libc.madvise({other}, COUNT * PAGE, 4), write({other}, 1, 2)",  # MADV_DONTNEED
    ],
)
def test_memory_that_is_another_is_never_taken_for_unwritten(
    program: Program, memory: Memory, tracking: WriteTracking, change: str
) -> None:
    start, other = program.area(1, 2), program.area(1, 2)
    assert {1, 2} == written(tracking, memory, other)
    assert ({1, 2}, set()) == clean(tracking, memory, other)

    program.do(change.format(start=start, other=other))

    assert (set(), {1, 2}) == clean(tracking, memory, other)
    assert {1, 2} == written(tracking, memory, other)
    program.write(other, 2)
    assert ({1}, {2}) == clean(tracking, memory, other)


def test_a_page_that_is_gone_is_not_there(
    program: Program, memory: Memory, tracking: WriteTracking
) -> None:
    start = program.area(*range(COUNT))
    written(tracking, memory, start)
    program.do(f"libc.madvise({start}, 4 * PAGE, 4)")
    assert (set(range(4, COUNT)), set()) == clean(tracking, memory, start)


def test_what_only_was_read_is_not_written(
    program: Program, memory: Memory, tracking: WriteTracking
) -> None:
    start = program.area(1)
    written(tracking, memory, start)
    assert program.do(f"ctypes.string_at({start}, COUNT * PAGE).count(2)") == str(PAGE)
    assert ({1}, set()) == clean(tracking, memory, start)


def test_what_the_kernel_writes_for_the_process_is_written(
    program: Program, memory: Memory, tracking: WriteTracking
) -> None:
    start = program.area(1, 2, 3)
    written(tracking, memory, start)
    place = f"(ctypes.c_char * 10).from_address({start + 2 * PAGE})"
    assert program.do(f"open('/dev/zero', 'rb').readinto({place})") == "10"
    assert ({1, 3}, {2}) == clean(tracking, memory, start)


def test_a_child_is_not_taken_for_its_parent(
    program: Program, memory: Memory, tracking: WriteTracking
) -> None:
    start = program.area(1, 2)
    written(tracking, memory, start)
    pid = int(program.do("os.fork() or select.select([], [], [])"))
    child = Memory.open(pid)
    try:
        assert (set(), {1, 2}) == clean(tracking, child, start)
        program.write(start, 2)
        assert ({1}, {2}) == clean(tracking, memory, start)
        tracking.watch([program.pid, pid])
        assert {1, 2} == written(tracking, child, start)
        assert ({1, 2}, set()) == clean(tracking, child, start)
    finally:
        child.close()
        program.do(f"os.kill({pid}, 9), os.wait()")


def test_another_program_of_the_same_process_counts_as_written(program: Program) -> None:
    """After execve() the descriptor is that of memory which is gone."""
    start = program.area(1, 2)
    with WriteTracking() as tracking:
        tracking.watch([program.pid])
        memory = Memory.open(program.pid)
        assert {1, 2} == written(tracking, memory, start)
        memory.close()
        program.begin(
            "os.execv(sys.executable, [*sys.orig_argv[:2], 'print(7)' + sys.orig_argv[2]])"
        )
        assert program.answer() == "7"
        start = program.area(1, 2)
        memory = Memory.open(program.pid)
        for _ in range(2):
            assert {1, 2} <= written(tracking, memory, start)
            unwritten, others = clean(tracking, memory, start)
            assert not unwritten
            assert {1, 2} <= others
        memory.close()


def test_who_is_not_watched_counts_as_written(program: Program, memory: Memory) -> None:
    start = program.area(1, 2)
    with WriteTracking() as tracking:
        assert {1, 2} == written(tracking, memory, start)
        assert (set(), {1, 2}) == clean(tracking, memory, start)


def test_memory_of_another_userfaultfd_counts_as_written(
    program: Program, memory: Memory, tracking: WriteTracking
) -> None:
    start = program.area(1, 2)
    other = tracee.userfaultfd_of(program.pid)
    try:
        userfault.agree(other, userfault.WP_ASYNC)
        userfault.track(other, start, COUNT * PAGE)
        for _ in range(2):
            assert {1, 2} == written(tracking, memory, start)
            assert (set(), {1, 2}) == clean(tracking, memory, start)
    finally:
        os.close(other)


SET_UP_RING = "libc.syscall(206, 8, ctypes.byref(ctypes.c_ulong()))"  # io_setup(2)
OPEN_DIRECTLY = "globals().update(FILE=os.open({path!r}, os.O_CREAT | os.O_DIRECT | os.O_RDWR))"
OPEN_PIPE = "globals().update(PIPE=os.pipe2(os.O_DIRECT))"  # its writes are kept apart, no more


@pytest.mark.parametrize(
    ("line", "is_trusted"),
    [("0", True), (OPEN_PIPE, True), (SET_UP_RING, False), (OPEN_DIRECTLY, False)],
)
@pytest.mark.parametrize("begun", [False, True])
def test_where_a_device_may_still_write_all_counts_as_written(
    program: Program, tmp_path: Path, line: str, is_trusted: bool, begun: bool
) -> None:
    line = line.format(path=str(tmp_path / "file"))
    start = program.area(1, 2)
    with WriteTracking() as tracking, closing(Memory.open(program.pid)) as memory:
        if not begun:
            program.do(line)
        tracking.watch([program.pid])
        assert {1, 2} == written(tracking, memory, start)
        if begun:
            program.do(line)
            tracking.mistrust()
        assert (({1, 2}, set()) if is_trusted else (set(), {1, 2})) == clean(
            tracking, memory, start
        )


# What the process sees of it


def descriptors(pid: int) -> list[str]:
    return sorted(each.name for each in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize(
    ("call", "result"),
    [
        # nanosleep(2): begun again for the rest. poll(2), read(2), futex(2): begun again.
        ("libc.usleep(300000)", "0"),
        ("os.read(PIPE[0], 9)", "b'x'"),
        ("libc.poll((ctypes.c_int * 2)(PIPE[0], 1), 1, 60000)", "1"),
        ("LOCK.acquire(timeout=0.3)", "False"),
        ("sum(range(3000000))", str(sum(range(3000000)))),
    ],
)
def test_a_system_call_goes_on(program: Program, call: str, result: str) -> None:
    program.do("globals().update(PIPE=os.pipe(), LOCK=threading.Lock())")
    program.do("LOCK.acquire()")
    before = descriptors(program.pid)
    program.begin(call)
    for _ in range(20):
        os.close(tracee.userfaultfd_of(program.pid))
    assert before == descriptors(program.pid)
    write = os.open(f"/proc/{program.pid}/fd/{max(map(int, before))}", os.O_WRONLY)
    os.write(write, b"x")
    os.close(write)
    assert result == program.answer()


def test_threads_stand_still_and_go_on(program: Program) -> None:
    program.do("globals().update(COUNTS=[0] * 20, RUNS=[1])")
    count = "exec('while RUNS: COUNTS[{}] += 1; time.sleep(0)')"
    for number in range(20):
        target = f"lambda: {count.format(number)}"
        program.do(f"threading.Thread(target={target}, daemon=True).start()")
    for _ in range(10):
        os.close(tracee.userfaultfd_of(program.pid))
    before = program.do("list(COUNTS)")
    behind = "[*iter(lambda: any(now == then for now, then in zip(COUNTS, {})), False)] is not None"
    assert program.do(behind.format(before)) == "True"  # each has counted on
    tracers = {
        line.split()[1]
        for each in Path(f"/proc/{program.pid}/task").iterdir()
        for line in (each / "status").read_text().splitlines()
        if line.startswith("TracerPid")
    }
    assert {"0"} == tracers
    assert program.do("RUNS.clear()") == "None"


def test_a_process_that_does_not_stop_goes_on(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a child of vfork() cannot be stopped; once it could, nobody holds it."""
    monkeypatch.setattr(tracee, "PATIENCE", 0.05)
    program.begin("libc.syscall(56, 0x4000 | 17, 0, 0, 0, 0)")  # clone(2), CLONE_VFORK | SIGCHLD
    assert program.answer() == "0"  # says the child
    with pytest.raises(tracee.Stubborn, match="does not stop"):
        tracee.userfaultfd_of(program.pid)
    program.begin("os._exit(0)")
    assert int(program.answer()) > 0
    assert program.do("1 + 1") == "2"


@pytest.mark.parametrize(
    ("at", "expected"), [(0x0FFF, False), (0x1000, True), (0x101F, True), (0x1020, False)]
)
def test_who_is_amid_a_restartable_sequence_is_known(at: int, expected: bool) -> None:
    """It is begun anew only by a kernel that finds it there: include/uapi/linux/rseq.h."""
    memory = bytearray(512)
    struct.pack_into("=2IQ", memory, 64, 0, 0, 256)  # struct rseq: where the sequence is told
    struct.pack_into("=2I3Q", memory, 256, 0, 0, 0x1000, 0x20, 0x2000)
    assert expected == tracee.is_amid_sequence(at, 64, io.BytesIO(memory))
    assert not tracee.is_amid_sequence(at, 0, io.BytesIO(memory))
    struct.pack_into("=2IQ", memory, 64, 0, 0, 0)
    assert not tracee.is_amid_sequence(at, 64, io.BytesIO(memory))


def test_a_sequence_is_begun_anew_however_often_it_is_interrupted(program: Program) -> None:
    """It counts, and counts from the start once more whenever it was interrupted."""
    count, times = 1 << 21, 1000
    # mov rax, descriptor; mov [rdi + 8], rax; start: xor eax, eax; loop: inc eax; cmp eax, count;
    # jne loop; end: mov qword [rdi + 8], 0; ret; signature; abort: inc dword [rsi]; jmp first
    prepare = "b'\\x48\\xb8' + struct.pack('=Q', TOLD) + b'\\x48\\x89\\x47\\x08'"
    body = f"b'\\x31\\xc0' + b'\\xff\\xc0' + b'\\x3d' + struct.pack('=I', {count}) + b'\\x75\\xf7'"
    finish = "b'\\x48\\xc7\\x47\\x08\\0\\0\\0\\0\\xc3'"
    program.do("globals().update(struct=__import__('struct'))")
    program.do("globals().update(CODE=libc.mmap(None, PAGE, 7, 0x22, -1, 0))")
    program.do("globals().update(TOLD=CODE + 1024)")
    program.do(f"globals().update(FIRST={prepare}, BODY={body}, LAST={finish})")
    program.do("globals().update(ABORT=len(FIRST) + len(BODY) + len(LAST) + 4)")
    program.do(
        "globals().update(BACK=b'\\xff\\x06\\xe9' + struct.pack('=i', -(ABORT + 7)),"
        " SIGNATURE=struct.pack('=I', 0x53053053))"
    )
    program.do("ctypes.memmove(CODE, FIRST + BODY + LAST + SIGNATURE + BACK, ABORT + 7)")
    program.do(
        "ctypes.memmove(TOLD, struct.pack('=2I3Q', 0, 0, CODE + len(FIRST), len(BODY),"
        " CODE + ABORT), 32)"
    )
    # glibc has registered one for each thread: where, tells __rseq_offset from the thread's own.
    program.do("globals().update(OFFSET=ctypes.c_ssize_t.in_dll(libc, '__rseq_offset').value)")
    program.do("globals().update(SELF=ctypes.c_void_p.from_address)")
    program.do("globals().update(BASE=ctypes.c_ulong())")
    assert program.do("libc.syscall(158, 0x1003, ctypes.byref(BASE))") == "0"  # ARCH_GET_FS
    program.do("globals().update(ABORTED=ctypes.c_uint())")
    run = "ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(CODE)"
    program.do(f"globals().update(RUN={run})")
    one = "RUN(BASE.value + OFFSET, ctypes.addressof(ABORTED))"
    program.begin(f"[{one} for _ in range({times})].count({count})")
    tries = stubborn = 0
    while tries < 100 or not stubborn:
        tries += 1
        try:
            os.close(tracee.userfaultfd_of(program.pid))
        except tracee.Stubborn:
            stubborn += 1
    assert program.answer() == str(times)
    assert int(program.do("ABORTED.value")) > 0


def test_a_stopped_process_stays_stopped(program: Program) -> None:
    program.do("0")
    os.kill(program.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(tracee.Stubborn):
        tracee.userfaultfd_of(program.pid)
    deadline = time.monotonic() + 30
    while "T (stopped)" not in Path(f"/proc/{program.pid}/status").read_text():
        assert time.monotonic() < deadline  # let go, it takes a moment to stop once more
    os.kill(program.pid, signal.SIGCONT)
    assert program.do("1 + 1") == "2"


def test_signals_are_neither_lost_nor_blocked(program: Program) -> None:
    program.do("globals().update(SEEN=[])")
    program.do("signal.signal(signal.SIGUSR1, lambda *_: SEEN.append(1))")
    for _ in range(20):
        os.kill(program.pid, signal.SIGUSR1)
        os.close(tracee.userfaultfd_of(program.pid))
        program.do("0")
    assert program.do("len(SEEN)") == "20"
    assert program.do("signal.pthread_sigmask(signal.SIG_BLOCK, [])") == "set()"


def test_a_filter_does_not_matter(program: Program) -> None:
    """As in containers, whose filters refuse userfaultfd(2)."""
    deny = (
        # load the number; if it is 323, EPERM; else allow: seccomp(2)
        "b''.join(__import__('struct').pack('=HBBI', *each) for each in "
        "((0x20, 0, 0, 0), (0x15, 0, 1, 323), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)))"
    )
    program.do(f"globals().update(CODE=ctypes.create_string_buffer({deny}))")
    program.do("globals().update(FILTER=(ctypes.c_uint64 * 2)(4, ctypes.addressof(CODE)))")
    assert program.do("libc.prctl(38, 1, 0, 0, 0), libc.prctl(22, 2, FILTER)") == "(0, 0)"
    assert program.do("libc.syscall(323, 1), ctypes.get_errno()") == f"(-1, {errno.EPERM})"
    os.close(tracee.userfaultfd_of(program.pid))
    assert program.do("libc.syscall(323, 1), ctypes.get_errno()") == f"(-1, {errno.EPERM})"


def test_who_is_gone_is_not_tracked() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with WriteTracking() as tracking:
        tracking.watch([process.pid])
        assert not tracking._descriptors


# A move of it


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """Note what is read of any process."""
    found: list[Range] = []
    read = Memory.read

    def noted(self: Memory, ranges: Sequence[Range], into: memoryview) -> int:
        found.extend(ranges)
        return read(self, ranges, into)

    monkeypatch.setattr(Memory, "read", noted)
    return found


@contextmanager
def standing(program: Program) -> Iterator[None]:
    """Have it stand still."""
    os.kill(program.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
    yield
    os.kill(program.pid, signal.SIGCONT)


def test_what_was_not_written_is_not_read_again(program: Program, reads: list[Range]) -> None:
    start = program.area(*range(40))
    with talking(ahead=True) as (sender, target, _):
        sender.round([program.pid])
        assert set(range(40)) == numbers(reads, start)
        program.write(start, 3, 50)
        reads.clear()
        sender.round([program.pid])
        assert {3, 50} == numbers(reads, start)

        program.do(f"ctypes.memset({start + 7 * PAGE}, 99, 1)")
        reads.clear()
        begun = len(target.batches)
        with standing(program):
            sender.freeze([program.pid])
            sender.begin()
            target.news.put(pages.news(News.ATTACHED, value=1))
            sender.wait()

    assert {7} == numbers(reads, start)
    final = target.batches[begun:]
    assert {Stage.FINAL} == {batch.stage for batch in final}
    told = {
        (run.address - start) // PAGE + at: run.kind
        for batch in final
        for run in batch.runs
        for at in range(run.pages)
        if start <= run.address < start + COUNT * PAGE
    }
    assert told == dict.fromkeys([*range(40), 50], Kind.SAME) | {7: Kind.CONTENT}
    assert not len(final[-1].runs)  # all was spoken of


def test_a_snapshot_reads_under_the_freeze_what_was_written_since_it_looked(
    program: Program, tmp_path: Path, reads: list[Range]
) -> None:
    window = WINDOW // PAGE
    start = program.area(*range(COUNT))
    written_to = (start // PAGE + 20) // window  # the page and its neighbours are read as one
    repository = Repository.open_or_make(Directory(tmp_path / "repository"))
    with (
        writing(repository) as writer,
        closing(SnapshotMemory(writer)) as store,
        closing(MemoryLooks(store)) as memory,
    ):
        memory.look([program.pid])
        assert set(range(COUNT)) == numbers(reads, start)
        program.do(f"ctypes.memset({start + 20 * PAGE}, 99, 1)")
        reads.clear()
        with standing(program):
            memory.look_still([program.pid], tmp_path)
            memory._beside.shutdown(wait=True)

    expected = {at for at in range(COUNT) if (start // PAGE + at) // window == written_to}
    assert expected == numbers(reads, start)
