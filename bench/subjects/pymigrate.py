"""pymigrate, as it is in this checkout."""

from __future__ import annotations

from bench.subjects.subject import CHECKPOINTS, IMAGE, NAME, criu_program, fresh, size, version
from bench.workload import Workload
from tests.lab import Lab


class Pymigrate:
    """Containers of pymigrate, on its own bridge, with a fixed address."""

    name = "pymigrate"
    formats: tuple[str, ...] = ("zstd", "none")
    moving = "migrate"
    address = "10.88.0.10"
    mac = "02:88:0a:58:00:0a"

    def __init__(self, lab: Lab) -> None:
        self._hosts = [lab["alpha"], lab["beta"]]
        self._source, self._target = self._hosts
        self._archive = CHECKPOINTS / "pymigrate" / "archive"

    def versions(self) -> dict[str, str]:
        """Return its version and CRIU's."""
        return {
            "pymigrate": self._source.pymigrate_json("version")["pymigrate"],
            "criu": version(self._source, criu_program(), "--version"),
        }

    def prepare(self) -> None:
        """Import the image on both hosts."""
        for host in self._hosts:
            host.pymigrate("image", "import", IMAGE, NAME)

    def start(self) -> None:
        """Run `true`."""
        self._source.pymigrate("run", "--rm", "--net", "none", NAME, "/true")

    def launch(self, workload: Workload) -> None:
        """Run the workload detached."""
        where = ("--ip", self.address, "--mac", self.mac)
        self._source.pymigrate("run", "-d", "--name", NAME, *where, NAME, *workload.argv)

    def execute(self) -> None:
        """Run `true` beside the workload."""
        self._source.pymigrate("exec", NAME, "/true")

    def checkpoint(self, form: str) -> int:
        """Checkpoint to one file."""
        fresh(self._source, self._archive.parent)
        self._source.pymigrate(
            "checkpoint", NAME, "--leave-running", "--compress", form, "-o", self._archive
        )
        return size(self._source, self._archive)

    def remove(self) -> None:
        """Remove the container from both hosts."""
        for host in self._hosts:
            if NAME in host.pymigrate("ps", "-a").stdout.split():
                host.pymigrate("rm", "-f", NAME)

    def restore(self) -> None:
        """Restore from the file."""
        self._source.pymigrate("restore", self._archive)

    def migrate(self) -> None:
        """Migrate by the one command."""
        self._source.pymigrate("migrate", NAME, self._target.ssh_destination)

    def close(self) -> None:
        """Do nothing: all is in the lab."""
