"""Let CRIU dump other users' processes although root lacks CAP_SYS_RESOURCE.

CRIU reads the limits of each process by prlimit(2), which for a process of another user needs that
capability. Roots of rented machines often lack it, and /proc/PID/limits shows the same to anybody.
So there, and only for dumping, a small library is preloaded into CRIU that reads them from /proc
where the kernel refuses (rlimits.c). It is compiled when a machine is set up:
``python -m pymigrate.checkpoint.rlimits``.

A seccomp filter whose listener answers for the kernel does not do: a process that has a filter may
neither suspend nor read those of the processes that it traces, as CRIU must (kernel/ptrace.c,
check_ptrace_options(); kernel/seccomp.c, seccomp_get_filter()).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pymigrate.runtime.errors import MissingFeature

CAP_SYS_RESOURCE = 24
LIBRARY = Path("/opt/pymigrate/lib/rlimits.so")
SOURCE = Path(__file__).with_name("rlimits.c")
COMPILERS = ("tcc", "cc", "gcc", "clang")
"""Any of them will do; tcc is the smallest package."""


def needed(status: str | None = None) -> bool:
    """Tell whether we lack the capability that CRIU needs, from the text of /proc/self/status."""
    text = status or Path("/proc/self/status").read_text(encoding="ascii")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return effective is not None and not int(effective[1], 16) >> CAP_SYS_RESOURCE & 1


def wrapped(command: Sequence[str], library: Path = LIBRARY) -> list[str]:
    """Return the command with the library preloaded, if that is needed and it is there.

    Without it, processes of root can still be dumped.
    """
    if not needed() or not library.exists():
        return list(command)
    return ["/usr/bin/env", f"LD_PRELOAD={library}", *command]


def build(library: Path = LIBRARY) -> None:
    """Compile the library, and replace the one that is there as a whole.

    Raises:
        MissingFeature: there is no compiler, or it does not know this machine.

    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise MissingFeature(
            "there is no C compiler, and without one processes of other users than root cannot be"
            " checkpointed here, since root lacks CAP_SYS_RESOURCE",
            hint="apt-get install tcc, or give root CAP_SYS_RESOURCE",
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    fresh = library.with_suffix(".new")
    command = [compiler, "-shared", "-nostdlib", "-fPIC", "-o", str(fresh), str(SOURCE)]
    said = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if said.returncode:
        fresh.unlink(missing_ok=True)
        raise MissingFeature(
            f"{compiler} cannot compile {SOURCE}: {said.stderr.strip()}",
            hint="give root CAP_SYS_RESOURCE",
        )
    fresh.replace(library)


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
