"""A kernel that records what it is asked, and fails the n-th call."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from pymigrate.runtime import syscalls


@dataclass
class RecordingKernel:
    """Satisfies the Kernel protocols of runtime/.

    Without ``real`` nothing happens to the machine; calls that return a descriptor return a real
    one, so that a leak shows in /proc/self/fd. With ``real`` (runtime.syscalls) calls are passed
    on. The call numbered ``fails_at``, from 0, raises EIO; numbers go on in forked children.
    """

    real: ModuleType | None = None
    fails_at: int | None = None
    missing: frozenset[str] = frozenset()
    calls: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    def names(self) -> list[str]:
        """Return the names of the calls, in order."""
        return [name for name, _ in self.calls]

    def _do(self, name: str, *arguments: object) -> int:
        number = len(self.calls)
        self.calls.append((name, arguments))
        if number == self.fails_at:
            raise OSError(errno.EIO, f"{name}: injected at call {number}")
        if self.real is None:
            return 0
        result = getattr(self.real, name)(*arguments)
        return int(result or 0)

    def _opens(self, name: str, *arguments: object, path: str = "/") -> int:
        result = self._do(name, *arguments)
        return result if self.real else os.open(path, os.O_PATH | os.O_CLOEXEC)

    def capset(self, effective: int, permitted: int, inheritable: int) -> None:
        """See capset(2)."""
        self._do("capset", effective, permitted, inheritable)

    def clone3(self, flags: int, exit_signal: int, cgroup: int | None = None) -> int:
        """See clone(2)."""
        return self._do("clone3", flags, exit_signal, cgroup)

    def close_range(self, first: int, last: int, flags: int = 0) -> None:
        """See close_range(2)."""
        self._do("close_range", first, last, flags)

    def fsconfig(
        self, fd: int, command: int, key: str | None, value: str | None = None, aux: int = 0
    ) -> None:
        """See fsconfig(2)."""
        self._do("fsconfig", fd, command, key, value, aux)

    def fsmount(self, fd: int, flags: int, attributes: int) -> int:
        """See fsmount(2)."""
        return self._opens("fsmount", fd, flags, attributes)

    def fsopen(self, filesystem: str, flags: int = 1) -> int:
        """See fsopen(2)."""
        return self._opens("fsopen", filesystem, flags)

    def mkdirat(self, fd: int, path: str, mode: int) -> None:
        """See mkdirat(2)."""
        self._do("mkdirat", fd, path, mode)

    def mknodat(self, fd: int, path: str, mode: int, device: int = 0) -> None:
        """See mknodat(2)."""
        self._do("mknodat", fd, path, mode, device)

    def mount(
        self,
        source: str | None,
        target: str,
        filesystem: str | None,
        flags: int = 0,
        data: str | None = None,
    ) -> None:
        """See mount(2)."""
        self._do("mount", source, target, filesystem, flags, data)

    def mount_setattr(
        self,
        fd: int,
        path: str,
        flags: int,
        attr_set: int = 0,
        attr_clr: int = 0,
        propagation: int = 0,
        userns_fd: int = 0,
    ) -> None:
        """See mount_setattr(2)."""
        self._do("mount_setattr", fd, path, flags, attr_set, attr_clr, propagation, userns_fd)

    def move_mount(
        self, from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int
    ) -> None:
        """See move_mount(2)."""
        self._do("move_mount", from_fd, from_path, to_fd, to_path, flags)

    def open_tree(self, fd: int, path: str, flags: int) -> int:
        """See open_tree(2)."""
        return self._opens("open_tree", fd, path, flags)

    def openat2(self, fd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
        """See openat2(2)."""
        if self.real is None and path in self.missing:
            self.calls.append(("openat2", (fd, path, flags, mode, resolve)))
            self.missing -= {path}
            raise FileNotFoundError(errno.ENOENT, "openat2: No such file or directory", path)
        here = "/dev/null" if path in ("dev/null", "proc/keys") else "/"
        return self._opens("openat2", fd, path, flags, mode, resolve, path=here)

    def pivot_root(self, new_root: str, put_old: str) -> None:
        """See pivot_root(2)."""
        self._do("pivot_root", new_root, put_old)

    def prctl(self, option: int, *arguments: int) -> int:
        """See prctl(2); reading the bounding set, once for each capability, is not counted."""
        if self.real is not None and option == syscalls.PR_CAPBSET_READ:
            return syscalls.prctl(option, *arguments)
        return self._do("prctl", option, *arguments)

    def seccomp(self, operation: int, flags: int, program: bytes) -> None:
        """See seccomp(2)."""
        self._do("seccomp", operation, flags, program)

    def sethostname(self, name: str) -> None:
        """See sethostname(2)."""
        self._do("sethostname", name)

    def setns(self, fd: int, kinds: int) -> None:
        """See setns(2)."""
        self._do("setns", fd, kinds)

    def symlinkat(self, target: str, fd: int, path: str) -> None:
        """See symlinkat(2)."""
        self._do("symlinkat", target, fd, path)

    def umount2(self, target: str, flags: int = 0) -> None:
        """See umount2(2)."""
        self._do("umount2", target, flags)

    def unshare(self, flags: int) -> None:
        """See unshare(2)."""
        self._do("unshare", flags)


def open_descriptors() -> set[str]:
    """Return the numbers of this process's open descriptors."""
    return {each.name for each in Path("/proc/self/fd").iterdir()}
