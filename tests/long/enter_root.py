"""Be the first process of a machine whose disk is a directory: mount, pivot, run, reap, end.

Started by `unshare --mount --pid --fork` with the new root, the directories to show in it
read-only, a "--" and the command. When the command ends, so does this process, and the kernel
kills whatever is left in its PID namespace.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILESYSTEMS = (
    ("proc", "proc", "nosuid,nodev,noexec"),
    ("sysfs", "sys", "nosuid,nodev,noexec"),
    ("devtmpfs", "dev", "nosuid"),
    ("devpts", "dev/pts", "newinstance,ptmxmode=0666,mode=620,gid=5"),
    ("tmpfs", "dev/shm", "nosuid,nodev"),
    ("tmpfs", "run", "nosuid,nodev,mode=755"),
    ("tmpfs", "tmp", "nosuid,nodev,mode=1777"),
)


def mount(*arguments: str) -> None:
    """Call mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def enter(root: Path, shown: list[str]) -> None:
    """Make `root` the root of this mount namespace, with the file systems that a machine has."""
    mount("--bind", str(root), str(root))  # pivot_root(2) wants a mount point
    for kind, place, options in FILESYSTEMS:
        (root / place).mkdir(parents=True, exist_ok=True)
        mount("-t", kind, "-o", options, kind, str(root / place))
    mount("--rbind", "/sys/fs/cgroup", str(root / "sys/fs/cgroup"))
    for directory in shown:
        target = root / directory.removeprefix("/")
        target.mkdir(parents=True, exist_ok=True)
        mount("--bind", "-o", "ro", directory, str(target))
    old = root / "mnt"
    subprocess.run(["pivot_root", str(root), str(old)], check=True)
    os.chdir("/")
    subprocess.run(["umount", "--lazy", "/mnt"], check=True)


def run_and_reap(command: list[str]) -> int:
    """Run the command, reap what is orphaned meanwhile, and return the command's exit status."""
    child = os.posix_spawnp(command[0], command, os.environ)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    enter(Path(sys.argv[1]), sys.argv[2:separator])
    sys.exit(run_and_reap(sys.argv[separator + 1 :]) & 0xFF)
