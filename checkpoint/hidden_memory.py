"""Which memory CRIU is not shown in a lazy dump, for nobody would ever read it from there.

What is private and anonymous we read out of the frozen processes ourselves, and a restore registers
it with userfaultfd by its kind, as CRIU's image of the mappings says it (CRIU: vma_remap in
criu/pie/restorer.c), not by its pages. Still CRIU would ask where these pages are, and put each one
into a pipe, while the container stands still. `preload` answers CRIU that there are none.

::

    look      which areas, once the processes stand still      ─┐ of what `Memory.areas` lists,
    table     the same as the library reads it                  │ which is all that we read
    fits      CRIU's images say that all of them come lazily   ─┘ else it dumps once more, all shown
    revealed  CRIU's pagemap and the pages of these areas: what it would have been

An area is CRIU's or ours, never both: where CRIU has found a page all the same, it has found all.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pymigrate.checkpoint import images
from pymigrate.checkpoint.images import PAGE, Entry
from pymigrate.runtime.errors import DumpFailed
from pymigrate.runtime.memory import Area, Memory, inner_pid, parse_maps

LEAST = 2 << 20
"""Bytes from which on an area is worth it; below, CRIU asks for the pages of several at once."""

_MAGIC = 0x6E6564646968
_ROW = struct.Struct("=3Q")
_LOCKED = re.compile(r"^VmLck:\s*([0-9]+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Hidden:
    """Areas of one process, by address; in CRIU's images it is ``inner``."""

    pid: int
    inner: int
    areas: tuple[Area, ...]


def qualifying(maps: str, status: str) -> tuple[Area, ...]:
    """Choose areas of a process by the texts of its /proc/PID/maps and status.

    What is locked in memory CRIU restores before anything runs. An area is locked as a whole or not
    at all, and its whole size counts as locked (kernel: mlock_fixup() in mm/mlock.c): so one that
    is larger than all that is locked is not.
    """
    locked = _LOCKED.search(status)
    if locked is None:
        return ()
    least = max(LEAST, int(locked[1]) * 1024 + 1)
    return tuple(area for area in parse_maps(maps) if area.end - area.start >= least)


def look(pids: Iterable[int]) -> tuple[Hidden, ...]:
    """Choose areas of processes that stand still; none of one that is gone."""
    found = []
    for pid in sorted(pids):
        try:
            areas = qualifying(_read(pid, "maps"), _read(pid, "status"))
            if areas:
                found.append(Hidden(pid, inner_pid(pid), areas))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return tuple(found)


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")


def table(hidden: Sequence[Hidden]) -> bytes:
    """Write a table as the library reads it: a head, and a row for each area in ascending order."""
    rows = sorted((each.pid, area.start, area.end) for each in hidden for area in each.areas)
    return b"".join(_ROW.pack(*row) for row in ((_MAGIC, len(rows), 0), *rows))


def fits(hidden: Sequence[Hidden], directory: Path) -> bool:
    """Say whether CRIU's images of a dump let all these areas come later, each as one mapping.

    What does not is a mapping of a kind that /proc/PID/maps does not tell apart, such as one that
    may be dropped (MAP_DROPPABLE). Raises BadArchive for what is no image of CRIU's.
    """
    for each in hidden:
        path = directory / f"mm-{each.inner}.img"
        if not path.exists():
            return False
        lazy = images.lazy_mappings(path.read_bytes(), path.name)
        if not all((area.start, area.end) in lazy for area in each.areas):
            return False
    return True


def revealed(entries: Sequence[Entry], memory: Memory | None, areas: Sequence[Area]) -> list[Entry]:
    """Add the pages of hidden areas of a process to the entries of CRIU's pagemap, by address.

    Raises DumpFailed if it is gone: it stood still, but can have been killed.
    """
    if not areas:
        return list(entries)
    if memory is None:
        raise DumpFailed("a process whose memory belongs into the dump has ended")
    starts = [entry.address for entry in entries]
    own: list[Entry] = []
    for area in areas:
        at = bisect.bisect_left(starts, area.end)
        if at and entries[at - 1].address + entries[at - 1].pages * PAGE > area.start:
            continue  # CRIU was shown it: the library does not know how this CRIU asks
        own += (
            Entry(each.start, each.length // PAGE, present=False, lazy=True)
            for each in memory.pages(area)
        )
    # Asked last: of what had ended meanwhile no page was there any more.
    if not memory.areas():
        raise DumpFailed("a process whose memory belongs into the dump has ended")
    return sorted([*entries, *own], key=lambda entry: entry.address)
