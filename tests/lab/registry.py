"""What labs leave on the machine if their owner dies, and its removal.

A lab's processes, mounts and interfaces vanish with its init, whose leash its owner holds (see
init.py). Only two things of it can stay behind: its directories in the cgroup file systems, and
its entry below /run/pymigrate-lab. The entry is written first and names the cgroups, so that the
next lab can sweep up after an owner that was killed. Entries of living owners are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

REGISTRY = Path("/run/pymigrate-lab")
PATIENCE = 10.0  # seconds for killed processes to be gone


class LabError(Exception):
    """The lab cannot do what was asked; the message says what and why."""


def start_time(pid: int) -> int | None:
    """Return when `pid` was started, in clock ticks since boot; None if there is none such."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])  # proc(5): field 22; the name may hold spaces


def own_cgroups() -> list[Path]:
    """List the directory of our own cgroup in every mounted hierarchy."""
    paths: dict[str, str] = {}  # controllers ("" for version 2) -> path in the hierarchy
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split()[:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = fields.split()[3:5]
        for controllers, path in paths.items():
            names = set(controllers.split(",")) - {""}
            of_this_mount = names <= set(options.split(",")) if kind == "cgroup" else False
            if (names and of_this_mount) or (not names and kind == "cgroup2"):
                below = os.path.relpath(path, root)
                if not below.startswith(".."):
                    found.append(Path(mount_point, below))
    return found


def base_cgroups() -> list[Path]:
    """List the directories below which a lab's cgroups are made: our own, or one above.

    On version 2 a cgroup with processes cannot hand controllers on to those below it, the root
    excepted; there we go up to one that can.
    """
    found = []
    for own in own_cgroups():
        base = own
        while (
            (base / "cgroup.type").exists()  # version 2, and not the root
            and (base / "cgroup.controllers").read_text().strip()
            and (base / "cgroup.procs").read_text()
        ):
            base = base.parent
        found.append(base)
    return found


def make_cgroup(directory: Path) -> None:
    """Make a cgroup that processes can join, with all the controllers that it can have."""
    if directory.exists():
        return
    switch = directory.parent / "cgroup.subtree_control"  # version 2
    if switch.exists():
        for controller in (directory.parent / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):  # a container that needs it will say so
                switch.write_text(f"+{controller}")
    directory.mkdir()
    if switch.exists():
        return
    for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1 lets nobody into an empty cpuset
        if (directory / setting).exists():
            (directory / setting).write_text((directory.parent / setting).read_text())


def subtree(directory: Path) -> list[Path]:
    """List a cgroup and those below it, deepest first; nothing if it is not there."""
    found = [Path(path) for path, _, _ in os.walk(directory)]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def thaw(directories: Sequence[Path]) -> None:
    """Thaw these cgroups and all below: on version 1 what is frozen does not even die."""
    for directory in directories:
        for path in reversed(subtree(directory)):
            for file, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(FileNotFoundError):  # it went while we came
                    if (path / file).exists():
                        (path / file).write_text(thawed)


def members(directories: Sequence[Path]) -> set[int]:
    """List the processes in these cgroups and all below."""
    found: set[int] = set()
    for directory in directories:
        for path in subtree(directory):
            with contextlib.suppress(OSError):
                found.update(map(int, (path / "cgroup.procs").read_text().split()))
    return found


def kill_members(directories: Sequence[Path]) -> None:
    """Kill all processes in these cgroups and wait until they are gone.

    Raises:
        LabError: some are still there after PATIENCE.

    """
    deadline = time.monotonic() + PATIENCE
    while pids := members(directories):
        thaw(directories)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError), closing_pidfd(pid) as pidfd:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], 0.2)
        if time.monotonic() > deadline:
            raise LabError(f"processes {sorted(pids)} do not die")


@contextlib.contextmanager
def closing_pidfd(pid: int) -> Iterator[int]:
    """Open a process as a file descriptor (pidfd_open(2)) for the time of the with block."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def remove_cgroups(directories: Sequence[Path]) -> None:
    """Kill what is in these cgroups, then remove them and all below."""
    kill_members(directories)
    for directory in directories:
        for path in subtree(directory):
            remove_cgroup(path)


def remove_cgroup(path: Path) -> None:
    """Remove one empty cgroup, waiting for the kernel to let go of its last process.

    Raises:
        LabError: it is still busy after PATIENCE.

    """

    def removed() -> bool:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    if not wait_for(removed, PATIENCE):
        raise LabError(f"the cgroup {path} stays busy")


def wait_for(question: Callable[[], bool], patience: float) -> bool:
    """Ask every 5 ms until the answer is yes, and say whether it was within `patience` seconds.

    For what the kernel does in its own time and gives nothing to wait on.
    """
    deadline = time.monotonic() + patience
    while not question():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.005)
    return True


class Entry:
    """One lab's line in the registry: its owner and its cgroups."""

    def __init__(self, name: str, cgroups: Sequence[Path]) -> None:
        self.name = name
        self.cgroups = list(cgroups)

    @property
    def directory(self) -> Path:
        """The entry's directory on the machine; inside the lab its file system is mounted there."""
        return REGISTRY / self.name

    @classmethod
    def make(cls, number: int) -> Entry:
        """Register lab `number` of this process, then make its cgroups."""
        name = f"{os.getpid()}.{start_time(os.getpid())}.{number}"
        entry = cls(name, [base / f"pymigrate-lab.{name}" for base in base_cgroups()])
        entry.directory.mkdir(parents=True)
        document = {"cgroups": [str(path) for path in entry.cgroups], "pid_namespace": pid_space()}
        fresh = entry.directory / "lab.json.new"
        fresh.write_text(json.dumps(document))
        fresh.replace(entry.directory / "lab.json")
        for directory in entry.cgroups:
            make_cgroup(directory)
        return entry

    def place(self, name: str) -> list[Path]:
        """Make the cgroups of a place, unless they are there; return those for its processes.

        These are called "system" and are below the place's own, so that containers can be beside
        them: see base_cgroups().
        """
        for directory in self.cgroups:
            make_cgroup(directory / name)
            make_cgroup(directory / name / "system")
        return [directory / name / "system" for directory in self.cgroups]

    def remove(self) -> None:
        """Remove all that the entry names, then the entry. May be repeated."""
        remove_cgroups(self.cgroups)
        for file in ("lab.json", "lab.json.new"):
            (self.directory / file).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.directory.rmdir()
        with contextlib.suppress(OSError):  # another lab's entry is there
            REGISTRY.rmdir()


def pid_space() -> str:
    """Name our PID namespace: elsewhere the owner's number would mean another process."""
    return str(Path("/proc/self/ns/pid").readlink())


def sweep() -> list[str]:
    """Remove the labs whose owner is dead; return their names."""
    swept = []
    for directory in sorted(REGISTRY.glob("*.*.*")):
        pid, started, _ = directory.name.split(".")
        if start_time(int(pid)) == int(started):
            continue
        try:
            document = json.loads((directory / "lab.json").read_text())
        except FileNotFoundError:
            document = {"cgroups": [], "pid_namespace": pid_space()}
        if document["pid_namespace"] != pid_space():
            continue
        Entry(directory.name, [Path(path) for path in document["cgroups"]]).remove()
        swept.append(directory.name)
    return swept
