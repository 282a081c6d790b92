"""Cgroup file systems in an ordinary directory, with the rules of the kernel that we rely on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pymigrate.runtime import cgroups_files
from pymigrate.runtime.cgroups_layout import Hierarchy, Layout

V1_FILES = {
    "cpu": {"cpu.shares": "1024", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "devices": {"devices.allow": "", "devices.deny": ""},
    "freezer": {"freezer.state": "THAWED"},
    "memory": {
        "memory.limit_in_bytes": str(1 << 62),
        "memory.memsw.limit_in_bytes": str(1 << 62),
        "memory.soft_limit_in_bytes": str(1 << 62),
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
        "memory.usage_in_bytes": "4096",
    },
    "pids": {"pids.max": "max", "pids.current": "0"},
}
V2_FILES = {
    "cpu": {"cpu.max": "max 100000", "cpu.weight": "100"},
    "cpuset": {"cpuset.cpus": ""},
    "hugetlb": {"hugetlb.2MB.max": "max", "hugetlb.2MB.rsvd.max": "max"},
    "memory": {
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.low": "0",
        "memory.events": "oom_kill 0",
        "memory.current": "4096",
    },
    "pids": {"pids.max": "max", "pids.current": "0"},
}


class Cgroupfs:
    """Stands between the code and a directory: makes files as the kernel does, and reacts."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer mkdir, rmdir and writes below ``root``."""
        self.root = root
        self.pid = 4711  # who writes "0" to join
        self.fail_on = ""  # a write to a path that ends so is refused with EIO
        self.stuck = False  # whether a process cannot be frozen now
        self.written: list[tuple[str, str]] = []
        self._v1: dict[str, str] = {}  # mount point to controller
        self._mkdir, self._rmdir, self._write = os.mkdir, os.rmdir, cgroups_files.write
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        monkeypatch.setattr(cgroups_files, "write", self.write)

    def mount_v1(self, *controllers: str) -> Layout:
        """Mount each controller by itself."""
        hierarchies = []
        for controller in controllers:
            point = str(self.root / controller)
            self._v1[point] = controller
            self.mkdir(point)
            if controller == "cpuset":
                for file, value in (("cpuset.cpus", "0-1"), ("cpuset.mems", "0")):
                    self._write(point, file, value)
            hierarchies.append(Hierarchy(1, frozenset({controller}), point, point))
        return Layout(tuple(hierarchies))

    def mount_v2(self, *controllers: str) -> Layout:
        """Mount the unified hierarchy with these controllers at its root."""
        point = str(self.root / "unified")
        self.mkdir(point)
        Path(point, "cgroup.type").unlink()  # only the root has none
        self._write(point, "cgroup.controllers", " ".join(controllers))
        return Layout((Hierarchy(2, frozenset(), point, point),))

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """Make a directory, and in it what the kernel offers."""
        self._mkdir(path, mode)
        controller = next(
            (name for point, name in self._v1.items() if f"{path}/".startswith(f"{point}/")), ""
        )
        parent = Path(path).parent / "cgroup.subtree_control"
        enabled = parent.read_text().split() if parent.exists() else []
        files = {"cgroup.procs": ""}
        if controller:
            files |= {"tasks": "", **V1_FILES[controller]}
        else:
            files |= {
                "cgroup.controllers": " ".join(enabled),
                "cgroup.events": "populated 0\nfrozen 0",
                "cgroup.freeze": "0",
                "cgroup.kill": "",
                "cgroup.subtree_control": "",
                "cgroup.type": "domain",
            }
            for name in enabled:
                files |= V2_FILES[name]
        for file, value in files.items():
            Path(path, file).write_text(value)

    def rmdir(self, path: str) -> None:
        """Remove a directory unless it has processes or directories in it."""
        if Path(path, "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "in use", path)
        if any(entry.is_dir() for entry in Path(path).iterdir()):
            raise OSError(errno.EBUSY, "in use", path)
        for entry in list(Path(path).iterdir()):
            entry.unlink()
        self._rmdir(path)

    def write(self, directory: str, file: str, value: str) -> None:
        """Write as the kernel would, with what follows from it."""
        path = Path(directory, file)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        if self.fail_on and str(path).endswith(self.fail_on):
            raise OSError(errno.EIO, "made to fail", str(path))
        self.written.append((file, value))
        match file:
            case "cgroup.procs" | "tasks":
                self._join(directory, value)
            case "cgroup.subtree_control":
                self._enable(directory, value.removeprefix("+"))
            case "cgroup.freeze":
                path.write_text(value)
                self._event(directory, "frozen", "0" if self.stuck else value)
            case "freezer.state":
                path.write_text("FREEZING" if self.stuck and value == "FROZEN" else value)
            case "cgroup.kill":
                Path(directory, "cgroup.procs").write_text("")
                self._event(directory, "populated", "0")
            case "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes":
                path.write_text(value if int(value) >= 0 else str(1 << 62))
                sizes = [
                    int(Path(directory, name).read_text())
                    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
                ]
                if sizes[0] > sizes[1]:
                    raise OSError(errno.EINVAL, "memory above memory and swap", str(path))
            case _:
                path.write_text(value)

    def processes(self, directory: str) -> list[int]:
        """Return who is in a directory."""
        return [int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()]

    def _join(self, directory: str, value: str) -> None:
        cpus = Path(directory, "cpuset.cpus")
        if Path(directory, "tasks").exists() and cpus.exists() and not cpus.read_text():
            raise OSError(errno.ENOSPC, "no cpus", directory)
        with Path(directory, "cgroup.procs").open("a") as stream:
            stream.write(f"{self.pid if value == '0' else value}\n")
        if Path(directory, "cgroup.events").exists():
            self._event(directory, "populated", "1")

    def _enable(self, directory: str, controller: str) -> None:
        if Path(directory, "cgroup.type").exists() and self.processes(directory):
            raise OSError(errno.EBUSY, "no internal processes", directory)
        path = Path(directory, "cgroup.subtree_control")
        path.write_text(" ".join([*path.read_text().split(), controller]))

    def _event(self, directory: str, key: str, value: str) -> None:
        path = Path(directory, "cgroup.events")
        lines = [line for line in path.read_text().splitlines() if not line.startswith(key)]
        path.write_text("\n".join([*lines, f"{key} {value}"]))
