"""What to ask CRIU for, as plain values: the fields of ``criu_opts`` in images/rpc.proto. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pymigrate.checkpoint.tmpfs import Tmpfs
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.mounts import DEVICES
from pymigrate.runtime.settings import Spec
from pymigrate.runtime.values import dataclass

NETWORK = "network"
"""The key under which the container's network namespace is external to CRIU: we make it."""

GHOST_LIMIT = 1 << 30
"""Bytes; an unlinked open file up to this size goes into the images."""

LOG_LEVEL = 2
LOG_LEVEL_DEBUG = 4
DUMP_LOG = "dump.log"
RESTORE_LOG = "restore.log"

LAZY_CONFIG = "address nowhere\n"
"""After a lazy dump CRIU would serve the memory to whoever connects to a port of this host. It must
not, and a port that it cannot open makes it undo the dump in good order: the tasks live, and their
cgroup is frozen again as it was found (CRIU: cr_dump_finish in criu/cr-dump.c). The request has no
field for the address, a file of options has."""

_IGNORE = 0  # criu_cg_mode: cgroups are made by us, so that v1 and v2 hosts can exchange containers
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NFTABLES, _SKIP = 2, 3  # criu_network_lock_method
SKIPS_SINCE = (3, 19)
"""The CRIU that knows that it need not lock the network."""

_TCP = {
    "established": {"tcp_established": True},
    "close": {"tcp_close": True},
    "skip": {"tcp_established": True, "tcp_skip_in_flight": True},
}


@dataclass(frozen=True)
class DumpOptions:
    """What a person may choose about a dump."""

    tcp: str = "established"
    leave_running: bool = False
    lazy: bool = False  # leave the memory where it is: runtime/memory.py reads it there
    inside: bool = False  # by a CRIU in the container's own network, where that is possible
    carried: bool = False  # contents of tmpfs by us and not by CRIU's tar, where that is possible
    debug: bool = False
    skip: tuple[str, ...] = ()  # findings of scan.py in spite of which it is tried

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        if self.tcp not in _TCP:
            raise UsageError(f"--tcp {self.tcp}: it is established, close or skip")


@dataclass(frozen=True)
class Subject:
    """The container to be dumped, as CRIU must know it."""

    pid: int
    network_inode: int | None
    mounts: tuple[str, ...]
    freezer: str
    cut_off: bool = False  # the cable is unplugged: CRIU need not lock the network
    own_users: bool = False
    inside: bool = False  # CRIU is in the container's network, so it takes none of it
    left_out: tuple[str, ...] = ()  # mounts that are made anew; see runtime/cgroup_view.py


def dump_fields(
    subject: Subject, images_fd: int, options: DumpOptions, config: str = ""
) -> dict[str, object]:
    """Return the fields of a DUMP request; ``config`` is the path of LAZY_CONFIG's text."""
    external = [f"mnt[{mount}]:{mount}" for mount in subject.mounts]
    if subject.network_inode is not None and not subject.own_users and not subject.inside:
        external.append(f"net[{subject.network_inode}]:{NETWORK}")
    return {
        "images_dir_fd": images_fd,
        "pid": subject.pid,
        "log_file": DUMP_LOG,
        "log_level": LOG_LEVEL_DEBUG if options.debug else LOG_LEVEL,
        "notify_scripts": True,
        "leave_running": options.leave_running,
        "file_locks": True,
        "link_remap": True,
        "ghost_limit": GHOST_LIMIT,
        "orphan_pts_master": True,
        "manage_cgroups": True,
        "manage_cgroups_mode": _IGNORE,
        # CRIU leaves a cgroup that it found frozen frozen: so whatever dies, we decide.
        "freeze_cgroup": subject.freezer,
        # Without its lock CRIU leaves no table of nft behind if it is killed, and is 10 ms faster.
        "network_lock": _SKIP if subject.cut_off else _NFTABLES,
        "external": external,
        **({"skip_mnt": list(subject.left_out)} if subject.left_out else {}),
        **_empty_network(subject.own_users and subject.network_inode is not None),
        **_TCP[options.tcp],
        **({"lazy_pages": True, "config_file": config} if options.lazy else {}),
    }


def _empty_network(wanted: bool) -> dict[str, object]:
    """Let CRIU make the network namespace and leave it empty, or say nothing about it.

    CRIU makes a new user namespace, whose processes may not enter a network namespace that was
    made by another: so theirs is made by them, and the cable is put into it (restore.py).
    """
    return {"empty_ns": _NEW_NETWORK} if wanted else {}


@dataclass(frozen=True)
class RestoreOptions:
    """What is known of the dump, and what a person may choose about its restore."""

    tcp: str = "established"
    network: bool = True
    inside: bool = False  # it was written down inside its network, and so must it come back
    descriptors: tuple[str, ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()  # what we carried
    own_users: bool = False
    lazy: bool = False  # a pager fills the memory; it listens in the work directory
    debug: bool = False


@dataclass(frozen=True)
class Inherited:
    """The numbers, in CRIU's process, of what it inherits: the namespace and the stdio pipes."""

    network: int | None
    stdio: Mapping[str, int]
    cut_off: bool = False  # the cable is unplugged: CRIU need not lock the network
    inside: bool = False  # CRIU is in the container's network: what it restores inherits that


def restore_fields(
    root: str, images_fd: int, work_fd: int, inherited: Inherited, options: RestoreOptions
) -> dict[str, object]:
    """Return the fields of a RESTORE request."""
    inherit = [
        {"key": link, "fd": inherited.stdio[name]}
        for name, link in stdio_links(options.descriptors)
        if name in inherited.stdio
    ]
    own_network = options.network and inherited.network is not None
    if own_network and not options.own_users and not options.inside:
        inherit.append({"key": NETWORK, "fd": inherited.network})
    return {
        "images_dir_fd": images_fd,
        "work_dir_fd": work_fd,
        "log_file": RESTORE_LOG,
        "log_level": LOG_LEVEL_DEBUG if options.debug else LOG_LEVEL,
        "notify_scripts": True,
        "root": root,
        # The restored init becomes the child of CRIU's parent, the supervisor.
        "rst_sibling": True,
        "file_locks": True,
        "link_remap": True,
        "orphan_pts_master": True,
        "manage_cgroups": True,
        "manage_cgroups_mode": _IGNORE,
        "network_lock": _SKIP if inherited.cut_off else _NFTABLES,
        "inherit_fd": inherit,
        "external": [f"mnt[{key}]:{source}" for key, source in options.mounts],
        **_empty_network(own_network and options.own_users),
        **_TCP[options.tcp],
        **({"lazy_pages": True} if options.lazy else {}),
    }


def node_mounts(spec: Spec) -> tuple[tuple[str, str], ...]:
    """Return where nodes of the host may be mounted in a container, and which.

    Containers with users of their own cannot make nodes: init bind mounts them, and /dev/null also
    over each masked file.
    """
    if not spec.private("user"):
        return ()
    nodes = {each.path: each.path for each in (*DEVICES, *spec.devices)}
    return (*nodes.items(), *((path, "/dev/null") for path in spec.masked_paths))


def stdio_links(descriptors: Sequence[str]) -> list[tuple[str, str]]:
    """Say which link of /proc/PID/fd is which of the three, if it is a pipe to the supervisor."""
    names = ("stdin", "stdout", "stderr")
    found: dict[str, str] = {}
    for name, link in zip(names, descriptors, strict=False):
        if link.startswith("pipe:[") and link not in found.values():
            found[name] = link
    return list(found.items())
