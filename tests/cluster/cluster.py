"""Guests of vagrant/lab as hosts of tests: commands in them, and a client on a third machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from guest_images import Image
from guest_lab import Lab
from guests import Guest
from tests.lab.registry import LabError

SILENT = "no sign of life"
PATIENCE = 600.0  # seconds for one command; a guest is emulated, and others use the machine
TRIES = 4  # of a move whose hosts were too slow for each other


@dataclass(frozen=True)
class Machine:
    """A guest that is up."""

    lab: Lab
    guest: Guest
    image: Image

    @property
    def name(self) -> str:
        """Its host name, which every guest knows."""
        return self.guest.name

    @property
    def criu(self) -> str:
        """The version of its CRIU."""
        return self.image.base.criu

    @property
    def cgroup(self) -> str:
        """The versions of cgroups that it has."""
        return self.guest.cgroup

    @property
    def newest_criu(self) -> str:
        """The version of the CRIU below /opt, which every guest has."""
        [prefix] = self.image.base.root.glob("opt/pymigrate/criu-*")
        return prefix.name.removeprefix("criu-").partition("-")[0]

    @property
    def kernel(self) -> str:
        """The release of its kernel, such as 6.1.0-56-cloud-amd64."""
        return self.image.base.release

    def pymigrate(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `pymigrate ARGV...` in it."""
        return self.sh(shlex.join(["pymigrate", *map(str, argv)]), check=check)

    def pymigrate_json(self, *argv: str) -> Any:
        """Run `pymigrate --json ARGV...` in it and return the document that it printed."""
        return json.loads(self.pymigrate("--json", *argv).stdout)

    def sh(self, text: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell script in it.

        Raises:
            LabError: `check` and it failed; the message holds all it said.

        """
        said = self.lab.run(self.guest, [text], timeout=PATIENCE)
        if check and said.returncode:
            raise LabError(
                f"on {self.name}: {text} ended with {said.returncode}\n{said.stdout}{said.stderr}"
            )
        return said

    def migrate(self, names: str, target: Machine, mode: str, *options: str) -> str:
        """Move containers, with the CRIU at the target that reads what ours writes.

        Return the mode that it came to.

        Raises:
            LabError: they did not move; the message holds all that was said.

        """
        self.choose_criu(self.criu)
        target.choose_criu(target.criu_for(self))
        command = ("--json", "migrate", "--mode", mode, *options, names, target.name)
        for _ in range(TRIES):
            said = self.pymigrate(*command, check=False)
            if not said.returncode:
                return mode_of(said.stdout)
            # Two emulated machines on busy cores may be slower than a living peer is taken to be.
            # Such a move has been rolled back, and may be repeated.
            if SILENT not in said.stderr:
                break
        raise LabError(f"{self.name}: {names} did not move to {target.name}:\n{said.stderr}")

    def choose_criu(self, version: str) -> None:
        """Let pymigrate use the CRIU of this version, the release's own or the newest."""
        self.sh(f"choose-criu {'newest' if version == self.newest_criu else 'own'}")

    def criu_for(self, source: Machine) -> str:
        """Return the version of our CRIU with which we take containers from there."""
        older = numbers(self.criu) < numbers(source.criu)
        return self.newest_criu if older else self.criu

    def give(self, file: Path, where: str) -> None:
        """Copy a file into it."""
        with file.open("rb") as content:
            subprocess.run(
                self.lab.ssh(self.guest, [f"cat > {shlex.quote(where)}"]),
                stdin=content,
                timeout=PATIENCE,
                check=True,
            )


def mode_of(report: str) -> str:
    """Return how memory went, from what `migrate --json` printed of one container or several."""
    document = json.loads(report)
    [mode] = {each["mode"] for each in document.get("containers", [document])}
    return str(mode)


def numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, which say what its images are like."""
    return tuple(int(number) for number in version.split(".")[:2])


@dataclass(frozen=True)
class Outside:
    """A third machine on the guests' network: this one's programs, the lab's interfaces."""

    lab: Lab

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | IO[Any] | None,
        stderr: int | IO[Any] | None,
    ) -> subprocess.Popen[str]:
        """Start a command there, with its standard output in a pipe."""
        return subprocess.Popen(
            [*self.lab.enter("--net"), *[os.fspath(word) for word in argv]],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
