"""Where the pages of a process are: our own memory, as the kernel shows it."""

from __future__ import annotations

import mmap
import os

import numpy as np

from pymigrate.runtime.memory import PAGE, Area, Memory

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
