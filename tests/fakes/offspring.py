"""The children of the test process itself."""

from __future__ import annotations

from pathlib import Path

LASTING = "sshd"
"""What a fixture of the whole session keeps as a child."""


def offspring() -> list[str]:
    """Return "PID NAME" of every child, dead ones too, but for those that last for the session."""
    found = []
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in listing.read_text().split():
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name != LASTING:
                found.append(f"{pid} {name}")
    return found
