"""Where the pages of a process are: our own memory, as the kernel shows it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from pymigrate.runtime import memory as memory_module
from pymigrate.runtime.memory import PAGE, Area, Memory, Range, parse_maps, quiet

PAGES = 9000  # more regions than one question may be answered by, and more than fit the kernel's


def test_scattered_pages_are_each_told_once_and_in_order() -> None:
    with mmap.mmap(-1, 2 * PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as scattered:
        scattered.madvise(mmap.MADV_NOHUGEPAGE)
        start = np.frombuffer(scattered, np.uint8).ctypes.data
        for number in range(PAGES):
            scattered[2 * number * PAGE] = 1
        memory = Memory.open(os.getpid())

        found = [*memory.pages(Area(start, start + 2 * PAGES * PAGE, readable=True))]

        memory.close()
    expected = [start + 2 * number * PAGE for number in range(PAGES)]
    assert expected == [each.start for each in found]
    assert all(each.length == PAGE for each in found)


GUARD_INSTALL = 102


@pytest.mark.parametrize("scans", [True, False])
def test_guard_pages_are_no_pages(monkeypatch: pytest.MonkeyPatch, scans: bool) -> None:
    if not scans:
        # As a kernel before 6.7 does. From 6.15 on both ways tell guards from what is swapped out.
        monkeypatch.setattr(memory_module, "_scan", not_here)
    with mmap.mmap(-1, 8 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as some:
        some[:] = b"x" * 8 * PAGE
        start = np.frombuffer(some, np.uint8).ctypes.data
        try:
            some.madvise(GUARD_INSTALL, 2 * PAGE, PAGE)
        except OSError:
            pytest.skip("this kernel has no guard pages")
        with closing(Memory.open(os.getpid())) as memory:
            found = [*memory.pages(Area(start, start + 8 * PAGE, readable=True))]
            there = [memory.has_page(start + number * PAGE) for number in range(4)]

    assert [Range(start, start + 2 * PAGE), Range(start + 3 * PAGE, start + 8 * PAGE)] == found
    assert [True, True, False, True] == there


def not_here(*_: int) -> Iterator[Range]:
    raise OSError(errno.ENOTTY, "no such ioctl")


MAPS = """\
00400000-00452000 r-xp 00000000 08:02 173521 /bin/true
01000000-01021000 rw-p 00000000 00:00 0      [heap]
7f0000000000-7f0000010000 rwxp 00000000 00:00 0
7f0000020000-7f0000030000 ---p 00000000 00:00 0
7f0000040000-7f0000050000 rw-s 00000000 00:00 0
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
7ffd00100000-7ffd00102000 r-xp 00000000 00:00 0 [vdso]
"""
RING = "7f0000060000-7f0000062000 rw-s 00000000 00:11 9 /[aio] (deleted)\n"


def test_memory_is_quiet_where_there_is_no_code_and_no_asynchronous_io() -> None:
    heap = Area(0x01000000, 0x01021000, readable=True)
    code = Area(0x7F0000000000, 0x7F0000010000, readable=True, executable=True)
    shut = Area(0x7F0000020000, 0x7F0000030000, readable=False)
    stack = Area(0x7FFD00000000, 0x7FFD00021000, readable=True)

    assert [heap, code, shut, stack] == parse_maps(MAPS)
    assert [heap, shut, stack] == quiet(MAPS)
    assert [] == quiet(MAPS + RING)
