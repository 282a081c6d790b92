"""This machine as one more host of the guests: pymigrate on its own kernel, and an sshd."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guest_lab import Lab
from guests import CLIENT_ADDRESS
from pymigrate.checkpoint import criu
from pymigrate.runtime import cgroups
from tests.cluster.cluster import PATIENCE, Machine
from tests.lab.registry import LabError

CHECKOUT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class ThisMachine:
    """A pymigrate root on this machine, in the network of a lab."""

    lab: Lab
    root: Path
    name: str = CLIENT_ADDRESS

    @property
    def kernel(self) -> str:
        """The release of its kernel."""
        return os.uname().release

    @property
    def criu(self) -> str:
        """The version of its CRIU."""
        return criu.find().version

    @property
    def cgroup(self) -> str:
        """The versions of cgroups that it has."""
        return cgroups.current_layout().kind

    def pymigrate(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `pymigrate ARGV...` on it.

        Raises:
            LabError: `check` and it failed; the message holds all it said.

        """
        said = subprocess.run(
            [*self.lab.enter("--net"), CHECKOUT / "pymigrate", "--root", self.root, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if check and said.returncode:
            raise LabError(f"here: {argv} ended with {said.returncode}\n{said.stdout}{said.stderr}")
        return said

    def pymigrate_json(self, *argv: str) -> Any:
        """Run `pymigrate --json ARGV...` on it and return the document that it printed."""
        return json.loads(self.pymigrate("--json", *argv).stdout)

    def send(self, name: str, target: Machine, *options: str) -> None:
        """Move a container from here to a guest, with a CRIU there that reads what ours writes."""
        target.choose_criu(target.newest_criu)
        config = self.lab.directory / "ssh_config"
        self.pymigrate("migrate", "--ssh-config", config, *options, name, target.name)

    def take(self, name: str, source: Machine, *options: str) -> None:
        """Move a container from a guest to here."""
        source.choose_criu(source.criu)
        remote = ("--remote-root", self.root, "--remote-command", CHECKOUT / "pymigrate")
        source.pymigrate("migrate", *remote, *options, name, f"root@{CLIENT_ADDRESS}")


@contextmanager
def sshd(lab: Lab) -> Iterator[None]:
    """Let the guests' root log in here, by the lab's keys and on the lab's network only."""
    config = lab.directory / "sshd_config"
    config.write_text(
        f"ListenAddress {CLIENT_ADDRESS}\nHostKey {lab.directory}/host\nPidFile none\n"
        f"AuthorizedKeysFile {lab.directory}/user.pub\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n"
        "KbdInteractiveAuthentication no\nPrintMotd no\nPrintLastLog no\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it
    words = ["setpriv", "--pdeathsig", "KILL", *lab.enter("--net")]
    with subprocess.Popen(
        [*words, "/usr/sbin/sshd", "-D", "-e", "-f", config],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            first = server.stderr.readline()
            if "listening" not in first:
                raise LabError(f"sshd does not start: {first}")
            yield
        finally:
            server.terminate()
