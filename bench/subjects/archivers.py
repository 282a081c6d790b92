"""Tools that keep directories: what they make of CRIU's images, once these are on the disk.

Their times leave out the dump itself, which pymigrate's and podman's have in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from bench.subjects.subject import fresh, program, size, version
from tests.lab import Host

STORES = Path("/srv/bench/stores")
SECRET = "nothing to hide"  # noqa: S105 - restic has no repository without one


class Archiver(Protocol):
    """Keeps a directory as it is, time after time."""

    name: str
    variant: str

    def versions(self) -> dict[str, str]:
        """Return the version of each program that takes part."""

    def prepare(self) -> None:
        """Make an empty store."""

    def keep(self, directory: Path) -> None:
        """Add the directory as it is now."""

    def bring_back(self, into: Path) -> None:
        """Put what was kept last into an empty directory."""

    def size(self) -> int:
        """Return the bytes of the store."""


class Tar:
    """One compressed file for each time."""

    name = "tar"
    variant = "zstd"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._store = STORES / self.name
        self._count = 0

    def versions(self) -> dict[str, str]:
        """Return the versions of both."""
        return {
            "tar": version(self._host, program("tar"), "--version"),
            "zstd": version(self._host, program("zstd"), "--version"),
        }

    def prepare(self) -> None:
        """Make the directory."""
        fresh(self._host, self._store)

    def _file(self) -> Path:
        return self._store / f"{self._count}.tar.zst"

    def keep(self, directory: Path) -> None:
        """Pack all of it, with as many threads as there are CPUs."""
        self._count += 1
        self._host.sh(f"tar -C {directory} -cf - . | zstd -q -T0 -3 -o {self._file()}")

    def bring_back(self, into: Path) -> None:
        """Unpack."""
        self._host.sh(f"zstd -q -dc {self._file()} | tar -C {into} -xf -")

    def size(self) -> int:
        """Return the bytes of all files."""
        return size(self._host, self._store)


class Restic:
    """A repository of version 2, whose chunks are cut by content, compressed and encrypted."""

    name = "restic"
    variant = "auto"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._store = STORES / self.name

    def _run(self, *words: str | Path, directory: str | Path = "/") -> None:
        environment = {"RESTIC_PASSWORD": SECRET, "RESTIC_CACHE_DIR": "/run/restic"}
        argv = ["restic", "--quiet", "--repo", self._store, *words]
        self._host.run(argv, env=environment, directory=directory, timeout=600)

    def versions(self) -> dict[str, str]:
        """Return its version."""
        return {"restic": version(self._host, program("restic"), "version")}

    def prepare(self) -> None:
        """Make the repository."""
        fresh(self._host, self._store)
        self._run("init", "--repository-version", "2")

    def keep(self, directory: Path) -> None:
        """Back it up. The files are new each time, so it reads all of them."""
        self._run("backup", "--force", ".", directory=directory)

    def bring_back(self, into: Path) -> None:
        """Restore the newest."""
        self._run("restore", "latest", "--target", into)

    def size(self) -> int:
        """Return the bytes of the repository."""
        return size(self._host, self._store)


class Borg:
    """A repository whose chunks are cut by content and compressed, not encrypted."""

    name = "borg"
    variant = "zstd"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._store = STORES / self.name
        self._count = 0

    def _run(self, *words: str | Path, directory: str | Path = "/") -> None:
        environment = {
            "BORG_BASE_DIR": "/run/borg",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }
        self._host.run(["borg", *words], env=environment, directory=directory, timeout=600)

    def versions(self) -> dict[str, str]:
        """Return its version."""
        return {"borg": version(self._host, program("borg"), "--version")}

    def prepare(self) -> None:
        """Make the repository."""
        fresh(self._host, self._store)
        self._run("init", "--encryption", "none", self._store)

    def keep(self, directory: Path) -> None:
        """Add an archive. The files are new each time, so it reads all of them."""
        self._count += 1
        self._run(
            *("create", "--compression", "zstd", "--files-cache", "disabled"),
            f"{self._store}::{self._count}",
            ".",
            directory=directory,
        )

    def bring_back(self, into: Path) -> None:
        """Extract the newest."""
        self._run("extract", f"{self._store}::{self._count}", directory=into)

    def size(self) -> int:
        """Return the bytes of the repository."""
        return size(self._host, self._store)
