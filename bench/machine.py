"""What the numbers were measured on, without anything that names the machine itself."""

from __future__ import annotations

import mmap
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Machine:
    """A machine by its kind; two of the same kind are not told apart."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    system: str

    @classmethod
    def here(cls) -> Machine:
        """Look at this one."""
        model = re.search(r"(?m)^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text())
        return cls(
            cpu=model[1] if model else platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=psutil.virtual_memory().total,
            kernel=os.uname().release,
            system=platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        )

    @property
    def slug(self) -> str:
        """CPU and kernel, as part of a file name."""
        cpu = re.sub(r"\((R|TM|r|tm)\)|@.*|\b(CPU|Processor)\b", "", self.cpu)
        return "-".join(re.findall(r"[a-z0-9.]+", f"{cpu} {self.kernel}".lower()))

    def __str__(self) -> str:
        gib = self.memory_bytes / 2**30
        return f"{self.cpu}, {self.cores} cores, {gib:.0f} GiB, {self.system}, {self.kernel}"


def warm(size: int) -> None:
    """Fill so much memory and give it back, so that the kernel has it at hand.

    Where a virtual machine's host takes free memory back, the first touch of it is the host's time:
    see docs/measured.md.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        piece = b"x" * (1 << 20)
        for _ in range(0, size - len(piece) + 1, len(piece)):
            memory.write(piece)


def busy(seconds: float = 1.0) -> float:
    """Watch the machine for so long; return the share of its CPUs, 0 to 1, that others use."""
    return psutil.cpu_percent(interval=seconds) / 100


def commit() -> str:
    """Name the state of this checkout, such as "1a2b3c4 with changes"."""
    git = ["git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        return "unknown"
    changes = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    return head.stdout.strip() + (" with changes" if changes.stdout else "")
