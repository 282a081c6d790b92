"""Which memory is hidden from CRIU, and what of it is told afterwards."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pycriu.images import magic, mm_pb2, vma_pb2

from pymigrate.checkpoint import hidden_memory
from pymigrate.checkpoint.hidden_memory import Hidden
from pymigrate.checkpoint.images import PAGE, Entry
from pymigrate.runtime.errors import BadArchive, DumpFailed
from pymigrate.runtime.memory import Area, Memory

MIB = 1 << 20
MAPS = """\
00400000-00800000 r-xp 00000000 08:02 173521 /bin/large
01000000-01200000 rw-p 00000000 00:00 0      [heap]
02000000-021ff000 rw-p 00000000 00:00 0
7f0000000000-7f0000400000 ---p 00000000 00:00 0
7f0001000000-7f0001400000 rw-s 00000000 00:00 0
7f0002000000-7f0002400000 rw-p 00000000 00:0f 77 /anon_hugepage (deleted)
7f0003000000-7f0003800000 rwxp 00000000 00:00 0 [anon:code]
7ffd00000000-7ffd00600000 rw-p 00000000 00:00 0 [stack]
"""
STATUS = "Name:\tx\nVmLck:\t{:8} kB\nVmPin:\t 1 kB\n"
HEAP = Area(0x01000000, 0x01200000, readable=True)
SHUT = Area(0x7F0000000000, 0x7F0000400000, readable=False)
CODE = Area(0x7F0003000000, 0x7F0003800000, readable=True, executable=True)
STACK = Area(0x7FFD00000000, 0x7FFD00600000, readable=True)


@pytest.mark.parametrize(
    ("locked", "chosen"),
    [
        (0, (HEAP, SHUT, CODE, STACK)),
        (4, (HEAP, SHUT, CODE, STACK)),
        (2048, (SHUT, CODE, STACK)),
        (4095, (SHUT, CODE, STACK)),
        (4096, (CODE, STACK)),
        (1 << 30, ()),
    ],
)
def test_what_is_large_private_and_surely_not_locked_is_hidden(
    locked: int, chosen: tuple[Area, ...]
) -> None:
    assert chosen == hidden_memory.qualifying(MAPS, STATUS.format(locked))


def test_nothing_is_hidden_of_what_does_not_say_what_is_locked() -> None:
    assert () == hidden_memory.qualifying(MAPS, "Name:\tx\nState:\tZ (zombie)\n")


def test_only_those_that_are_there_are_looked_at() -> None:
    with mmap.mmap(-1, 8 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        start = address(memory)
        (found,) = hidden_memory.look([4194304, os.getpid()])

    assert (os.getpid(), os.getpid()) == (found.pid, found.inner)
    assert any(area.start <= start and start + 8 * MIB <= area.end for area in found.areas)


def test_table_is_in_ascending_order() -> None:
    table = hidden_memory.table([Hidden(20, 2, (HEAP,)), Hidden(3, 1, (STACK, HEAP))])

    head, *rows = struct.iter_unpack("=3Q", table)
    assert (0x6E6564646968, 3, 0) == head
    assert [
        (3, HEAP.start, HEAP.end),
        (3, STACK.start, STACK.end),
        (20, HEAP.start, HEAP.end),
    ] == rows


PRIVATE, SHARED, FIXED, ANONYMOUS = 2, 1, 0x10, 0x20
LOCKED, HUGE, NORESERVE, DROPPABLE = 0x2000, 0x40000, 0x4000, 0x8
NUMBERS = (
    *("mm_start_code", "mm_end_code", "mm_start_data", "mm_end_data", "mm_start_stack"),
    *("mm_start_brk", "mm_brk", "mm_arg_start", "mm_arg_end", "mm_env_start", "mm_env_end"),
)
REGULAR, VDSO, VVAR, VSYSCALL = 1 << 9 | 1, 1 << 3, 1 << 12, 1 << 2


def mappings(flags: int, status: int = REGULAR, areas: tuple[Area, ...] = (HEAP, STACK)) -> bytes:
    """Write an image of mappings as CRIU does; the last one has these flags and this status."""
    kinds = [(PRIVATE | ANONYMOUS, REGULAR)] * (len(areas) - 1) + [(flags, status)]
    vmas = [
        vma_pb2.vma_entry(
            start=area.start, end=area.end, pgoff=0, shmid=0, prot=3, flags=kind[0],
            status=kind[1], fd=-1,
        )
        for area, kind in zip(areas, kinds, strict=True)
    ]  # fmt: skip
    numbers = dict.fromkeys(NUMBERS, 0)
    text = mm_pb2.mm_entry(vmas=vmas, exe_file_id=1, **numbers).SerializeToString()
    magics = struct.pack("<II", magic.by_name["IMG_COMMON"], magic.by_name["MM"])
    return magics + struct.pack("<I", len(text)) + bytes(text)


@pytest.mark.parametrize(
    ("flags", "status", "fits"),
    [
        (PRIVATE | ANONYMOUS, REGULAR, True),
        (PRIVATE | ANONYMOUS | NORESERVE | FIXED, REGULAR, True),
        (PRIVATE | ANONYMOUS | LOCKED, REGULAR, False),
        (PRIVATE | ANONYMOUS | HUGE, REGULAR, False),
        (ANONYMOUS | DROPPABLE, REGULAR, False),
        (SHARED | ANONYMOUS, REGULAR, False),
        (PRIVATE, REGULAR, False),
        (PRIVATE | ANONYMOUS, VDSO, False),
        (PRIVATE | ANONYMOUS, VVAR, False),
        (PRIVATE | ANONYMOUS, VSYSCALL, False),
    ],
)
def test_hidden_fits_if_criu_would_restore_it_lazily(
    tmp_path: Path, flags: int, status: int, fits: bool
) -> None:
    (tmp_path / "mm-7.img").write_bytes(mappings(flags, status))

    assert hidden_memory.fits([Hidden(70, 7, (HEAP,))], tmp_path)
    assert fits == hidden_memory.fits([Hidden(70, 7, (HEAP, STACK))], tmp_path)


def test_hidden_does_not_fit_what_is_no_mapping_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mm-7.img").write_bytes(mappings(PRIVATE | ANONYMOUS, areas=(HEAP,)))

    assert hidden_memory.fits([], tmp_path)
    assert not hidden_memory.fits([Hidden(70, 7, (STACK,))], tmp_path)
    half = Area(HEAP.start, HEAP.end - PAGE, readable=True)
    assert not hidden_memory.fits([Hidden(70, 7, (half,))], tmp_path)
    assert not hidden_memory.fits([Hidden(70, 8, (HEAP,))], tmp_path)
    (tmp_path / "mm-7.img").write_bytes(b"not CRIU's")
    with pytest.raises(BadArchive, match=r"mm-7\.img is no mm of CRIU's"):
        hidden_memory.fits([Hidden(70, 7, (HEAP,))], tmp_path)


def address(memory: mmap.mmap) -> int:
    view = ctypes.c_char.from_buffer(memory)
    return ctypes.addressof(view)


@pytest.fixture
def own() -> Iterator[tuple[Memory, Area]]:
    """Give an area of this process of which the pages 1, 2 and 5 are there."""
    with mmap.mmap(-1, 3 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for number in (1, 2, 5):
            memory[number * PAGE] = 1
        start = address(memory)
        with closing(Memory.open(os.getpid())) as opened:
            yield opened, Area(start, start + 3 * MIB, readable=True)


def test_pages_of_hidden_areas_stand_where_criu_would_have_put_them(
    own: tuple[Memory, Area],
) -> None:
    memory, area = own
    before = Entry(area.start - 3 * PAGE, 3, present=True, lazy=False)
    behind = Entry(area.end, 1, present=False, lazy=True)

    found = hidden_memory.revealed([before, behind], memory, (area,))

    assert [
        before,
        Entry(area.start + PAGE, 2, present=False, lazy=True),
        Entry(area.start + 5 * PAGE, 1, present=False, lazy=True),
        behind,
    ] == found


def test_area_of_which_criu_has_seen_a_page_is_criu_s(own: tuple[Memory, Area]) -> None:
    memory, area = own
    for entry in (
        Entry(area.start + PAGE, 2, present=False, lazy=True),
        Entry(area.start - PAGE, 4, present=False, lazy=True),
        Entry(area.end - PAGE, 4, present=True, lazy=False),
    ):
        assert [entry] == hidden_memory.revealed([entry], memory, (area,))


def test_what_has_ended_fails_the_dump_if_memory_of_it_was_hidden(
    own: tuple[Memory, Area], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, area = own
    entry = Entry(PAGE, 1, present=True, lazy=False)

    assert [entry] == hidden_memory.revealed([entry], None, ())
    with pytest.raises(DumpFailed, match="has ended"):
        hidden_memory.revealed([entry], None, (area,))
    monkeypatch.setattr(Memory, "areas", lambda _: [])
    with pytest.raises(DumpFailed, match="has ended"):
        hidden_memory.revealed([entry], memory, (area,))
