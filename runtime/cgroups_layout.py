"""Where the cgroup hierarchies of a host are, and where in them a process sits; no I/O.

Formats: cgroups(7) "/proc/pid/cgroup", proc_pid_mountinfo(5), and the kernel's
Documentation/admin-guide/cgroup-v1/cgroups.rst and cgroup-v2.rst. Three layouts exist: v1 (one
mount for each group of controllers), v2 (one mount for all) and hybrid (v1 for the controllers
and a v2 mount beside them, with none or the rest of the controllers).
"""

from __future__ import annotations

import re

from pymigrate.runtime.values import dataclass

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy.

    ``controllers`` are those of a v1 mount; a v2 mount offers what its ``cgroup.controllers``
    says, so here the set is empty. ``own`` is the directory of the process that was looked at.
    """

    version: int
    controllers: frozenset[str]
    mount_point: str
    own: str


@dataclass(frozen=True)
class Layout:
    """All hierarchies that hold controllers, v1 in the order of their mounts, v2 last."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def unified(self) -> Hierarchy | None:
        """Return the cgroup v2 hierarchy, if one is mounted."""
        return next((each for each in self.hierarchies if each.version == 2), None)

    @property
    def kind(self) -> str:
        """Return "v1", "v2", "hybrid" or "none"."""
        versions = {each.version for each in self.hierarchies}
        return {(): "none", (1,): "v1", (2,): "v2", (1, 2): "hybrid"}[tuple(sorted(versions))]


@dataclass(frozen=True)
class _Mount:
    number: int
    parent: int
    root: str
    point: str
    kind: str
    read_only: bool
    options: frozenset[str]


def detect(mountinfo: str, self_cgroup: str) -> Layout:
    """Find the hierarchies in the texts of /proc/self/mountinfo and /proc/self/cgroup.

    Both texts must come from the same process, since both show paths relative to the root of the
    reader's cgroup namespace. Where one hierarchy is mounted several times, the mount that shows
    the process's own cgroup and is writable is taken.
    """
    memberships = _memberships(self_cgroup)
    mounts = _visible(mountinfo)
    found: dict[frozenset[str], tuple[tuple[bool, bool], Hierarchy]] = {}
    for mount in mounts:
        key = _key(mount, memberships)
        if key is None:
            continue
        below = _below(memberships[key], mount.root)
        rank = (below is not None, not mount.read_only)
        # A process outside what is mounted (a cgroup namespace made after the mount, or a bind
        # mount of another subtree) cannot see its own directory: the mount's root is the nearest.
        own = mount.point if not below else f"{mount.point.rstrip('/')}/{below}"
        version = 2 if mount.kind == "cgroup2" else 1
        if key not in found or rank > found[key][0]:
            found[key] = (rank, Hierarchy(version, key, mount.point, own))
    hierarchies = [hierarchy for _, hierarchy in found.values()]
    return Layout(tuple(sorted(hierarchies, key=lambda each: each.version)))


def _memberships(self_cgroup: str) -> dict[frozenset[str], str]:
    """Map the controllers of each hierarchy (none for v2) to the process's path in it."""
    memberships = {}
    for line in self_cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = frozenset(controllers.split(",")) - {""}
        if not number.isdigit() or any(name.startswith("name=") for name in names):
            continue  # named hierarchies, such as systemd's, have no controllers
        if names or number == "0":
            memberships[names] = path
    return memberships


def _visible(mountinfo: str) -> list[_Mount]:
    """Return the mounts of cgroups that can be reached, since no other mount hides them."""
    mounts: dict[int, _Mount] = {}
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, details = left.split(" "), right.split(" ")
        numbers = [field for field in fields[:2] if field.isdigit()]
        if not separator or len(fields) < 6 or len(details) < 3 or len(numbers) < 2:
            continue
        mount = _Mount(
            number=int(fields[0]),
            parent=int(fields[1]),
            root=_unescape(fields[3]),
            point=_unescape(fields[4]),
            kind=details[0],
            read_only="ro" in fields[5].split(",") or "ro" in details[2].split(","),
            options=frozenset(details[2].split(",")),
        )
        mounts[mount.number] = mount
    return [
        mount
        for mount in mounts.values()
        if mount.kind in ("cgroup", "cgroup2") and not _hidden(mount, mounts)
    ]


def _hidden(mount: _Mount, mounts: dict[int, _Mount]) -> bool:
    """Tell whether a mount, or one that it is mounted in, is covered by another one.

    The order of the lines says nothing: a mount that is moved keeps its line.
    """
    others = mounts.values()
    if any(each.parent == mount.number and each.point == mount.point for each in others):
        return True  # something is stacked right on it
    seen: set[int] = set()
    while mount.number not in seen:
        if any(_covers(each, mount) for each in others):
            return True
        seen.add(mount.number)
        mount = mounts.get(mount.parent, mount)
    return False


def _covers(upper: _Mount, lower: _Mount) -> bool:
    """Tell whether two mounts in the same parent lie on one path, the second below the first."""
    if upper.parent != lower.parent or upper.number == lower.number:
        return False
    return f"{lower.point}/".startswith(f"{upper.point.rstrip('/')}/")


def _key(mount: _Mount, memberships: dict[frozenset[str], str]) -> frozenset[str] | None:
    if mount.kind == "cgroup2":
        return frozenset() if frozenset() in memberships else None
    return next((names for names in memberships if names and names <= mount.options), None)


def _below(path: str, root: str) -> str | None:
    """Return where ``path`` is below ``root``, or None if it is not, or nobody can know."""
    if root.startswith("/..") or path.startswith("/.."):
        return None
    if root in ("/", path):
        return path.removeprefix(root).strip("/")
    if path.startswith(f"{root}/"):
        return path.removeprefix(root).strip("/")
    return None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
