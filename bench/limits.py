"""A limit of the kernel that a peer needs higher than it is: raised while it works, then put back.

It is put back by a process of its own that waits for the end of its standard input, so also when
the benchmark is killed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import BenchError

PIPE_SIZE = Path("/proc/sys/fs/pipe-max-size")  # bytes, of any pipe without CAP_SYS_RESOURCE
READY = "raised\n"

# Raises $1 to $3; puts $2 back at the end of its input, unless somebody set it since.
GUARD = """\
echo "$3" > "$1" || exit 0
echo raised
cat
[ "$(cat "$1")" != "$3" ] || echo "$2" > "$1"
"""


@contextmanager
def raised(limit: Path, least: int) -> Iterator[None]:
    """Have a limit, a file of one number, be at least so much while the block runs; never less.

    Raises:
        BenchError: it cannot be raised, or was not put back.

    """
    before = int(limit.read_text())
    if before >= least:
        yield
        return
    # In a session of its own, for Ctrl-C and a killed group are just when it is needed.
    with subprocess.Popen(
        ["sh", "-c", GUARD, "sh", str(limit), str(before), str(least)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as guard:
        assert guard.stdin is not None
        assert guard.stdout is not None
        try:
            if guard.stdout.readline() != READY:
                raise BenchError(f"{limit} is {before} and cannot be raised to {least}")
            yield
        finally:
            guard.stdin.close()
            if guard.wait():
                raise BenchError(f"{limit} was {before} and could not be put back")
