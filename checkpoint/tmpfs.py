"""Which file systems in memory a container has that we carry, and not CRIU. Pure.

CRIU runs tar and gzip for each tmpfs, 5 to 10 ms under the freeze and 5 at the restore: for /dev,
/dev/shm, the masked directories and each --tmpfs. Announced as external mounts it leaves them to
us, and also what else is mounted of them (CRIU: mnt_is_external_bind in criu/mount.c). Their
contents go beside its images; see tmpfs_contents.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from pymigrate.runtime.values import asdict, dataclass

MOST = 32
"""So many are carried at most, as one message has descriptors; others are left to CRIU."""

# What tmpfs(5) shows of itself. Not inode64: it is what the kernel does anyhow, if it can.
_OPTION = re.compile(
    r"(size|nr_blocks|nr_inodes|mode|uid|gid)=[0-9]+[kmg]?|huge=[a-z_]+|inode32|noswap"
)
_UNSAID = frozenset(("rw", "inode64"))
_PLACE = re.compile(r"(/[^/\\\[\]:\s]+)+")  # as CRIU reads mnt[PLACE]:KEY, and not escaped
_SOURCE = re.compile(r"[^\\\s]{1,255}")


@dataclass(frozen=True)
class Tmpfs:
    """A tmpfs: a place where all of it is mounted, and what it is to be made of."""

    place: str
    source: str
    options: tuple[str, ...]

    def to_document(self) -> dict[str, object]:
        """Return it as JSON."""
        return {**asdict(self), "options": list(self.options)}

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Tmpfs:
        """Read it from anywhere; ValueError for what no kernel of ours has said."""
        place, source, options = (document[name] for name in ("place", "source", "options"))
        if not isinstance(place, str) or not _PLACE.fullmatch(place) or ".." in place.split("/"):
            raise ValueError(f"{place!r} is no place of a tmpfs")
        if not isinstance(source, str) or not _SOURCE.fullmatch(source):
            raise ValueError(f"{source!r} is no source of a tmpfs")
        if not isinstance(options, list) or not all(
            isinstance(each, str) and _OPTION.fullmatch(each) for each in options
        ):
            raise ValueError(f"{options!r} are no options of a tmpfs")
        return cls(place, source, tuple(options))


@dataclass(frozen=True)
class Found:
    """A tmpfs where it is mounted now: the number of that mount, as fdinfo of a file says it."""

    tmpfs: Tmpfs
    mount: int


@dataclass(frozen=True)
class _Mount:
    number: int
    device: str
    root: str
    place: str
    shared: bool
    filesystem: str
    source: str
    options: str


def find(mountinfo: str, left_out: Collection[str] = ()) -> tuple[Found, ...]:
    """Choose from /proc/PID/mountinfo what can be carried; the rest is CRIU's.

    That is what is mounted as a whole at a place of its own, is of this container alone, and has no
    options that we do not know. ``left_out`` are places that CRIU does not see, or not as ours,
    such as volumes; a file system that is also there is not carried.
    """
    by_device: defaultdict[str, list[_Mount]] = defaultdict(list)
    at: defaultdict[str, int] = defaultdict(int)
    for line in mountinfo.splitlines():
        mount = _parse(line)
        by_device[mount.device].append(mount)
        at[mount.place] += 1
    found = []
    for mounts in by_device.values():
        if any(
            each.filesystem != "tmpfs" or each.shared or each.place in left_out for each in mounts
        ):
            continue
        whole = (each for each in mounts if each.root == "/" and at[each.place] == 1)
        chosen = next((each for each in whole if _PLACE.fullmatch(each.place)), None)
        options = _options(mounts[0].options)
        if chosen is not None and options is not None and _SOURCE.fullmatch(chosen.source):
            found.append(Found(Tmpfs(chosen.place, chosen.source, options), chosen.number))
    return tuple(found[:MOST])


def _options(text: str) -> tuple[str, ...] | None:
    words = [word for word in text.split(",") if word not in _UNSAID]
    return tuple(words) if all(_OPTION.fullmatch(word) for word in words) else None


def _parse(line: str) -> _Mount:
    before, _, after = line.partition(" - ")
    words, kind = before.split(" "), after.split(" ")
    return _Mount(
        number=int(words[0]),
        device=words[2],
        root=words[3],
        place=words[4],
        shared=len(words) > 6,  # proc_pid_mountinfo(5): optional fields
        filesystem=kind[0],
        source=kind[1],
        options=kind[2],
    )
