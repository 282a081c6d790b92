"""A container's cgroup: one directory in each hierarchy of the host, v1, v2 or both.

It is ``pymigrate/HOST/NAME`` below the caller's own cgroup, so that limits which were put on the
caller also hold for its containers; where cgroup v2 forbids controllers there, it is below the
nearest place where it does not (:func:`cgroups_v2.nearest_parent`). Slices of systemd are not
asked for: on a host with systemd that is the root of the hierarchy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pymigrate.runtime import cgroups_devices, cgroups_v1, cgroups_v2
from pymigrate.runtime import cgroups_files as files
from pymigrate.runtime.cgroups_files import Limit
from pymigrate.runtime.cgroups_layout import Layout, detect
from pymigrate.runtime.deadline import Deadline
from pymigrate.runtime.errors import ContainerError, HostError, MissingFeature, UsageError
from pymigrate.runtime.values import dataclass

if TYPE_CHECKING:
    from pymigrate.runtime.spec import Resources

TOP = "pymigrate"
_HOLD_SECONDS = 1.0
_OTHERS_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*(/[A-Za-z0-9_][A-Za-z0-9_.:@-]*)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True)
class Stats:
    """What a container uses; None where the host does not count it."""

    memory_bytes: int | None
    memory_peak_bytes: int | None
    cpu_microseconds: int | None
    processes: int | None
    read_bytes: int | None = None  # from block devices, and to them
    written_bytes: int | None = None


@dataclass(frozen=True)
class CpuQuota:
    """How much of the CPUs a cgroup may use in each period, in microseconds; -1 is all of them."""

    quota_us: int
    period_us: int

    def to_document(self) -> dict[str, int]:
        """Return it as JSON, for a journal."""
        return {"quota_us": self.quota_us, "period_us": self.period_us}

    @classmethod
    def from_document(cls, document: object) -> CpuQuota | None:
        """Read it back; None for anything else."""
        match document:
            case {"quota_us": int(quota), "period_us": int(period)}:
                return cls(quota, period)
        return None


@dataclass(frozen=True)
class Member:
    """A cgroup's place in one hierarchy: ``base`` is the existing directory it is made under."""

    version: int
    controllers: frozenset[str]
    base: str


def current_layout() -> Layout:
    """Return the layout that the calling process sees."""
    return detect(_text("/proc/self/mountinfo"), _text("/proc/self/cgroup"))


class Cgroup:
    """One cgroup, in all hierarchies; every verb may be repeated.

    ``name`` is relative, such as "HOST/NAME". Paths are those of the mount namespace in which the
    object was made. No method keeps a file open.
    """

    def __init__(self, name: str, members: tuple[Member, ...], *, top: str = TOP) -> None:
        """Take the name and one place for each hierarchy; nothing is looked at or made.

        ``top`` is the directory of the base that is ours; "" where the name is somebody else's.
        """
        if not (_NAME if top else _OTHERS_NAME).fullmatch(name):
            raise UsageError(f"{name!r} is not a name for a cgroup")
        if not members:
            raise MissingFeature(
                "this host has no cgroups mounted",
                hint="mount -t cgroup2 none /sys/fs/cgroup",
            )
        self.name = name
        self._top = top
        # A process that joins a frozen cgroup stops there and then, so the freezer comes last.
        self.members = tuple(sorted(members, key=_is_freezer))
        self._freezer = self.members[-1]

    @classmethod
    def named(cls, name: str, layout: Layout | None = None) -> Cgroup:
        """Return the cgroup of this name for the calling process (or for another's layout)."""
        layout = layout or current_layout()
        members = []
        for hierarchy in layout.hierarchies:
            if hierarchy.version == 2:
                base = cgroups_v2.nearest_parent(hierarchy.own, hierarchy.mount_point)
                members.append(Member(2, frozenset(), base))
            elif hierarchy.controllers & set(cgroups_v1.CONTROLLERS):
                members.append(Member(1, hierarchy.controllers, hierarchy.own))
        return cls(name, tuple(members))

    @classmethod
    def at(cls, path: str, layout: Layout | None = None) -> Cgroup:
        """Return the cgroup of a path from the top of each hierarchy, as OCI's cgroupsPath is."""
        layout = layout or current_layout()
        members = [
            Member(each.version, each.controllers, each.mount_point)
            for each in layout.hierarchies
            if each.version == 2 or each.controllers & set(cgroups_v1.CONTROLLERS)
        ]
        return cls(path.strip("/"), tuple(members), top="")

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Cgroup:
        """Rebuild what :meth:`to_document` wrote; UsageError if it is anything else."""
        name, places = document.get("name"), document.get("members")
        if not isinstance(name, str) or not isinstance(places, list):
            raise UsageError("a cgroup needs a name and members")
        members = []
        for place in places:
            match place:
                case {"version": 1 | 2 as version, "controllers": list(names), "base": str(base)}:
                    if not base.startswith("/") or ".." in base.split("/"):
                        raise UsageError(f"{base!r} is not the directory of a cgroup")
                    members.append(Member(version, frozenset(map(str, names)), base))
                case _:
                    raise UsageError(f"{place!r} is not a place of a cgroup")
        return cls(name, tuple(members), top=str(document.get("top", TOP)))

    def to_document(self) -> dict[str, object]:
        """Return the cgroup as JSON, for processes that sit in another cgroup."""
        return {
            "name": self.name,
            **({} if self._top == TOP else {"top": self._top}),
            "members": [
                {
                    "version": each.version,
                    "controllers": sorted(each.controllers),
                    "base": each.base,
                }
                for each in self.members
            ],
        }

    @property
    def freezer_version(self) -> int:
        """Return 2 where cgroup.freeze is used (also beside v1 controllers), else 1."""
        return self._freezer.version

    @property
    def freezer_path(self) -> str:
        """Return the directory by which the container is frozen."""
        return self.path(self._freezer)

    def path(self, member: Member) -> str:
        """Return the cgroup's directory in one hierarchy."""
        return "/".join((member.base.rstrip("/"), *self._parts))

    @property
    def _parts(self) -> list[str]:
        return [*([self._top] if self._top else []), *self.name.split("/")]

    @property
    def places(self) -> dict[str, str]:
        """Its directories by the usual name of the hierarchy's mount; "" where all is in v2."""
        if len(self.members) == 1 and self.members[0].version == 2:
            return {"": self.path(self.members[0])}
        return {
            ",".join(sorted(each.controllers)) or "unified": self.path(each)
            for each in self.members
        }

    def exists(self) -> bool:
        """Tell whether any of its directories is there."""
        return any(os.path.isdir(self.path(each)) for each in self.members)  # noqa: PTH112

    def create(self) -> None:
        """Make the directories and those above; leave none when one fails."""
        try:
            for member in self.members:
                _make(member, self._parts)
        except OSError as error:
            failure = HostError(f"cannot make cgroup {error.filename}: {error.strerror}")
            try:
                self.remove(timeout=0)
            except (OSError, ContainerError) as second:
                failure.add_note(f"and cannot remove what was made: {second}")
            raise failure from error

    def apply(self, resources: Resources) -> None:
        """Set the limits, after looking whether the host has all that are asked for.

        Raises MissingFeature naming the limit that it cannot enforce, or HostError for a value
        that the kernel refuses. No device rules means the usual ones.
        """
        for directory, limit in self._plan(resources):
            files.set_limit(directory, limit)
        if self._member("devices").version == 2:
            rules = resources.devices or cgroups_devices.DEFAULT
            cgroups_devices.confine(self.freezer_path, cgroups_devices.program(rules))

    @contextlib.contextmanager
    def changed(self, resources: Resources) -> Iterator[None]:
        """Set the limits that are given for the block and, unless that fails, for good.

        -1 takes a limit away; devices stay as they are. All are set, or none: raises as ``apply``
        does, and then those that were set already are put back.
        """
        with contextlib.ExitStack() as undo:
            for directory, limit in self._plan(resources):
                if limit.controller == "devices":
                    continue
                before = files.as_it_is(directory, limit)
                files.set_limit(directory, limit)
                undo.callback(files.write, directory, limit.file, before)
            yield
            undo.pop_all()

    def _plan(self, resources: Resources) -> list[tuple[str, Limit]]:
        _check(resources)
        plan = []
        for limit in self._limits(resources):
            directory = self._directory(limit)
            if limit.what == files.IO_WEIGHT:
                from pymigrate.runtime import cgroups_disks  # few containers have one

                limit = cgroups_disks.chosen(  # noqa: PLW2901
                    directory, limit, cgroups_disks.Sharing.here(directory)
                )
            plan.append((directory, limit))
        for directory, limit in plan:
            if not files.exists(directory, limit.file):
                hint = (cgroups_v1 if self._version(limit) == 1 else cgroups_v2).SWAP_HINT
                raise files.missing(directory, limit, swap_hint=hint)
        return plan

    def _limits(self, resources: Resources) -> list[Limit]:
        version1 = {name for each in self.members for name in each.controllers}
        now = None
        if "memory" in version1:
            now = cgroups_v1.memory_and_swap(self.path(self._member("memory")))
        plan = cgroups_v1.limits(resources, memory_and_swap_now=now)
        chosen = [limit for limit in plan if limit.controller in version1]
        if self.members[-1].version == 2:
            taken = version1 | ({"io"} if "blkio" in version1 else set())  # of two names, one
            cgroups_v1.refuse_only_here(plan, version1)
            unified = cgroups_v2.limits(resources)
            chosen += [limit for limit in unified if limit.controller not in taken]
            return chosen + cgroups_v2.as_written(resources.unified, taken)
        cgroups_v2.as_written(resources.unified, None)
        asked = (
            plan if resources.devices else [each for each in plan if each.controller != "devices"]
        )
        for limit in asked:
            if limit.controller not in version1:
                raise MissingFeature(
                    f"this host cannot enforce the {limit.what}: "
                    f"the {limit.controller} controller is not mounted",
                    hint=f"mount -t cgroup -o {limit.controller} none DIRECTORY",
                )
        return chosen

    def _member(self, controller: str) -> Member:
        """Return the hierarchy of a controller: its v1 mount, else the unified one."""
        for member in self.members:
            if controller in member.controllers:
                return member
        return self.members[-1]

    def _version(self, limit: Limit) -> int:
        return self._member(limit.controller).version

    def _directory(self, limit: Limit) -> str:
        return self.path(self._member(limit.controller))

    def open_unified(self) -> int | None:
        """Return a descriptor of its directory in cgroup v2, the caller's to close; None: no v2.

        For clone3(2) with CLONE_INTO_CGROUP. OSError names the directory.
        """
        if self.freezer_version == 1:
            return None
        return os.open(self.freezer_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def join(self, *, unified: bool = True) -> None:
        """Move the calling process here: for a single-threaded child after fork.

        One write for each hierarchy, nothing imported; not ``unified``: it was born in that of v2.
        Raises OSError naming the file.
        """
        for member in self.members:
            if member.version == 2 and not unified:
                continue
            file = cgroups_v1.JOIN_FILE if member.version == 1 else cgroups_v2.JOIN_FILE
            files.write(self.path(member), file, "0")

    def add(self, pid: int) -> None:
        """Move another process here with all its threads; OSError names the file."""
        for member in self.members:
            files.write(self.path(member), "cgroup.procs", str(pid))

    def evict(self, pid: int) -> None:
        """Move a process out of the freezer's reach, to the caller's own place there.

        In the other hierarchies it stays: each move waits for a grace period of the kernel, 2 to
        5 ms, and this is done while clients wait. OSError names the file.
        """
        for hierarchy in current_layout().hierarchies:
            freezes = hierarchy.version == 2 or "freezer" in hierarchy.controllers
            if freezes and hierarchy.version == self._freezer.version:
                files.write(hierarchy.own, "cgroup.procs", str(pid))

    def pids(self) -> tuple[int, ...]:
        """Return the processes in it and in cgroups that they made below, in order."""
        found: set[int] = set()
        for member in self.members:
            found |= files.processes(self.path(member))
        return tuple(sorted(found))

    def freeze(self, timeout: float = 10.0) -> None:
        """Freeze all processes; return when none of them runs.

        Raises ContainerError naming what still runs after ``timeout`` seconds. The cgroup is then
        still freezing: the caller decides whether to :meth:`thaw` or to wait on by another call.
        """
        if not self._freeze(Deadline(timeout)):
            left = files.describe(files.processes(self.freezer_path))
            raise ContainerError(
                f"not frozen after {timeout:g} s: of {left} at least one still runs; "
                f"the freeze is still being tried",
                hint="a process in state D waits for a disk or the network; thaw, or freeze again",
            )

    def _freeze(self, deadline: Deadline) -> bool:
        if self.freezer_version == 2:
            return cgroups_v2.freeze(self.freezer_path, deadline)
        return cgroups_v1.freeze(self.freezer_path, deadline)

    def thaw(self) -> None:
        """Let all processes run on; where no cgroup is left, none is frozen."""
        with contextlib.suppress(FileNotFoundError):
            if self.freezer_version == 2:
                cgroups_v2.thaw(self.freezer_path)
            else:
                cgroups_v1.thaw(self.freezer_path)

    def frozen(self) -> bool:
        """Tell whether it is frozen, by itself or by a cgroup above it."""
        if self.freezer_version == 2:
            return cgroups_v2.frozen(self.freezer_path)
        return cgroups_v1.frozen(self.freezer_path)

    def kill(self, timeout: float = 10.0) -> None:
        """End every process with SIGKILL and return when they have exited, frozen or not.

        They may still be zombies until their parent has waited for them. Raises ContainerError
        naming those that are left after ``timeout`` seconds.
        """
        deadline = Deadline(timeout)
        if self.freezer_version == 2 and os.path.isdir(self.freezer_path):  # noqa: PTH112
            # Also frozen processes die by this, without running one more instruction.
            cgroups_v2.kill(self.freezer_path, deadline)
        # On kernels before 5.14, on v1, and for a process that was moved in one hierarchy only.
        files.kill_each(
            [self.path(each) for each in self.members],
            deadline,
            hold=lambda: self._hold(deadline),
            let_go=self.thaw,
        )

    def _hold(self, deadline: Deadline) -> None:
        """Freeze for a moment, as far as it goes: a process that cannot be frozen is killed too."""
        with contextlib.suppress(FileNotFoundError):
            self._freeze(Deadline(min(_HOLD_SECONDS, deadline.left)))

    def remove(self, timeout: float = 5.0) -> None:
        """Remove the directories, waiting for processes that are exiting, and empty parents.

        Raises ContainerError naming what is still in it after ``timeout`` seconds; then some of
        the directories may be gone. Nothing is killed.
        """
        deadline = Deadline(timeout)
        for member in self.members:
            files.remove(self.path(member), deadline)
        for member in self.members:
            _remove_parents(self.path(member), member.base)

    def oom_kills(self) -> int:
        """Return how many of its processes the kernel killed for want of memory."""
        member = self._member("memory")
        try:
            if member.version == 2:
                return cgroups_v2.oom_kills(self.path(member))
            return cgroups_v1.oom_kills(self.path(member))
        except FileNotFoundError:
            return 0  # no memory controller here, or removed: nobody counts

    def cpu_quota(self) -> CpuQuota | None:
        """Return the present CPU quota; None where no controller could enforce one."""
        member = self._member("cpu")
        try:
            if member.version == 2:
                return CpuQuota(*cgroups_v2.cpu_quota(self.path(member)))
            return CpuQuota(*cgroups_v1.cpu_quota(self.path(member)))
        except FileNotFoundError:
            return None

    def set_cpu_quota(self, wanted: CpuQuota) -> None:
        """Set the quota, of a period that stays; nothing where the cgroup is gone."""
        member = self._member("cpu")
        if not os.path.isdir(self.path(member)):  # noqa: PTH112
            return
        api = cgroups_v2 if member.version == 2 else cgroups_v1
        files.set_limit(self.path(member), api.cpu_quota_limit(wanted.quota_us, wanted.period_us))

    def stats(self) -> Stats:
        """Return what is used now."""
        found: dict[str, int] = {}
        for member in self.members:
            if member.version == 1:
                found |= cgroups_v1.figures(self.path(member), member.controllers)
            else:
                found = cgroups_v2.figures(self.path(member)) | found
        return Stats(
            memory_bytes=found.get("memory"),
            memory_peak_bytes=found.get("peak"),
            cpu_microseconds=found.get("cpu"),
            processes=found.get("processes"),
            read_bytes=found.get("read"),
            written_bytes=found.get("written"),
        )


def _check(resources: Resources) -> None:
    memory, total = resources.memory_limit, resources.memory_swap
    if total is not None and total >= 0:
        if memory is None or memory < 0:
            raise UsageError("a memory and swap limit needs a memory limit", hint="add --memory")
        if total < memory:
            raise UsageError(f"the memory and swap limit {total} is below the limit {memory}")


def _is_freezer(member: Member) -> int:
    return 2 if member.version == 2 else int("freezer" in member.controllers)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:  # noqa: PTH123
        return stream.read()


def _make(member: Member, names: list[str]) -> None:
    """Make the directories below the base, again if someone removes an empty parent meanwhile."""
    for last in (False, False, False, False, True):
        directory = member.base.rstrip("/")
        try:
            for name in names:
                if member.version == 2:
                    cgroups_v2.enable(directory)
                directory = f"{directory}/{name}"
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o755)  # noqa: PTH102 hot path
                if member.version == 1:
                    cgroups_v1.prepare(directory, member.controllers)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV) or last:
                raise
        else:
            return


def _remove_parents(directory: str, base: str) -> None:
    """Remove the directories between, as far as they are empty."""
    while (directory := os.path.dirname(directory)) != base.rstrip("/"):  # noqa: PTH120
        try:
            os.rmdir(directory)  # noqa: PTH106
        except FileNotFoundError:
            continue  # another container's removal was faster
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            return  # other containers live there
