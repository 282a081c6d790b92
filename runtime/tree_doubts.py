"""Where a file's times do not tell whether it changed.

A file's change time (ctime) is set when a write begins or when a page of a shared mapping is first
dirtied, from a clock that ticks a few hundred times a second. So content that was read may be
older than the file although their ctimes are the same:

* the write came within the same tick: `settled` is false for what changed shortly before a round;
* the write had begun before the round, or the page was dirty before it (mmap(2): "st_ctime and
  st_mtime for a file mapped with PROT_WRITE and MAP_SHARED will be updated after a write to the
  mapped region, and before a subsequent msync(2)"): `written` lists what was open for writing or
  mapped when the round began. What is opened or mapped later changes the ctime after that;
* the file system does not keep the rule: tmpfs does not notice a write to a page that the
  mapping had read before. Only those in `_TELLS` are known to keep it.

What is in doubt is compared by its content.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pymigrate.runtime.tree_index import Status

TICK_NS = 20_000_000
"""More than a tick of the clock that files are stamped with: 10 ms at the slowest (CONFIG_HZ)."""
_COARSE_NS = 2_100_000_000
"""For file systems that keep whole seconds (old ext4, with inodes of 128 bytes) or less."""
# Their page_mkwrite sets the times when a shared mapping dirties a clean page, and a page that was
# written back is clean again (fs/ext4/inode.c, fs/xfs/xfs_file.c, fs/btrfs/file.c, fs/f2fs/file.c).
# The files of an overlay are those of its upper file system.
_TELLS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})

Stamp = tuple[int, int]
"""Modification and change time of a file. An overlay shows its files under other inode numbers
than its upper directory has them, and names are not to be trusted; the times are the same."""


def settled(status: Status, began_ns: int) -> bool:
    """Return whether any later change gives the file another ctime; ``began_ns`` is the round's."""
    coarse = status.ctime_ns % 1_000_000 == 0
    return status.ctime_ns < began_ns - (_COARSE_NS if coarse else TICK_NS)


def stamp(status: Status) -> Stamp:
    """Return what `written` knows files by."""
    return status.mtime_ns, status.ctime_ns


def times_tell(directory: int) -> bool:
    """Return whether the file system of an open directory sets ctimes on writes to mappings."""
    return _file_system(directory) in _TELLS


def _file_system(descriptor: int) -> str:
    """Return the type of the file system, "" if it is mounted where we cannot see it."""
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    mount = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[0] == mount:
            return fields[fields.index("-") + 1]
    return ""


def written(pids: Sequence[int]) -> frozenset[Stamp] | None:
    """Return the files that processes have open for writing or mapped shared, by their times.

    A mapping counts whether it may be written now or not: pages stay dirty when it is protected.
    None if the kernel does not let us see all of that: then every file is in doubt.
    """
    found: set[Stamp] = set()
    for pid in pids:
        process = Path("/proc", str(pid))
        try:
            opened = list((process / "fd").iterdir())
            if not opened and len(list((process / "task").iterdir())) > 1:
                return None  # its first thread has ended, and only that one shows mappings
            found.update(_stamps(filter(_for_writing, opened)))
            found.update(_stamps(_mapped(process)))
        except PermissionError:
            return None
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended: what it began has ended too
    return frozenset(found)


def _stamps(paths: Iterable[Path]) -> Iterator[Stamp]:
    for path in paths:
        try:
            status = path.stat()
        except (FileNotFoundError, ProcessLookupError):
            continue  # closed meanwhile
        if stat.S_ISREG(status.st_mode):
            yield status.st_mtime_ns, status.st_ctime_ns


def _for_writing(descriptor: Path) -> bool:
    try:
        return bool(descriptor.lstat().st_mode & stat.S_IWUSR)  # proc_pid_fd(5)
    except FileNotFoundError:
        return False


def _mapped(process: Path) -> Iterator[Path]:
    with (process / "maps").open("rb") as maps:
        for line in maps:
            addresses, rights, _, _, inode = line.split(None, 5)[:5]
            if rights[3:4] == b"s" and inode != b"0":
                # The one file fills addresses up with zeros, the other's names have none.
                start, end = (int(each, 16) for each in addresses.split(b"-"))
                yield process / "map_files" / f"{start:x}-{end:x}"
