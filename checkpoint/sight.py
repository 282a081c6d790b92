"""What /proc shows of a running container, as plain values; ``scan.py`` judges them.

Nothing is frozen and nothing is touched: it is a look at something that moves. A process that ends
while we look is left out, a descriptor that was closed is not there.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pymigrate.checkpoint import preload
from pymigrate.checkpoint.proc_lines import (
    Mounted,
    NetlinkSocket,
    TcpSocket,
    parse_mount,
    parse_netlink,
    parse_tcp,
)
from pymigrate.checkpoint.requests import node_mounts
from pymigrate.runtime import mounts
from pymigrate.runtime.cgroups import Cgroup
from pymigrate.runtime.container import Container
from pymigrate.runtime.proc_links import gone_if_ended
from pymigrate.runtime.settings import Spec
from pymigrate.runtime.sockdiag import UnixSocket, unix_sockets

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_GONE = (FileNotFoundError, ProcessLookupError)
_ATTEMPTS = 8
_PF_EXITING = 0x4  # linux/sched.h
_WATCH = re.compile(r"inotify wd:\S+ ino:([0-9a-f]+) sdev:([0-9a-f]+)")


@dataclass(frozen=True)
class Watch:
    """One path that an inotify descriptor watches: its inode and the device of its file system."""

    inode: int
    device: int


@dataclass(frozen=True)
class Opened:
    """An open descriptor of a process; what only some have is empty for the others.

    ``node`` is the major and minor number of a device, ``bytes`` the disk that a file takes,
    ``names`` its links, ``mount`` the number of its mount, ``protocol`` a socket's, as the kernel
    calls it.
    """

    number: int
    link: str
    kind: str = "other"  # file, directory, character, block, fifo, socket, other
    inode: int = 0
    node: tuple[int, int] = (0, 0)
    bytes: int = 0
    names: int = 1
    path_only: bool = False
    mount: int = 0
    device: int = 0
    protocol: str = ""
    packets: bool = False  # a pipe that keeps writes apart
    interface: str = ""  # the TUN or TAP interface that it drives
    watches: tuple[Watch, ...] = ()


@dataclass(frozen=True)
class Process:
    """A process of the container, by the host's PID."""

    pid: int
    command: str
    parent: int = 1
    state: str = "S"
    tracer: int = 0
    user: int = 0
    own_group: bool = True  # it is in the container's cgroup, or in one below it
    namespaces: Mapping[str, str] = ()  # type: ignore[assignment]  # kind: its link in /proc
    opened: tuple[Opened, ...] = ()
    mapped: tuple[str, ...] = ()  # what its memory maps beyond plain files, each once

    @property
    def name(self) -> str:
        """How a person finds it."""
        return f"{self.command} (PID {self.pid})"


@dataclass(frozen=True)
class Sight:
    """A container as it was seen."""

    init: int
    processes: tuple[Process, ...]
    tcp: tuple[TcpSocket, ...] = ()
    netlink: tuple[NetlinkSocket, ...] = ()
    unix: tuple[UnixSocket, ...] = ()
    holders: Mapping[int, str] = field(default_factory=dict)  # of their ends outside, by inode
    mounts: tuple[Mounted, ...] = ()  # none where they are the host's own
    announced: tuple[str, ...] = ()  # the mount points that criu is told of: volumes
    hinted: frozenset[Watch] = frozenset()  # what CRIU finds by its own list of paths
    left_out: tuple[str, ...] = ()  # mount points that criu leaves out: the container's cgroup
    own_users: bool = False
    own_network: bool = True
    own_ipc: bool = True
    can_read_limits: bool = True  # of processes that are not root's
    memory_device: int = 0  # of memfd_create(2)'s files, and of what is shared without a name
    huge_pages: int = 0  # free on this host
    descendants: frozenset[int] = frozenset()  # of init, whose parents ended amid the look
    seconds: float = 0.0

    @property
    def family(self) -> frozenset[int]:
        """The processes that descend from init; CRIU writes down no others."""
        return family_of({self.init, *self.descendants}, self.processes)


@dataclass(frozen=True)
class Scene:
    """Where to look; ``announced`` are the mount points that criu is told of."""

    name: str
    init: int
    cgroup: Cgroup
    spec: Spec
    announced: tuple[str, ...]
    own_network: bool

    @classmethod
    def of(cls, container: Container) -> Scene | None:
        """Return that of a container; None if it has no processes."""
        init = container.state().init
        if init is None:
            return None
        return cls(
            container.name,
            init.pid,
            container.cgroup,
            container.spec,
            (
                *(volume.destination for volume in container.record.volumes),
                *(path for path, _ in node_mounts(container.spec)),
            ),
            container.record.network.is_own,
        )


def family_of(known: Collection[int], processes: Iterable[Process]) -> frozenset[int]:
    """Return those known, and the processes that descend from them."""
    parents = {process.pid: process.parent for process in processes}
    family = {*known}
    for pid in parents:
        line = [pid]
        while line[-1] in parents and line[-1] not in family:
            line.append(parents[line[-1]])
        if line[-1] in family:
            family.update(line)
    return frozenset(family)


def look(scene: Scene) -> Sight:
    """Look at a container."""
    begun = time.monotonic()
    inside = scene.cgroup.pids()
    strayed = strayed_children(scene.init, inside, scene.cgroup.pids)
    processes = tuple(
        found
        for pid in (*inside, *strayed)
        if (found := process(pid, own_group=pid not in strayed)) is not None
    )
    family = family_of({scene.init}, processes)
    doubtful = {
        each.pid: descends(each.pid, scene.init) for each in processes if each.pid not in family
    }
    processes = tuple(each for each in processes if doubtful.get(each.pid, False) is not None)
    watched = any(opened.watches for each in processes for opened in each.opened)
    root = Path(f"/proc/{scene.init}")
    unix = unix_sockets(scene.init) if _has_unix(processes) else ()
    return Sight(
        init=scene.init,
        processes=processes,
        tcp=tuple(
            socket
            for name in ("tcp", "tcp6")
            for line in _lines(root / "net" / name)[1:]
            if (socket := parse_tcp(line)) is not None
        ),
        netlink=tuple(
            listener
            for line in _lines(root / "net/netlink")[1:]
            if (listener := parse_netlink(line)) is not None
        ),
        unix=unix,
        holders=_holders(processes, unix),
        mounts=tuple(parse_mount(line) for line in _lines(root / "mountinfo"))
        if scene.spec.private("mount")
        else (),
        announced=scene.announced,
        left_out=mounts.cgroup_places(scene.spec),
        descendants=frozenset(pid for pid, does in doubtful.items() if does),
        hinted=frozenset(_hinted(root / "root")) if watched else frozenset(),
        own_users=scene.spec.private("user"),
        own_network=scene.own_network,
        own_ipc=scene.spec.private("ipc"),
        can_read_limits=not preload.needed() or preload.is_here(),
        memory_device=_memory_device(),
        huge_pages=sum(
            int(path.read_text(encoding="ascii"))
            for path in Path("/sys/kernel/mm/hugepages").glob("*/free_hugepages")
        ),
        seconds=time.monotonic() - begun,
    )


def descends(pid: int, init: int) -> bool | None:
    """Ask once more whether a process descends from init; None if it has ended.

    A parent that ended, or was born, since the first look is in nobody's list. Where parents go on
    ending while we ask, it descends: those of what came by exec stay.
    """
    for _ in range(_ATTEMPTS):
        at = pid
        try:
            while at not in (0, 1, init):
                at = int(_fields(f"/proc/{at}/status")["PPid"])
        except _GONE:
            if at == pid:
                return None
            continue  # its child has another parent by now
        return at == init
    return True


def is_below(path: str, place: str) -> bool:
    """Say whether a path is that of a place, or of something in it."""
    return path == place or path.startswith(f"{place.rstrip('/')}/")


def process(pid: int, *, own_group: bool) -> Process | None:
    """Look at one process; None if it is gone."""
    base = f"/proc/{pid}"
    try:
        fields = _fields(f"{base}/status")
        state = fields["State"][:1]
        namespaces = {}
        if state not in "ZX":
            namespaces = {kind: _link(f"{base}/ns/{kind}") for kind in NAMESPACES}
        return Process(
            pid=pid,
            command=fields["Name"],
            parent=int(fields["PPid"]),
            state=state,
            tracer=int(fields.get("TracerPid", "0")),
            user=int(fields["Uid"].split()[0]),
            own_group=own_group,
            namespaces=namespaces,
            opened=_all_opened(pid) if namespaces else (),
            mapped=_mapped(base) if namespaces else (),
        )
    except _GONE:
        return None


def _all_opened(pid: int) -> tuple[Opened, ...]:
    with gone_if_ended(pid):
        return tuple(_opened(f"/proc/{pid}"))


def _opened(base: str) -> Iterator[Opened]:
    for number in sorted(map(int, os.listdir(f"{base}/fd"))):  # noqa: PTH208
        try:
            opened = next(filter(None, (_descriptor(base, number) for _ in range(_ATTEMPTS))), None)
        except _GONE:
            continue  # closed while we looked
        if opened is not None:  # else it is another each time: what counts is seen by CRIU
            yield opened


def _descriptor(base: str, number: int) -> Opened | None:
    """Look at one; None if it was another in the end than in the beginning.

    A shell, say, has its own output again after each command: what is told of the one file is not
    to be taken for the other's.
    """
    path = f"{base}/fd/{number}"
    link = os.readlink(path)  # noqa: PTH115 - Path would normalise "pipe:[1]"
    if link.startswith("anon_inode:"):
        watches = _watches(f"{base}/fdinfo/{number}") if "inotify" in link else ()
        opened = Opened(number, link, watches=watches)
    else:
        opened = _of_file(base, number, link, os.stat(path))  # noqa: PTH116 - thousands of them
    return opened if os.readlink(path) == link else None  # noqa: PTH115


def _of_file(base: str, number: int, link: str, status: os.stat_result) -> Opened:
    mode = status.st_mode
    common = (number, link)
    if stat.S_ISSOCK(mode):
        # lsof's way: sockfs tells the protocol of a socket as an extended attribute.
        try:
            protocol = os.getxattr(f"{base}/fd/{number}", "system.sockprotoname")
        except OSError:  # a socket's file that was opened with O_PATH is none of sockfs
            return Opened(*common, path_only=True)
        return Opened(
            *common, "socket", status.st_ino, protocol=protocol.rstrip(b"\0").decode("ascii")
        )
    facts = _fields(f"{base}/fdinfo/{number}")
    flags = int(facts["flags"], 8)
    if stat.S_ISFIFO(mode):
        return Opened(*common, "fifo", status.st_ino, packets=bool(flags & os.O_DIRECT))
    kind = (
        "character"
        if stat.S_ISCHR(mode)
        else "block"
        if stat.S_ISBLK(mode)
        else "directory"
        if stat.S_ISDIR(mode)
        else "file"
    )
    return Opened(
        *common,
        kind,
        status.st_ino,
        (os.major(status.st_rdev), os.minor(status.st_rdev)),
        status.st_blocks * 512,
        status.st_nlink,
        device=status.st_dev,
        path_only=bool(flags & os.O_PATH),
        mount=int(facts["mnt_id"]),
        interface=facts.get("iff", ""),
    )


def _watches(fdinfo: str) -> tuple[Watch, ...]:
    text = Path(fdinfo).read_text(encoding="ascii", errors="replace")
    return tuple(
        # The kernel prints its own dev_t here: 12 bits of major, 20 of minor.
        Watch(int(inode, 16), os.makedev(int(device, 16) >> 20, int(device, 16) & 0xFFFFF))
        for inode, device in _WATCH.findall(text)
    )


def _mapped(base: str) -> tuple[str, ...]:
    """Name what a process maps that is no plain file: devices, anonymous inodes, huge pages."""
    names = dict.fromkeys(
        line.split(None, 5)[5].rstrip()
        for line in Path(f"{base}/maps").read_text(errors="surrogateescape").splitlines()
        if line.count(" ") >= 5 and len(line.split(None, 5)) == 6
    )
    special = ("/dev/", "/SYSV", "/secretmem", "/anon_hugepage", "/memfd:", "anon_inode:", "socket")
    return tuple(
        name for name in names if name.startswith(special) or name in ("[uprobes]", "/[aio]")
    )


def strayed_children(
    init: int, inside: tuple[int, ...], look_again: Callable[[], Iterable[int]]
) -> tuple[int, ...]:
    """List children of the container's processes that are not in its cgroup: zombies, too."""
    known, found = {*inside, init}, []
    line = [*known]
    while line:
        for child in _children(line.pop()):
            if child not in known:
                known.add(child)
                found.append(child)
                line.append(child)
    if not found:
        return ()
    # Those that were born since the first look are in the cgroup by now; or they have ended.
    now = set(look_again())
    return tuple(sorted(pid for pid in found if pid not in now and not _is_ending(pid)))


def _children(pid: int) -> Iterator[int]:
    """List the children of a process's threads, as far as it and they live."""
    with contextlib.suppress(*_GONE):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with contextlib.suppress(*_GONE):
                text = Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii")
                yield from (int(word) for word in text.split())


def _is_ending(pid: int) -> bool:
    """Say whether a process is about to end: it leaves its cgroup before it is a zombie."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except _GONE:
        return True
    words = line.rpartition(b")")[2].split()  # from the third field on, proc_pid_stat(5)
    return words[0] != b"Z" and bool(int(words[6]) & _PF_EXITING)


def _holders(processes: tuple[Process, ...], unix: tuple[UnixSocket, ...]) -> dict[int, str]:
    """Find who holds the other ends that no process of the container has: seldom any."""
    ours = {opened.inode for each in processes for opened in each.opened}
    wanted = {each.peer for each in unix if each.inode in ours and each.peer} - ours
    found: dict[int, str] = {}
    inside = {each.pid for each in processes}
    for path in Path("/proc").glob("[0-9]*/fd") if wanted else ():
        pid = int(path.parent.name)
        if pid in inside:
            continue
        try:
            for name in os.listdir(path):  # noqa: PTH208
                link = _link(f"{path}/{name}")
                if link.startswith("socket:[") and int(link[8:-1]) in wanted:
                    comm = path.with_name("comm").read_text(errors="replace").strip()
                    found[int(link[8:-1])] = f"{comm} (PID {pid})"
        except _GONE:
            continue
    return found


def _memory_device() -> int:
    own = os.memfd_create("pymigrate", os.MFD_CLOEXEC)
    try:
        return os.fstat(own).st_dev
    finally:
        os.close(own)


def _has_unix(processes: tuple[Process, ...]) -> bool:
    return any(opened.protocol.startswith("UNIX") for each in processes for opened in each.opened)


# Where CRIU looks for what is watched on a file system without file handles (CRIU: criu/irmap.c).
_HINTS = (
    "etc",
    "var/spool",
    "var/log",
    "usr/share/dbus-1/services",
    "usr/share/dbus-1/system-services",
    "var/lib/polkit-1/localauthority",
    "usr/share/polkit-1/actions",
    "lib/udev",
)


def _hinted(root: Path) -> Iterator[Watch]:
    """Yield what CRIU would find by its list; links are not followed out of the container."""
    yield from _watch(root / ".")
    for hint in _HINTS:
        place = root / hint
        parents = [root / Path(*Path(hint).parts[:depth]) for depth in range(1, 4)]
        if any(parent.is_symlink() for parent in parents):
            continue
        yield from _watch(place)
        for directory, directories, files in os.walk(place):
            for name in (*directories, *files):
                yield from _watch(Path(directory, name))


def _watch(path: Path) -> Iterator[Watch]:
    try:
        status = path.lstat()
    except OSError:
        return
    yield Watch(status.st_ino, status.st_dev)


def _fields(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123 - as above
        lines = (line.partition(":") for line in stream)
        return {name: value.strip() for name, _, value in lines}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except _GONE:
        return []  # the kernel has no such family


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - Path would normalise "net:[1]"
    except OSError:
        return ""  # a kernel without this kind
