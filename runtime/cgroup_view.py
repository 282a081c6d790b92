"""A container's own cgroup, as it sees it at /sys/fs/cgroup, after a restore.

CRIU is told to leave these mounts out: another host has other hierarchies, and CRIU saves and
brings back by tar the tmpfs that holds those of v1. They are made anew, of what this host has, in
the restored processes' mount namespace, while these are held.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Protocol

from pymigrate.runtime import mounting, mounts, syscalls
from pymigrate.runtime.settings import Spec


class Kernel(mounting.Kernel, Protocol):
    """The calls that showing takes; see runtime/syscalls.py."""

    def setns(self, fd: int, kind: int) -> None:
        """See setns(2)."""


def show(spec: Spec, places: Mapping[str, str], pid: int, kernel: Kernel = syscalls) -> None:
    """Mount the cgroup of ``places`` (Cgroup.places) where the settings say, for a held process.

    The caller must be single-threaded, and is in that process's mounts meanwhile. OSError or
    HostError on failure.
    """
    operations = mounts.cgroup_operations(spec, places)
    if not operations:
        return
    with ExitStack() as opened:

        def held(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        # Sources are the host's paths.
        trees = {
            index: held(mounting.make_tree(each, kernel))
            for index, each in enumerate(operations)
            if isinstance(each, mounts.Bind)
        }
        flags = os.O_RDONLY | os.O_CLOEXEC
        theirs = held(os.open(f"/proc/{pid}/ns/mnt", flags))
        ours = held(os.open("/proc/self/ns/mnt", flags))
        our_root = held(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        kernel.setns(theirs, syscalls.CLONE_NEWNS)
        try:
            root = held(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            for index, each in enumerate(operations):
                mounting.execute(each, root, trees.get(index), kernel)
        finally:
            kernel.setns(ours, syscalls.CLONE_NEWNS)
            os.fchdir(our_root)  # which may be another than the namespace's
            os.chroot(".")
