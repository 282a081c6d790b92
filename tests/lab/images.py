"""Images for the lab, bootstrapped once per machine and week, and lent to hosts at no cost."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.lab.host import REPOSITORY, Host, script
from tests.lab.registry import LabError

CACHE = Path("/var/cache/pymigrate-lab")


@dataclass(frozen=True)
class CachedImage:
    """An image in a pymigrate root of its own, which nobody writes to."""

    name: str
    root: Path

    @property
    def layers(self) -> list[str]:
        """The directories of its layers, by name."""
        return sorted(path.name for path in (self.root / "images" / "layers").iterdir())


def bootstrap(name: str, packages: Sequence[str]) -> CachedImage:
    """Return a Debian image with these packages; made by `pymigrate image bootstrap` if need be.

    Raises:
        LabError: it cannot be made; the message holds what was said.

    """
    cached = place(name, packages)
    if (cached.root / "complete").exists():
        return cached
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with locked(CACHE / "lock"):
        if (cached.root / "complete").exists():
            return cached
        for stale in CACHE.glob(f"{name}-*"):  # of other weeks, or half made
            shutil.rmtree(stale)
        make(cached, packages)
    return cached


def make(cached: CachedImage, packages: Sequence[str]) -> None:
    """Make the image; what is half made has no file `complete`."""
    command = [str(REPOSITORY / "pymigrate"), "--root", str(cached.root), "image", "bootstrap"]
    said = subprocess.run(
        [*command, "--include", ",".join(packages), cached.name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if said.returncode:
        raise LabError(f"cannot make the image {cached.name}:\n{said.stdout}")
    (cached.root / "complete").touch()


def place(name: str, packages: Sequence[str]) -> CachedImage:
    """Say where the image is or would be: its key is of all that decides what is in it."""
    release = re.search("VERSION_CODENAME=(.*)", Path("/etc/os-release").read_text())
    year, week, _ = datetime.now(UTC).isocalendar()
    parts = [*sorted(packages), release[1] if release else "", platform.machine(), year, week]
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    return CachedImage(name, CACHE / f"{name}-{key}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, flock(2), for the time of the with block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lend(cached: CachedImage, host: Host) -> None:
    """Let a host have the image: its layers are bound into its store, read-only.

    A host that was off forgets it, and its store cannot remove it.
    """
    layers = host.root / "images" / "layers"
    commands: list[list[str | Path]] = [["mkdir", "-p", layers]]
    for name in cached.layers:
        layer = layers / name
        commands += [
            ["mkdir", "-p", layer],
            ["mount", "-n", "--bind", cached.root / "images" / "layers" / name, layer],
            ["mount", "-n", "-o", "remount,bind,ro", layer],
        ]
    commands.append(
        ["cp", cached.root / "images" / "index.json", host.root / "images" / "index.json"]
    )
    host.run(["sh", "-euc", "umask 077\n" + script(*commands)])
