"""Say in one sentence why CRIU failed, and what to do: its log read for people. Pure.

The answer that CRIU sends has its first error line, which may be a harmless one; the cause is in
its log, in words that a row of `causes.py` recognises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pymigrate.checkpoint.causes import CAUSES
from pymigrate.runtime.values import dataclass

MAX_LOG = 4 << 20
"""Bytes of a log that are read: its end, where a failure shows."""

HARMLESS = (
    # Without CAP_SYS_RESOURCE CRIU keeps the limit that it has, and goes on.
    "Can't setup RLIMIT_NOFILE for self",
    # nft removes a table of an earlier try, which there is none of.
    "Could not process rule: No such file or directory",
    # CRIU looks whether the kernel has TUN devices; few containers have one.
    "tun: Unable to create tun",
)


@dataclass(frozen=True)
class Diagnosis:
    """CRIU's own line, what it means, and what can be done; the last two may be empty."""

    line: str
    cause: str = ""
    remedy: str = ""
    name: str = ""  # of the row

    def sentence(self, what: str) -> str:
        """Put it behind what failed: ``web: criu could not …: <cause> (criu: <its line>)``."""
        if not self.line:
            return what
        if not self.cause:
            return f"{what}: {self.line}"
        return f"{what}: {self.cause} (criu: {self.line})"


_ERROR = re.compile(r"^(?:\(\d+\.\d+\))?\s*(?:pie: \d+: |\d+: )*\s*Error(?: \([^)]*\))?:\s*(.*)$")


def explain(log: str) -> Diagnosis:
    """Find the cause in a log of CRIU: the first error line that is not harmless.

    If no row knows that line, later ones are tried: CRIU tells the cause after its symptom where
    the failing function's caller knows more.
    """
    lines = list(_error_lines(log))
    for line in lines:
        for row in CAUSES:
            found = re.search(row.pattern, line)
            if found:
                words = ("", *(group or "" for group in found.groups()))
                return Diagnosis(
                    line, row.cause.format(*words), row.remedy.format(*words), row.name
                )
    return Diagnosis(lines[0]) if lines else Diagnosis("")


def explain_file(path: Path) -> Diagnosis:
    """Read a log, or its end if it is long, and explain it; no log, no diagnosis."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - MAX_LOG))
            return explain(stream.read(MAX_LOG).decode(errors="replace"))
    except FileNotFoundError:
        return Diagnosis("")


def _error_lines(log: str) -> Iterator[str]:
    for line in log.splitlines():
        found = _ERROR.match(line)
        if found and not any(words in line for words in HARMLESS):
            # Names of files and programs are in it, which the container chose.
            yield "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in found[1].strip())
