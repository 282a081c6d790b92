"""This machine as one more host of the guests: pymigrate on its own kernel, and an sshd.

What runs of it is in the lab's namespaces, and what it writes is in the lab's directory: it ends
with the lab, however that ends. Only its cgroups are this machine's; they are registered as those
of tests/lab are, and so swept up by the next run if this one is killed.
"""

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
from tests.cluster.cluster import PATIENCE, Machine, mode_of
from tests.lab.host import JOIN, Process
from tests.lab.registry import Entry, LabError

CHECKOUT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class ThisMachine:
    """A pymigrate root on this machine, in the namespaces of a lab and below cgroups of its own."""

    lab: Lab
    entry: Entry
    name: str = CLIENT_ADDRESS

    @property
    def root(self) -> Path:
        """Where pymigrate keeps everything."""
        return self.lab.directory / "this-machine"

    def enter(self) -> list[str]:
        """Return the words before a command that is to run as on this host."""
        files = [str(cgroup / "cgroup.procs") for cgroup in self.entry.place("this-machine")]
        namespaces = self.lab.enter("--net", "--mount", "--pid")
        return ["sh", "-c", JOIN, "enter", *files, "--", *namespaces]

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
            [*self.enter(), CHECKOUT / "pymigrate", "--root", self.root, *argv],
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

    def send(self, name: str, target: Machine, *options: str) -> str:
        """Move a container from here to a guest, with a CRIU there that reads what ours writes.

        Return the mode that it came to.
        """
        target.choose_criu(target.newest_criu)
        config = self.lab.directory / "ssh_config"
        words = ("--json", "migrate", "--ssh-config")
        return mode_of(self.pymigrate(*words, config, *options, name, target.name).stdout)

    def take(self, name: str, source: Machine, *options: str) -> str:
        """Move a container from a guest to here. Return the mode that it came to."""
        source.choose_criu(source.criu)
        remote: tuple[str | Path, ...] = (
            "--remote-root",
            self.root,
            "--remote-command",
            CHECKOUT / "pymigrate",
        )
        words = (*remote, *options, name, f"root@{CLIENT_ADDRESS}")
        return mode_of(source.pymigrate("--json", "migrate", *words).stdout)


@contextmanager
def this_machine(lab: Lab) -> Iterator[ThisMachine]:
    """Make this machine a host of the lab for the time of the with block."""
    entry = Entry.make(1)
    try:
        here = ThisMachine(lab, entry)
        with sshd(here):
            yield here
            for row in here.pymigrate_json("ps", "-a"):
                here.pymigrate("rm", "-f", row["name"])
    finally:
        entry.remove()


@contextmanager
def sshd(here: ThisMachine) -> Iterator[None]:
    """Let the guests' root log in here, by the lab's keys and on the lab's network only."""
    directory = here.lab.directory
    config = directory / "sshd_config"
    config.write_text(
        f"ListenAddress {CLIENT_ADDRESS}\nHostKey {directory}/host\nPidFile none\n"
        f"AuthorizedKeysFile {directory}/user.pub\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n"
        "KbdInteractiveAuthentication no\nPrintMotd no\nPrintLastLog no\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it
    with Process(
        [*here.enter(), "/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
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
