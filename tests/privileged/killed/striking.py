"""Commands that are killed at a chosen effect; see dying.py."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.privileged.tool import Tool

DYING = Path(__file__).with_name("dying.py")


def struck(tool: Tool, role: str, moment: int, words: tuple[str, ...]) -> bool:
    """Run a command that dies then, or whose supervisor does; False if it had fewer effects."""
    mark = tool.root.parent / "mark"
    mark.unlink(missing_ok=True)
    program = [sys.executable, "-I", str(DYING), role, str(moment), str(mark)]
    done = subprocess.run(
        [*program, "--root", str(tool.root), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    if role == "command":
        assert (done.returncode == -signal.SIGKILL) == mark.exists(), done
        assert mark.exists() or done.returncode == 0, done
    return mark.exists()


def moments(every: int) -> Iterator[int]:
    """Give the numbers of the effects at which to strike, without end."""
    return count(1 + every // 2, every)
