"""A container's mounts, decided as a tuple of operations; mounting.py makes them."""

from __future__ import annotations

import importlib
import posixpath
from collections.abc import Mapping

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import MissingFeature, UsageError
from pymigrate.runtime.mount_options import NO_OPTIONS, Options, options
from pymigrate.runtime.settings import Device, Mount, Spec
from pymigrate.runtime.values import dataclass


@dataclass(frozen=True)
class Filesystem:
    """Mount a new filesystem."""

    destination: str
    type: str
    source: str
    options: Options = NO_OPTIONS


@dataclass(frozen=True)
class Bind:
    """Mount a directory or file of the host."""

    destination: str
    source: str
    recursive: bool = False
    options: Options = NO_OPTIONS


@dataclass(frozen=True)
class Node:
    """Make a device node or FIFO."""

    device: Device


@dataclass(frozen=True)
class Link:
    """Make a symbolic link."""

    path: str
    target: str


@dataclass(frozen=True)
class Sysctl:
    """Set a kernel parameter of the container's namespaces."""

    name: str
    value: str


@dataclass(frozen=True)
class ReadOnly:
    """Make what lies at a path, with all that is mounted below, read-only."""

    path: str


@dataclass(frozen=True)
class Mask:
    """Hide what lies at these paths: /dev/null over a file, an empty directory over a directory.

    The empty directories are one read-only tmpfs, for CRIU archives each tmpfs by running tar.
    """

    paths: tuple[str, ...]


@dataclass(frozen=True)
class ReadOnlyMount:
    """Make the mount that was made at a place read-only, but not those below it."""

    path: str


@dataclass(frozen=True)
class ReadOnlyRoot:
    """Make the root mount itself read-only."""


Operation = (
    Filesystem | Bind | Node | Link | Sysctl | ReadOnly | Mask | ReadOnlyMount | ReadOnlyRoot
)

DEVICES = (
    Device("/dev/null", "c", 1, 3),
    Device("/dev/zero", "c", 1, 5),
    Device("/dev/full", "c", 1, 7),
    Device("/dev/random", "c", 1, 8),
    Device("/dev/urandom", "c", 1, 9),
    Device("/dev/tty", "c", 5, 0),
)
LINKS = (
    Link("/dev/fd", "/proc/self/fd"),
    Link("/dev/stdin", "/proc/self/fd/0"),
    Link("/dev/stdout", "/proc/self/fd/1"),
    Link("/dev/stderr", "/proc/self/fd/2"),
    Link("/dev/core", "/proc/kcore"),
)
_PTMX = Link("/dev/ptmx", "pts/ptmx")
_CGROUPS = ("cgroup", "cgroup2")


def plan(spec: Spec, cgroups: Mapping[str, str] | None = None) -> tuple[Operation, ...]:
    """Return what to do inside the container's root, in order; () without a mount namespace.

    ``cgroups`` are the container's own directories by hierarchy, as Cgroup.places has them.
    UsageError or MissingFeature names the mount that is impossible.
    """
    if not spec.private("mount"):
        return ()
    if any("tmpcopyup" in mount.options for mount in spec.mounts):
        importlib.import_module("pymigrate.runtime.tree")  # costs what few containers need
    operations: list[Operation] = []
    for index, mount in enumerate(spec.mounts):
        if mount.type in _CGROUPS:
            operations += _cgroups(mount, f"mounts[{index}]", cgroups or {})
        else:
            operations.append(_operation(mount, f"mounts[{index}]"))
    places = {posixpath.normpath(each.destination): each for each in spec.mounts}
    dev = places.get("/dev")
    # A /dev that comes from outside has its nodes already, as has the host's own root.
    if (dev is not None and dev.type != "bind") or (dev is None and spec.root_path != "/"):
        devices = {each.path: each for each in (*DEVICES, *spec.devices)}
        if spec.private("user"):
            # mknod(2) is the host root's alone.
            operations += (Bind(path, path) for path in devices)
        else:
            operations += (Node(device) for device in devices.values())
        operations += LINKS
        if "/dev/pts" in places:
            operations.append(_PTMX)
    # Parameters before the read-only paths, of which /proc/sys is one; masks after those, else a
    # masked file below would be uncovered again by the copy of the tree that is made read-only.
    if spec.domainname:
        operations.append(Sysctl("kernel.domainname", spec.domainname))
    operations += (Sysctl(name, value) for name, value in spec.sysctl.items())
    operations += (ReadOnly(path) for path in spec.readonly_paths)
    if spec.masked_paths:
        operations.append(Mask(spec.masked_paths))
    if spec.root_readonly:
        operations.append(ReadOnlyRoot())
    return tuple(operations)


def cgroup_places(spec: Spec) -> tuple[str, ...]:
    """Return where the container sees its cgroup, of all hierarchies one below the other."""
    return tuple(posixpath.normpath(each.destination) for each in _cgroup_mounts(spec).values())


def cgroup_operations(spec: Spec, cgroups: Mapping[str, str]) -> tuple[Operation, ...]:
    """Return of `plan` what shows the container its cgroup."""
    mounts = _cgroup_mounts(spec)
    return tuple(
        each
        for index, mount in mounts.items()
        for each in _cgroups(mount, f"mounts[{index}]", cgroups)
    )


def _cgroup_mounts(spec: Spec) -> dict[int, Mount]:
    if not spec.private("mount"):
        return {}
    return {index: each for index, each in enumerate(spec.mounts) if each.type in _CGROUPS}


def _operation(mount: Mount, where: str) -> Operation:
    destination = posixpath.normpath(mount.destination)
    if destination == "/":
        raise UsageError(f"{where}.destination: cannot be the root")
    if destination.startswith("/proc/"):
        raise UsageError(f"{where}.destination: nothing can be mounted inside /proc")
    if destination == "/proc" and mount.type not in ("proc", "bind"):
        raise UsageError(f"{where}.type: only proc or a bind mount can be at /proc")
    sorted_ = options(mount.options)
    if mount.type != "bind":
        return Filesystem(destination, mount.type, mount.source, sorted_)
    if sorted_.parameters:
        raise UsageError(f"{where}.options: {sorted_.parameters[0][0]} is not for bind mounts")
    return Bind(destination, mount.source, "rbind" in mount.options, sorted_)


def _cgroups(mount: Mount, where: str, cgroups: Mapping[str, str]) -> list[Operation]:
    """Show the container its own cgroup, of v1 one directory a hierarchy, as if it were the top."""
    if not cgroups:
        raise MissingFeature(
            f"{where}: there is no cgroup to show", hint="take this mount out of config.json"
        )
    destination = posixpath.normpath(mount.destination)
    given = options(mount.options)
    access = Options(attr_set=given.attr_set, attr_clr=given.attr_clr)
    if "" in cgroups:
        return [Bind(destination, cgroups[""], options=access)]
    found: list[Operation] = [Filesystem(destination, "tmpfs", "cgroup", _CGROUP_TOP)]
    for name, path in cgroups.items():
        found.append(Bind(f"{destination}/{name}", path, options=access))
        alone = name.split(",")
        found += (Link(f"{destination}/{each}", name) for each in alone if each != name)
    if given.attr_set & syscalls.MOUNT_ATTR_RDONLY:
        found.append(ReadOnlyMount(destination))
    return found


_CGROUP_TOP = options(("nosuid", "nodev", "noexec", "mode=755"))


def describe(operation: Operation) -> str:  # noqa: PLR0911 - one for each
    """Say in the imperative what it does, for "cannot …"."""
    match operation:
        case Filesystem(destination, type_):
            return f"mount {type_} on {destination}"
        case Bind(destination, source):
            return f"mount {source} on {destination}"
        case Node(device):
            return f"make {device.path}"
        case Link(path):
            return f"make {path}"
        case Sysctl(name):
            return f"set the sysctl {name}"
        case ReadOnly(path) | ReadOnlyMount(path):
            return f"make {path} read-only"
        case Mask():
            return "mask paths"
        case ReadOnlyRoot():
            return "make the root read-only"
