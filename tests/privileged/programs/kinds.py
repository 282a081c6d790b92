"""A tree of processes with every kind of private memory, which know what must be in it.

Run in a container. For each SIGUSR1 it says in /said of how many pages the content is not right.
"""

import ctypes
import hashlib
import json
import mmap
import os
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

PAGE, MIB = 4096, 1 << 20
NORESERVE, GROWSDOWN, GUARD_INSTALL, PAGEOUT = 0x4000, 0x100, 102, 21
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
zeros = bytes(PAGE)


def page(seed: str | None) -> bytes:
    return zeros if seed is None else hashlib.sha256(seed.encode()).digest() * (PAGE // 32)


class Area:
    """Some pages, and the seed of what is in each; None are those that were never written to."""

    def __init__(self, size: int, flags: int = 0, at: int | None = None) -> None:
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags
        self.at = at or libc.mmap(None, ctypes.c_size_t(size), 3, kind, -1, 0)
        self.size, self.guarded = size, range(0)
        self.seeds: list[str | None] = [None] * (size // PAGE)
        self.closed = False

    def put(self, numbers: Iterable[int], name: str) -> "Area":
        for number in numbers:
            self.seeds[number] = f"{name} {number}"
            ctypes.memmove(self.at + number * PAGE, page(self.seeds[number]), PAGE)
        return self

    def madvise(self, advice: int, numbers: range) -> bool:
        at, size = self.at + numbers.start * PAGE, len(numbers) * PAGE
        return bool(libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), advice) == 0)

    def drop(self, numbers: range) -> None:
        assert self.madvise(mmap.MADV_DONTNEED, numbers)
        self.seeds[numbers.start : numbers.stop] = [None] * len(numbers)

    def protect(self, rights: int) -> None:
        assert 0 == libc.mprotect(ctypes.c_void_p(self.at), ctypes.c_size_t(self.size), rights)
        self.closed = rights == 0

    def bad(self) -> int:
        closed = self.closed
        if closed:
            self.protect(1)
        wrong = sum(
            ctypes.string_at(self.at + number * PAGE, PAGE) != page(seed)
            for number, seed in enumerate(self.seeds)
            if number not in self.guarded
        )
        if closed:
            self.protect(0)
        return wrong

    @property
    def all(self) -> range:
        return range(len(self.seeds))


def areas() -> list[Area]:
    plain = Area(24 * MIB)
    plain.put([number for number in plain.all if number % 7 != 3], "plain")
    hole = Area(6 * MIB)
    none = Area(5 * MIB).put(range(1280), "none")
    none.protect(0)
    read = Area(5 * MIB).put(range(1280), "read")
    read.protect(1)
    spare = Area(40 * MIB, NORESERVE).put(range(0, 10240, 9), "spare")
    locked = Area(4 * MIB).put(range(1024), "locked")
    assert 0 == libc.mlock(ctypes.c_void_p(locked.at), ctypes.c_size_t(locked.size))
    large = Area(12 * MIB)
    large.madvise(mmap.MADV_HUGEPAGE, large.all)
    large.put(large.all, "large")
    swapped = Area(6 * MIB).put(range(1536), "swapped")
    swapped.madvise(PAGEOUT, swapped.all)
    down = Area(5 * MIB, GROWSDOWN).put(range(1280), "down")
    guarded = Area(6 * MIB).put(range(1536), "guarded")
    if guarded.madvise(GUARD_INSTALL, range(100, 110)):  # since Linux 6.13
        guarded.guarded = range(100, 110)
    small = Area(MIB).put(range(256), "small")
    (top,) = re.findall(r"(\w+)-\w+ .*\[stack\]", Path("/proc/self/maps").read_text())
    begin = int(top, 16)
    stack = Area(6 * MIB, at=begin - 6 * MIB).put(reversed(range(1536)), "stack")
    return [plain, hole, none, read, spare, locked, large, swapped, down, guarded, small, stack]


def child(found: list[Area], name: str, changes: Callable[[], object]) -> Callable[[], list[int]]:
    """Fork; in the child change pages, and answer for them. Return how it is asked."""
    asked, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(asked[1])
        changes()
        below = (
            child(found, "grandchild", lambda: found[4].put(range(5), "deep"))
            if name == "child"
            else list
        )
        os.write(answers[1], b"[]\n")
        while os.read(asked[0], 1):
            os.write(answers[1], f"{[each.bad() for each in found] + below()}\n".encode())
        os._exit(0)
    answer = os.fdopen(answers[0])
    answer.readline()

    def ask() -> list[int]:
        os.write(asked[1], b"?")
        wrong: list[int] = json.loads(answer.readline())
        return wrong

    return ask


def changed(found: list[Area]) -> None:
    plain, hole, _, _, spare = found[:5]
    plain.put(range(0, 6144, 5), "child")
    plain.drop(range(64, 900))
    hole.put(range(7, 1536, 100), "child")
    spare.drop(range(10))


def say(text: str) -> None:
    with Path("/said").open("a") as file:
        print(text, file=file)


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
found = areas()
ask = child(found, "child", lambda: changed(found))
found[0].put(range(3, 6144, 11), "parent")
found[6].drop(range(700, 1500))
say("ready")
while True:
    signal.sigwait([signal.SIGUSR1])
    wrong = [each.bad() for each in found] + ask()
    say(f"looked {len(wrong)} {wrong if any(wrong) else 'good'}")
