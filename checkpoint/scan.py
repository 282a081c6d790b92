"""Can this container be written down? What CRIU would stumble over, found before the freeze. Pure.

Each rule is what CRIU 4.2.1 was seen to do with a real program on Linux 6.18 (tests/privileged/
scan). What it can write down is no finding, however odd it looks: nested mount and network
namespaces, unlinked files, file locks, pidfds, stopped and traced-before processes, leases.

A look is of one moment: no finding is no promise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from pymigrate.checkpoint import scan_sockets, sight
from pymigrate.checkpoint.findings import Obstacle, Severity, held
from pymigrate.checkpoint.proc_lines import Mounted
from pymigrate.checkpoint.requests import GHOST_LIMIT
from pymigrate.checkpoint.sight import Opened, Process, Scene, Sight
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import DumpFailed, UsageError

MIB = 1 << 20
_MEMORY_DEVICES, _MISC, _TTY, _TTY_AUX = 1, 10, 4, 5  # Documentation/admin-guide/devices.txt
_TUN, _AUTOFS = 200, 235
_CONSOLES = 63
_SERIAL = (188, 204)
_PTYS = range(128, 144)
_UNIQUE = ("cgroup", "ipc", "pid", "time", "user", "uts")
"""The kinds of namespaces of which CRIU takes one a container."""

# Anonymous files that CRIU writes down (CRIU: criu/files.c, dump_one_file).
_ANONYMOUS = ("eventpoll", "eventfd", "signalfd", "timerfd", "inotify", "fanotify", "pidfd")
# File systems that CRIU mounts again (CRIU: criu/filesystems.c), but for fuse, which it takes as a
# volume only, and overlay, whose directories it does not find at the restore.
_FILESYSTEMS: tuple[str, ...] = (
    "autofs",
    "binfmt_misc",
    "btrfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "devpts",
)
_FILESYSTEMS += ("devtmpfs", "fusectl", "mqueue", "proc", "pstore", "securityfs", "sysfs")
_FILESYSTEMS += ("tmpfs", "tracefs")


_TOLD = 4  # findings in one message


def scan(container: Container, tcp: str = "established") -> list[Obstacle]:
    """Look at a running container and judge it."""
    scene = Scene.of(container)
    return [] if scene is None else judge(sight.look(scene), tcp)


def refuse(container: Container, tcp: str, skip: Collection[str] = ()) -> list[Obstacle]:
    """Raise DumpFailed for what CRIU cannot write down, unless skipped by name; return the rest.

    Nothing was touched yet, and nothing is.
    """
    check_names(skip)
    scene = Scene.of(container)
    more = f"pymigrate check {container.name} shows all, --skip goes on in spite of one"
    return [] if scene is None else refuse_at(scene, tcp, skip, more)


def refuse_at(scene: Scene, tcp: str, skip: Collection[str], how: str) -> list[Obstacle]:
    """Do so where there is no container of ours; ``how`` is the last part of the hint."""
    check_names(skip)
    found = [each for each in judge(sight.look(scene), tcp) if each.check not in skip]
    fatal = [each for each in found if each.fatal]
    if fatal:
        reasons = "; ".join(f"{each.seen} [{each.check}]" for each in fatal[:_TOLD])
        more = f"; and {len(fatal) - _TOLD} more" if len(fatal) > _TOLD else ""
        remedies = "; ".join(dict.fromkeys(each.remedy for each in fatal[:_TOLD]))
        raise DumpFailed(
            f"{scene.name} cannot be written down: {reasons}{more}; nothing was touched",
            hint=f"{remedies}; {how}",
        )
    return found


def check_names(skip: Collection[str]) -> None:
    """Raise UsageError for a name that is no check of the container."""
    if unknown := sorted(set(skip) - set(CHECKS)):
        raise UsageError(
            f"no such check to skip: {', '.join(unknown)}",
            hint=f"the checks of a container are: {', '.join(CHECKS)}",
        )


def judge(seen: Sight, tcp: str = "established") -> list[Obstacle]:
    """Say what speaks against writing it down, with these TCP options; the worst first."""
    found: list[Obstacle] = []
    family = seen.family
    init = next((each for each in seen.processes if each.pid == seen.init), None)
    if init is None:
        return []  # it ended while we looked
    found.extend(_whole(seen))
    for process in seen.processes:
        if process.pid not in family:
            found.append(
                Obstacle(
                    "exec",
                    Severity.NOTE,
                    f"{process.name} came by exec: it is left out, and ends with the container",
                    "wait for the exec session to end",
                    process.pid,
                )
            )
            continue
        found.extend(_process(process, init, seen))
        for opened in process.opened:
            found.extend(_descriptor(process, opened, seen))
    found.extend(scan_sockets.connections(seen, tcp))
    order = list(Severity)
    return sorted(found, key=lambda each: order.index(each.severity))


def _whole(seen: Sight) -> Iterator[Obstacle]:
    if seen.own_users and not seen.own_network:
        # CRIU would have to mount a sysfs that belongs to the host's users, and may not.
        yield Obstacle(
            "users-network",
            Severity.BLOCKS,
            "the container has users of its own and a network that is not",
            "run it without --userns, or with a network of its own",
        )
    known = {
        mount.device
        for mount in seen.mounts
        if mount.path == "/" or any(_is_below(mount.path, each) for each in seen.announced)
    }
    for mount in seen.mounts:
        # A bind mount of what criu has anyway is no matter.
        if mount.filesystem not in _FILESYSTEMS and mount.device not in known:
            yield Obstacle(
                "mount",
                Severity.BLOCKS,
                f"{mount.path} is a mount of the kind {mount.filesystem}, made after the start",
                "unmount it, or mount it on the host and give it as a volume (-v)",
                path=mount.path,
            )


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place.rstrip('/')}/")


def _process(process: Process, init: Process, seen: Sight) -> Iterator[Obstacle]:
    def finding(check: str, severity: Severity, what: str, remedy: str) -> Obstacle:
        return Obstacle(check, severity, f"{process.name} {what}", remedy, process.pid)

    if process.tracer:
        tracer = next((each for each in seen.processes if each.pid == process.tracer), None)
        by = tracer.name if tracer else f"process {process.tracer}"
        yield finding("traced", Severity.BLOCKS, f"is traced by {by}", "end the debugger or strace")
    if process.state == "Z":
        yield finding(
            "zombie",
            Severity.NOTE,
            f"has ended and its parent, PID {process.parent}, has not asked for its status: it "
            "stays so after a restore",
            "nothing has to be done; an init that reaps (--init) would end it",
        )
    if not process.own_group and process.state != "Z":  # what has ended is in no cgroup
        yield finding(
            "cgroup",
            Severity.BLOCKS,
            "sits in a cgroup that is not the container's, so it is not frozen with it",
            "move it back into the container's cgroup",
        )
    for kind in _UNIQUE:
        theirs, ours = process.namespaces.get(kind), init.namespaces.get(kind)
        if theirs and ours and theirs != ours:
            yield finding(
                "namespace",
                Severity.BLOCKS,
                f"is in a {kind} namespace of its own, and criu takes one for all",
                "stop sandboxes, browsers and containers inside the container",
            )
    if process.user and not seen.can_read_limits:
        yield finding(
            "limits",
            Severity.BLOCKS,
            "is not root's, and root here lacks CAP_SYS_RESOURCE",
            "apt-get install tcc and run the set-up again, or give root CAP_SYS_RESOURCE",
        )
    yield from _memory(process, seen)


def _memory(process: Process, seen: Sight) -> Iterator[Obstacle]:
    for name in process.mapped:
        check, severity, what, remedy = "", Severity.BLOCKS, f"maps {name}", ""
        if name.startswith(_SECRET):
            check, remedy = "secret-memory", _WITHOUT_SECRETS
        elif name.startswith("anon_inode:[io_uring]"):
            check, remedy = "io_uring", _WITHOUT_RINGS
        elif name.startswith(_GPU):
            check, remedy = "gpu", _LEAVE_GPU
        elif name.startswith("/dev/") and not name.startswith(_MAPPABLE):
            check, remedy = "device", _CLOSE_DEVICE
        elif name.startswith("/anon_hugepage"):
            if seen.huge_pages:
                severity, remedy = Severity.NOTE, "the target needs as many free huge pages"
                what = "uses huge pages"
            else:
                what = "uses huge pages, and no free one is left by which criu could know them"
                remedy = "raise vm.nr_hugepages by one, or have the program do without"
            check = "huge-pages"
        elif name.startswith("/SYSV") and not seen.own_ipc:
            check = "shared-memory"
            what = "uses System V shared memory of the host"
            remedy = "run the container without --share ipc"
        elif name == "[uprobes]":
            check, remedy = "probes", "end the tracer that has set probes (perf, bpftrace)"
        if check:
            yield Obstacle(check, severity, f"{process.name} {what}", remedy, process.pid)


_GPU = ("/dev/nvidia", "/dev/dri/", "/dev/kfd")
_GPU_NODES = (195, 226)  # of NVIDIA and of DRM: Documentation/admin-guide/devices.txt
_LEAVE_GPU = (
    "end what computes or draws there, or have it save its work and let go of the GPU: what lies "
    "in the memory of a GPU, and in its driver, cannot travel"
)
_SECRET = "/secretmem"  # noqa: S105 - the kernel's name for it
_WITHOUT_SECRETS = "have the program do without memfd_secret(2)"
_MAPPABLE = ("/dev/zero", "/dev/shm/", "/dev/null")  # noqa: S108 - names of mappings, not of files
_WITHOUT_RINGS = (
    "start the program without it (node: UV_USE_IO_URING=0; others have a setting), or forbid it "
    "by a seccomp profile"
)
_CLOSE_DEVICE = "have the program close it: what is in a device's driver cannot travel"


def _descriptor(process: Process, opened: Opened, seen: Sight) -> Iterator[Obstacle]:
    if opened.link.startswith("anon_inode:"):
        yield from _anonymous(process, opened)
        yield from _watches(process, opened, seen)
    elif opened.kind == "socket":
        yield from scan_sockets.of_process(process, opened, seen)
    elif opened.packets:
        remedy = "have the program open it without O_DIRECT"
        yield held("pipe", process, opened, "has a pipe that keeps packets apart", remedy)
    elif opened.path_only:
        if opened.kind in ("file", "directory"):
            yield from _lost(process, opened, seen)
    elif opened.kind in ("block", "character"):
        yield from _device(process, opened)
    elif opened.kind in ("file", "directory") and opened.link.startswith("/"):
        yield from _file(process, opened, seen)


def _anonymous(process: Process, opened: Opened) -> Iterator[Obstacle]:
    kind = opened.link.removeprefix("anon_inode:").strip("[]").partition(":")[0]
    if kind == "io_uring":
        yield held("io_uring", process, opened, "uses io_uring", _WITHOUT_RINGS)
    elif not kind.startswith(_ANONYMOUS):
        remedy = "have the program close it"
        yield held("descriptor", process, opened, f"uses {kind}", remedy)


def _device(process: Process, opened: Opened) -> Iterator[Obstacle]:
    if opened.interface:
        # CRIU makes such an interface only in a network namespace that it makes itself.
        what = f"drives the interface {opened.interface}"
        yield held("device", process, opened, what, _CLOSE_DEVICE)
    elif opened.link.startswith(_GPU) or opened.node[0] in _GPU_NODES:
        yield held("gpu", process, opened, f"uses the GPU {opened.link}", _LEAVE_GPU)
    elif opened.kind == "block" or not _can_open(opened.node):
        what = f"has the device {opened.link} open"
        yield held("device", process, opened, what, _CLOSE_DEVICE)


def _file(process: Process, opened: Opened, seen: Sight) -> Iterator[Obstacle]:
    if opened.names == 0 and opened.bytes > GHOST_LIMIT:
        yield held(
            "deleted-file",
            process,
            opened,
            f"holds a deleted file of {opened.bytes // MIB} MiB, {opened.link}, and "
            f"{GHOST_LIMIT // MIB} go into a checkpoint",
            "have the program close it; it is often a log that was rotated away",
        )
    elif opened.names and opened.link.endswith(_DELETED) and _mount(opened, seen).read_only:
        yield held(
            "deleted-file",
            process,
            opened,
            f"holds {opened.link}, which has other names, on a mount that is read-only: no name "
            "can be made for it",
            "have the program close it, or mount the volume without ro",
        )
    elif opened.names and (over := _hiding(opened, seen)) is not None:
        yield held(
            "hidden-file",
            process,
            opened,
            f"has {opened.link} open, which the mount at {over.path} hides",
            f"have the program close it, or unmount {over.path}",
        )
    else:
        yield from _lost(process, opened, seen)


def _lost(process: Process, opened: Opened, seen: Sight) -> Iterator[Obstacle]:
    if opened.link.startswith(_SECRET):
        yield held("secret-memory", process, opened, "has secret memory", _WITHOUT_SECRETS)
    elif opened.link.startswith("/") and _is_lost(opened, seen):
        yield held(
            "lost-mount",
            process,
            opened,
            f"has {opened.link} open, on a mount that is not in the container's tree",
            "have the program close it; it is a file of the host, of a message queue, of huge "
            "pages, or of what was unmounted",
        )


def _can_open(node: tuple[int, int]) -> bool:
    """Say whether CRIU can open a character device again (CRIU: dump_chrdev, get_tty_driver)."""
    major, minor = node
    if major in (_MEMORY_DEVICES, *_SERIAL) or major in _PTYS:
        return True
    if major == _MISC:
        return minor in (_TUN, _AUTOFS)
    if major == _TTY:
        return 1 <= minor <= _CONSOLES
    return major == _TTY_AUX and minor <= 2


_DELETED = " (deleted)"
_NOWHERE = Mounted(0, 0, 0, "/", "/", "")


def _mount(opened: Opened, seen: Sight) -> Mounted:
    return next((each for each in seen.mounts if each.number == opened.mount), _NOWHERE)


def _hiding(opened: Opened, seen: Sight) -> Mounted | None:
    """Return a mount on the way from a file's own mount to the file, if there is one."""
    own = _mount(opened, seen)
    if own is _NOWHERE:
        return None
    for mount in seen.mounts:
        deeper = mount.path != own.path and _is_below(mount.path, own.path)
        if _is_below(opened.link, mount.path) and (deeper or mount.parent == own.number):
            if mount.path == opened.link and opened.kind == "directory":
                continue  # the mount point itself: criu opens what is below
            return mount
    return None


def _is_lost(opened: Opened, seen: Sight) -> bool:
    if opened.device == seen.memory_device or not seen.mounts:
        return False
    if opened.link.startswith("/memfd:") and seen.huge_pages:
        return False  # of huge pages, whose file system CRIU then knows
    return opened.mount not in {mount.number for mount in seen.mounts}


def _watches(process: Process, opened: Opened, seen: Sight) -> Iterator[Obstacle]:
    kinds = {mount.device: mount for mount in seen.mounts}
    for watch in opened.watches:
        mount = kinds.get(watch.device)
        if mount is None or mount.filesystem not in _NO_HANDLES or watch in seen.hinted:
            continue
        yield held(
            "inotify",
            process,
            opened,
            f"watches inode {watch.inode} of {mount.path} ({mount.filesystem}), whose path criu "
            "cannot find",
            "let it watch a volume, a tmpfs, or something below /etc, /var/log or /var/spool; or "
            "poll",
        )


_NO_HANDLES = ("overlay", "proc", "sysfs")
"""File systems of which an inode cannot be opened by its number (name_to_handle_at(2))."""


CHECKS: Sequence[str] = (
    "cgroup",
    "deleted-file",
    "descriptor",
    "device",
    "gpu",
    "half-open",
    "hidden-file",
    "huge-pages",
    "inotify",
    "io_uring",
    "limits",
    "lost-mount",
    "mount",
    "namespace",
    "netlink",
    "pipe",
    "probes",
    "secret-memory",
    "shared-memory",
    "socket",
    "traced",
    "unix-outside",
    "users-network",
    "exec",
    "tcp",
    "zombie",
)
"""Every finding by the name that ``--skip`` takes."""
