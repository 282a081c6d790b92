"""A small library that is preloaded into CRIU for a dump (preload.c), and has two tasks there.

**Limits.** CRIU reads the limits of each process by prlimit(2), which for a process of another user
needs CAP_SYS_RESOURCE. Roots of rented machines often lack it, and /proc/PID/limits shows the same
to anybody. So where it is missing, the library reads them from there.

A seccomp filter whose listener answers for the kernel does not do: a process that has a filter may
neither suspend nor read those of the processes that it traces, as CRIU must (kernel/ptrace.c,
check_ptrace_options(); kernel/seccomp.c, seccomp_get_filter()).

**Hidden memory.** In a lazy dump CRIU puts every page of private memory into a pipe, two
descriptors a MiB, for a server that nobody asks, since we read the memory ourselves. So it is not
shown what `hidden_memory` lists: the table is in a file that CRIU inherits, empty until the
processes are frozen.

It is compiled when a machine is set up: ``python -m pymigrate.checkpoint.preload``. Without it
both are as CRIU does them.
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
LIBRARY = Path("/opt/pymigrate/lib/preload.so")
SOURCE = Path(__file__).with_name("preload.c")
TABLE = "PYMIGRATE_HIDDEN"
"""In CRIU's environment: the number of the descriptor that has the table of hidden memory."""
COMPILERS = ("tcc", "cc", "gcc", "clang")
"""Any of them will do; tcc is the smallest package."""


def needed(status: str | None = None) -> bool:
    """Tell whether we lack the capability that CRIU needs, from the text of /proc/self/status."""
    text = status or Path("/proc/self/status").read_text(encoding="ascii")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return effective is not None and not int(effective[1], 16) >> CAP_SYS_RESOURCE & 1


def wrapped(command: Sequence[str], table: int | None = None) -> list[str]:
    """Return the command with the library preloaded, if it is there and has something to do.

    ``table`` is the number that the descriptor of the table has in the command; None: nothing is
    hidden from it. Without the library, processes of root can be dumped all the same.
    """
    if not is_here() or not (needed() or table is not None):
        return list(command)
    named = [] if table is None else [f"{TABLE}={table}"]
    return ["/usr/bin/env", f"LD_PRELOAD={LIBRARY}", *named, *command]


def is_here() -> bool:
    """Say whether the set-up made the library."""
    return LIBRARY.exists()


def build(library: Path = LIBRARY) -> None:
    """Compile the library, and replace the one that is there as a whole.

    Raises:
        MissingFeature: there is no compiler, or it does not know this machine.

    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise MissingFeature(
            f"there is no C compiler for {library.name}, without which a container with much memory"
            " is frozen for longer, and one of users other than root's cannot be checkpointed where"
            " root lacks CAP_SYS_RESOURCE",
            hint="apt-get install tcc",
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
            hint="apt-get install tcc",
        )
    fresh.replace(library)


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
