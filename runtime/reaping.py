"""``--init``: a first process that reaps orphans and passes signals on, before the command itself.

The kernel gives orphans to process 1 of a PID namespace, and does not deliver to it what it has no
handler for. Few programs see to either, so a small one that does becomes process 1. It is one of
those that distributions package for this (tini, catatonit), without libraries, and is copied into
the container's own files: so it is the same one after a move to a host that has another or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pymigrate.runtime.errors import MissingFeature

INSIDE = "/.pymigrate-init"
# At the root: a directory on the way, such as /sbin, may be a link in the image.
_PLACES = (
    "/usr/bin/tini-static",
    "/usr/libexec/podman/catatonit",
    "/usr/bin/catatonit",
    "/usr/libexec/docker/docker-init",
    "/usr/bin/docker-init",
)


def find(places: Sequence[str] = _PLACES) -> Path:
    """Return this host's init for containers.

    Raises:
        MissingFeature: there is none.

    """
    for place in places:
        if Path(place).is_file():
            return Path(place)
    raise MissingFeature(
        "--init: this host has no init for containers; nothing was made",
        hint="apt-get install tini",
    )


def before(program: str, command: Sequence[str]) -> tuple[str, ...]:
    """Return the words that run a command below the init."""
    return (program, "--", *command)


def put(program: Path, upper: Path) -> None:
    """Copy it into a container's own files; whoever its users are, they may run it."""
    import shutil  # loads what few starts need

    inside = upper / INSIDE.lstrip("/")
    shutil.copyfile(program, inside)
    inside.chmod(0o755)
