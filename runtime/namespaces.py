"""Namespaces: which are made, which are joined, which stay the host's; see namespaces(7)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import IdMapping, Spec, TimeOffset
from pymigrate.runtime.values import dataclass

# The order in which they are joined: the user's first, for it gives the right to the others; the
# mount namespace last, for the others' paths are looked up in the old one.
FLAGS = {
    "user": syscalls.CLONE_NEWUSER,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "network": syscalls.CLONE_NEWNET,
    "time": syscalls.CLONE_NEWTIME,
    "pid": syscalls.CLONE_NEWPID,
    "mount": syscalls.CLONE_NEWNS,
}
# Their names under /proc/PID/ns.
FILES = {
    "user": "user",
    "cgroup": "cgroup",
    "ipc": "ipc",
    "uts": "uts",
    "network": "net",
    "time": "time",
    "pid": "pid",
    "mount": "mnt",
}


# By OCI kind: (device, inode) of the namespace.
Identities = Mapping[str, tuple[int, int]]


class Kernel(Protocol):
    """The calls that making and joining take; see runtime/syscalls.py."""

    def setns(self, fd: int, kinds: int) -> None:
        """See setns(2)."""

    def unshare(self, flags: int) -> None:
        """See unshare(2)."""


@dataclass(frozen=True)
class Plan:
    """What to do with each kind: ``user`` is apart, for its id maps are written from outside."""

    join: tuple[tuple[str, str], ...]
    new_user: bool
    unshare: int

    def describe(self) -> str:
        """Return the kinds that are made anew, for messages."""
        made = [kind for kind, flag in FLAGS.items() if self.unshare & flag]
        return ", ".join((["user"] if self.new_user else []) + made)


def plan(spec: Spec, *, network_given: bool = False) -> Plan:
    """Decide for each kind; with ``network_given`` the caller holds the network namespace."""
    given = {each.kind: each.path for each in spec.namespaces}
    if network_given and given.get("network") is not None:
        raise UsageError("linux.namespaces: the network namespace is given twice")
    if network_given:
        given.pop("network", None)
    join = tuple((kind, path) for kind in FLAGS if (path := given.get(kind)) is not None)
    unshare = 0
    for kind, flag in FLAGS.items():
        if kind != "user" and kind in given and given[kind] is None:
            unshare |= flag
    return Plan(join, "user" in given and given["user"] is None, unshare)


def open_joined(plan: Plan, undo: ExitStack) -> tuple[tuple[str, int], ...]:
    """Open the namespaces to join, in order; ``undo`` closes them. UsageError names a bad path."""
    opened = []
    for kind, path in plan.join:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                f"cannot join the {kind} namespace {path}: {error.strerror}"
            ) from error
        undo.callback(os.close, fd)
        opened.append((kind, fd))
    return tuple(opened)


def join(opened: Sequence[tuple[str, int]], kernel: Kernel = syscalls) -> None:
    """Enter opened namespaces; a joined PID namespace holds for the next child."""
    for kind, fd in opened:
        kernel.setns(fd, FLAGS[kind])


def is_in_network(pid: int, inode: int) -> bool:
    """Say whether a process is in the network namespace with this inode."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino == inode  # noqa: PTH116 - as below


def id_map(mappings: Sequence[IdMapping]) -> str:
    """Return the text for /proc/PID/uid_map or gid_map; see user_namespaces(7)."""
    return "".join(f"{each.container_id} {each.host_id} {each.size}\n" for each in mappings)


def host_id(mappings: Sequence[IdMapping], inside: int) -> int:
    """Return the host's number for one of the container's; without mappings they are the same."""
    if not mappings:
        return inside
    for each in mappings:
        if 0 <= inside - each.container_id < each.size:
            return each.host_id + inside - each.container_id
    raise UsageError(f"process.user.uid: {inside} is not in linux.uidMappings")


def write_id_maps(pid: int, spec: Spec) -> None:
    """Write both maps of a process that has just made its user namespace."""
    for name, mappings in (("uid_map", spec.uid_mappings), ("gid_map", spec.gid_mappings)):
        write_file(f"/proc/{pid}/{name}", id_map(mappings))


def time_offsets(offsets: Sequence[TimeOffset]) -> str:
    """Return the text for /proc/self/timens_offsets; see time_namespaces(7)."""
    return "".join(f"{each.clock} {each.secs} {each.nanosecs}\n" for each in offsets)


def write_file(path: str, text: str, *, dir_fd: int | None = None) -> None:
    """Write a kernel file by one write(2), which is what the kernel reads as one value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def identities(pid: int) -> Identities:
    """Return the (device, inode) of each of a process's namespaces, by OCI kind."""
    found = {}
    for kind, name in FILES.items():
        try:
            status = os.stat(f"/proc/{pid}/ns/{name}")  # noqa: PTH116 - a hot path without pathlib
        except FileNotFoundError:
            continue  # a kernel without this kind, or a process that has ended its last thread
        found[kind] = (status.st_dev, status.st_ino)
    return found
