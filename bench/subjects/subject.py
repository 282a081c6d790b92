"""What the benchmarks ask of every subject, and the commands that all of them need."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bench.harness import BenchError
from bench.workload import Workload
from pymigrate.checkpoint import criu
from tests.lab import Host
from tests.lab.host import SYSTEM_PATH

IMAGE = "/srv/bench/image"  # the root file system that build_image() made, on every host
CHECKPOINTS = Path("/srv/bench/checkpoints")
NAME = "bench"


class Subject(Protocol):
    """A tool that runs, checkpoints and restores the workload on a host of the lab.

    Each may hold one workload at a time. What a method does is all that is timed, so it contains
    no waiting of the harness; it raises LabError or BenchError if the tool fails.
    """

    name: str
    formats: tuple[str, ...]
    """What a checkpoint can be: an archive with zstd or none, or a directory."""

    moving: str
    """How it moves a workload, for the table; empty if it does not."""

    address: str
    """Where the client finds the workload."""

    def versions(self) -> dict[str, str]:
        """Return the version of each program that takes part."""

    def prepare(self) -> None:
        """Give it the image, on both hosts."""

    def start(self) -> None:
        """Run a program that ends at once, in a container of its own that is removed."""

    def launch(self, workload: Workload) -> None:
        """Start the workload on the first host."""

    def execute(self) -> None:
        """Run a program that ends at once beside the workload, in its container."""

    def checkpoint(self, form: str) -> int:
        """Write the workload down and let it run on; return the size in bytes."""

    def remove(self) -> None:
        """End the workload wherever it is. May be repeated."""

    def restore(self) -> None:
        """Let the workload run again on the first host, from the last checkpoint."""

    def migrate(self) -> None:
        """Move the workload from the first host to the second."""

    def close(self) -> None:
        """Undo `prepare` where it reaches beyond the lab."""


def criu_program() -> str:
    """Return the CRIU that works on this kernel: the same for every subject."""
    return criu.find().path


def peer_environment() -> Mapping[str, str]:
    """Return the environment in which podman and runc find that CRIU on the PATH."""
    return {"PATH": f"{Path(criu_program()).parent}:{SYSTEM_PATH}"}


def program(name: str) -> str:
    """Find a peer's program.

    Raises:
        BenchError: it is not on this machine.

    """
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise BenchError(f"{name} is not on this machine")
    return found


def version(host: Host, *argv: str) -> str:
    """Run a command that tells a program's version, and return the version."""
    said = host.run(argv)
    found = re.search(r"\d+\.\d+[^\s,]*", said.stdout + said.stderr)
    return found[0] if found else "unknown"


def size(host: Host, path: Path) -> int:
    """Add up the bytes of a file, or of the files in a directory."""
    outside = host.outside(path)
    files = [outside] if outside.is_file() else outside.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def fresh(host: Host, path: Path) -> Path:
    """Make an empty directory, in place of one that may be there."""
    outside = host.outside(path)
    if outside.exists():
        shutil.rmtree(outside)
    outside.mkdir(parents=True)
    return path
