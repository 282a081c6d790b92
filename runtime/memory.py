"""The memory of another process: where its pages are, and what is in them.

Only private anonymous memory is looked at: that is what grows, and what CRIU restores lazily
(CRIU: vma_entry_can_be_lazy in criu/include/vma.h). Everything else it writes into its images.

Kernel: proc_pid_maps(5), admin-guide/mm/pagemap.rst, process_vm_readv(2).
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import functools
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pymigrate.runtime import syscalls

PAGE = os.sysconf("SC_PAGE_SIZE")
_PIECES = 1024  # IOV_MAX

_RINGS = "/[aio]"
_KERNELS = ("[vvar", "[vdso", "[vsyscall", "[uprobes", "[sigpage")

# include/uapi/linux/fs.h, since Linux 6.7
_PAGEMAP_SCAN = 0xC0606610
_SCAN = struct.Struct("=12Q")
_WPALLOWED, _WRITTEN, _PRESENT, _SWAPPED, _PFNZERO = 1 << 0, 1 << 1, 1 << 3, 1 << 4, 1 << 5
_GUARD = 1 << 8  # since Linux 6.15; a page that nobody can read, and seems to be swapped out
_PROTECT, _ONLY_TRACKED = 1 << 0, 1 << 1  # PM_SCAN_WP_MATCHING, PM_SCAN_CHECK_WPASYNC
_REGIONS = 4096
_REGION = np.dtype([("start", "=u8"), ("end", "=u8"), ("categories", "=u8")])

Regions = np.ndarray[tuple[int, int], np.dtype[np.uint64]]
"""Many ranges: of each its start and its end."""

_ENTRIES = 1 << 16  # of /proc/PID/pagemap that are read at once: 512 KiB
_PAGEMAP_HERE = np.uint64(3 << 62)  # present or swapped
_PAGEMAP_GUARD = np.uint64(1 << 58)


@dataclass(frozen=True, slots=True)
class Range:
    """A run of addresses, in bytes; both are multiples of a page."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start


def regions_of(ranges: Iterable[Range]) -> Regions:
    """Make an array of ranges."""
    kind = np.dtype([("start", np.uint64), ("end", np.uint64)])
    found = np.fromiter(((each.start, each.end) for each in ranges), kind)
    return found.view(np.uint64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping that CRIU restores lazily; one that its own process may not read is read too."""

    start: int
    end: int
    readable: bool
    executable: bool = False

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start


def parse_maps(text: str) -> list[Area]:
    """Return the private anonymous mappings of a /proc/PID/maps."""
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        name = fields[5] if len(fields) == 6 else ""
        if fields[1][3] != "p" or fields[4] != "0" or name.startswith(_KERNELS):
            continue
        start, _, end = fields[0].partition("-")
        rights = fields[1]
        found.append(Area(int(start, 16), int(end, 16), rights[0] == "r", rights[2] == "x"))
    return found


def quiet(text: str) -> list[Area]:
    """Return those that nobody writes to while their process stands still and CRIU looks at it.

    Into code CRIU puts some of its own for a while (CRIU: compel_execute_syscall). And where there
    are rings of asynchronous I/O, the kernel may still read into any page: then there are none.
    """
    if _RINGS in text:
        return []
    return [area for area in parse_maps(text) if not area.executable]


def inner_pid(pid: int) -> int:
    """Return the PID that a process has in its innermost PID namespace, as CRIU's images say it.

    Raises ProcessLookupError if it is gone.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise ProcessLookupError(errno.ESRCH, "gone", str(pid)) from error
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


class Memory:
    """The memory of one process, of which CRIU's images speak as ``inner``. Close it in the end."""

    def __init__(self, pid: int, inner: int, pagemap: int, mem: int) -> None:
        """Use ``open``; owns both descriptors."""
        self.pid = pid
        self.inner = inner
        self._pagemap = pagemap
        self._mem = mem
        self.has_rings = False
        """Whether it had rings of asynchronous I/O when its areas were last asked for."""
        self._frozen_areas: list[Area] = []

    @classmethod
    def open(cls, pid: int) -> Self:
        """Open the memory of a process. Raises ProcessLookupError if it is gone."""
        inner = inner_pid(pid)
        try:
            pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(errno.ESRCH, "gone", str(pid)) from error
        try:
            mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(pagemap)
            raise
        return cls(pid, inner, pagemap, mem)

    def close(self) -> None:
        """Close both descriptors; may be repeated."""
        for fd in (self._pagemap, self._mem):
            if fd >= 0:
                os.close(fd)
        self._pagemap = self._mem = -1

    def areas(self) -> list[Area]:
        """Return the mappings, by address; none of a process that is gone."""
        return parse_maps(self._maps())

    def quiet_areas(self) -> list[Area]:
        """Return those that do not change while it stands still, also under a dump; see `quiet`."""
        return quiet(self._maps())

    def _maps(self) -> str:
        try:
            text = Path(f"/proc/{self.pid}/maps").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
        self.has_rings = _RINGS in text
        return text

    def pages(self, area: Area) -> Iterator[Range]:
        """Yield where an area has pages of its own, in memory or swapped out."""
        try:
            for regions in _scan(self._pagemap, area.start, area.end):
                yield from _ranges(regions)
        except OSError as error:
            if error.errno == errno.ESRCH:
                return
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            yield from _walk(self._pagemap, area.start, area.end)

    def written(self, area: Area, *, all_of_it: bool) -> Iterator[Range]:
        """Return what was written since this was last asked, and begin anew; the area is tracked.

        With ``all_of_it`` that is every page. Raises OSError EPERM if some of it is not tracked by
        any userfaultfd; see ``runtime/write_tracking.py``.
        """
        only = 0 if all_of_it else _WRITTEN
        flags = _PROTECT | _ONLY_TRACKED
        return _ranges(_all(_scan(self._pagemap, area.start, area.end, flags=flags, only=only)))

    def sorted_pages(self, area: Area) -> tuple[Regions, Iterator[Range]]:
        """Return where it has pages that were not written since, and all others."""
        told = _WPALLOWED | _WRITTEN
        regions = _all(_scan(self._pagemap, area.start, area.end, told=told))
        is_clean = regions["categories"] == _WPALLOWED
        clean = np.stack([regions[name][is_clean] for name in ("start", "end")], axis=1)
        return clean, _ranges(regions[~is_clean])

    def has_page(self, address: int) -> bool:
        """Say whether there is a page of its own at an address."""
        data = os.pread(self._pagemap, 8, address // PAGE * 8)
        entry = int.from_bytes(data, "little")
        return bool(entry & int(_PAGEMAP_HERE)) and not entry & int(_PAGEMAP_GUARD)

    def has_pages(self, address: int, count: int) -> list[bool]:
        """Say of so many pages from an address on whether there is one that a restore fills.

        None of what lies outside of `areas`: there its copy has, if it can be asked for at all, a
        mapping that has grown since. For a process that stands still: areas are looked up once.
        Raises ProcessLookupError if there is no memory, which is another thing than a page that is
        not there: the process has ended, or never had that address.
        """
        # Before the pages: of a process that ends meanwhile some areas may be missing.
        self._frozen_areas = self._frozen_areas or self.areas()
        data = os.pread(self._pagemap, count * 8, address // PAGE * 8)
        if not data:
            raise ProcessLookupError(errno.ESRCH, "no memory", f"{self.pid} at {address:#x}")
        entries = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
        here = [
            bool(entry & int(_PAGEMAP_HERE)) and not entry & int(_PAGEMAP_GUARD)
            for entry in entries
        ]
        here = [each and self._is_inside(address + at * PAGE) for at, each in enumerate(here)]
        return here + [False] * (count - len(here))

    def _is_inside(self, address: int) -> bool:
        at = bisect.bisect_right(self._frozen_areas, address, key=lambda area: area.start)
        return at > 0 and address < self._frozen_areas[at - 1].end

    def read(self, ranges: Sequence[Range], into: memoryview) -> int:
        """Read ranges one behind the other; return how many bytes came before one was gone."""
        pieces = [(each.start, each.length) for each in ranges]
        done = 0
        for at in range(0, len(pieces), _PIECES):
            some = pieces[at : at + _PIECES]
            wanted = sum(length for _, length in some)
            got = self._read_some(some, into[done : done + wanted])
            done += got
            if got < wanted:
                break
        return done

    def _read_some(self, pieces: list[tuple[int, int]], into: memoryview) -> int:
        wanted = len(into)
        try:
            got = syscalls.process_vm_readv(self.pid, into, pieces)
        except OSError as error:
            if error.errno == errno.ESRCH:
                return 0
            if error.errno not in (errno.EFAULT, errno.EPERM):
                raise
            got = 0
        if got == wanted:
            return got
        return self._read_by_force(pieces, into)

    def _read_by_force(self, pieces: list[tuple[int, int]], into: memoryview) -> int:
        """Read through /proc/PID/mem, which also shows what the process itself may not read."""
        done = 0
        for address, length in pieces:
            have = 0
            while have < length:
                try:
                    got = os.preadv(self._mem, [into[done : done + length - have]], address + have)
                except OSError as error:
                    if error.errno not in (errno.EIO, errno.EFAULT):
                        raise
                    return done
                if got == 0:
                    return done
                have += got
                done += got
        return done


@dataclass
class Memories:
    """The memory of all processes of a container, by their PIDs in it. Close it in the end."""

    by_inner: dict[int, Memory] = field(default_factory=dict)

    @classmethod
    def of(cls, pids: Sequence[int]) -> Self:
        """Open each that is still there; threads of one process share its memory."""
        found = cls()
        for pid in sorted(pids):
            try:
                memory = Memory.open(pid)
            except ProcessLookupError:
                continue
            found.by_inner[memory.inner] = memory
        return found

    def close(self) -> None:
        """Close each; may be repeated."""
        for memory in self.by_inner.values():
            memory.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


@functools.cache
def _left_out() -> int:
    """Return the categories of pages that are none, as far as this kernel knows them."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        asked = _SCAN.pack(_SCAN.size, *[0] * 7, _GUARD, _GUARD, 0, _GUARD)
        try:
            fcntl.ioctl(pagemap, _PAGEMAP_SCAN, asked)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return _PFNZERO
    return _PFNZERO | _GUARD


def _scan(
    pagemap: int, start: int, end: int, *, flags: int = 0, only: int = 0, told: int = _PFNZERO
) -> Iterator[np.ndarray[tuple[int], np.dtype[np.void]]]:
    """Ask by PAGEMAP_SCAN for regions with pages that have all of ``only``, and what of ``told``.

    Of what is present or swapped, but neither the page of zeros that reading alone maps nor one of
    MADV_GUARD_INSTALL. Raises OSError ENOTTY before Linux 6.7.
    """
    while start < end:
        regions = np.zeros(_REGIONS, _REGION)
        arguments = bytearray(
            _SCAN.pack(
                *(_SCAN.size, flags, start, end, 0),
                *(regions.ctypes.data, len(regions), 0),
                *(_left_out(), _left_out() | only, _PRESENT | _SWAPPED, told),
            )
        )
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, arguments)
        last = int(regions["end"][count - 1]) if count else start
        yield regions[:count]
        # Where the kernel's own buffer (of 512 regions) was full on the way, it leaves the end of
        # the walk at that place, although it went on: what it told must not be asked for again.
        start = max(last, _SCAN.unpack(arguments)[4])


def _all(found: Iterator[np.ndarray[tuple[int], np.dtype[np.void]]]) -> NDArray[np.void]:
    """Join regions: 24 bytes each, and a `Range` of each only while it is looked at."""
    return np.concatenate([*found, np.zeros(0, _REGION)])


def _ranges(regions: NDArray[np.void]) -> Iterator[Range]:
    for first in range(0, len(regions), _REGIONS):
        for start, end, _ in regions[first : first + _REGIONS].tolist():
            yield Range(start, end)


def _walk(pagemap: int, start: int, end: int) -> Iterator[Range]:
    """Read one entry of eight bytes for each page there could be."""
    for at in range(start, end, _ENTRIES * PAGE):
        count = min(_ENTRIES, (end - at) // PAGE)
        data = os.pread(pagemap, count * 8, at // PAGE * 8)
        entries = np.frombuffer(data, "<u8")
        here = ((entries & _PAGEMAP_HERE) != 0) & ((entries & _PAGEMAP_GUARD) == 0)
        for first, last in runs(here):
            yield Range(at + first * PAGE, at + last * PAGE)


def runs(flags: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    """Return the runs of true in an array: first, and one behind the last."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
