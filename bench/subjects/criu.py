"""Raw CRIU on a bare process: what it costs without any container around it.

The process shares all namespaces with its host and has no file system of its own, so there is
less to write down than for any container. It is a floor, not a rival.
"""

from __future__ import annotations

from bench.harness import BenchError
from bench.subjects.subject import (
    CHECKPOINTS,
    IMAGE,
    criu_program,
    fresh,
    size,
    version,
)
from bench.workload import Workload
from tests.lab import Lab


class Criu:
    """A process of the first host, at the host's own address."""

    name = "criu"
    formats: tuple[str, ...] = ("directory",)
    moving = ""
    mac = ""

    def __init__(self, lab: Lab) -> None:
        self._host = lab["alpha"]
        self.address = str(self._host.address)
        self._images = CHECKPOINTS / "criu"
        self._pid: int | None = None

    def versions(self) -> dict[str, str]:
        """Return its version."""
        return {"criu": version(self._host, criu_program(), "--version")}

    def prepare(self) -> None:
        """Do nothing: there is no image."""

    def start(self) -> None:
        """Refuse: CRIU starts nothing."""
        raise BenchError("CRIU starts nothing")

    def execute(self) -> None:
        """Refuse: CRIU starts nothing."""
        raise BenchError("CRIU starts nothing")

    def launch(self, workload: Workload) -> None:
        """Start the process, in a session of its own."""
        words = " ".join(workload.argv)
        said = self._host.sh(
            f"setsid {IMAGE}{words} < /dev/null > /dev/null 2>&1 &\necho $!", directory=IMAGE
        )
        self._pid = int(said)

    def _criu(self, verb: str, *argv: str) -> None:
        log = f"{verb}.log"
        options = ("--images-dir", str(self._images), "--log-file", log, "--manage-cgroups=ignore")
        said = self._host.run([criu_program(), verb, *options, *argv], check=False)
        if said.returncode:
            lines = (self._host.outside(self._images) / log).read_text().splitlines()
            errors = [line for line in lines if "Error" in line]
            raise BenchError(f"criu {verb}: {' / '.join(errors[:3])}")

    def checkpoint(self, form: str) -> int:  # noqa: ARG002  # there is only one
        """Dump to a directory."""
        fresh(self._host, self._images)
        self._criu("dump", "--leave-running", "--tree", str(self._pid))
        return size(self._host, self._images)

    def remove(self) -> None:
        """Kill the process and wait until its number is free."""
        if self._pid is None:
            return
        self._host.sh(f"kill -KILL {self._pid} || exit 0\nwhile kill -0 {self._pid}; do :; done")
        self._pid = None

    def restore(self) -> None:
        """Restore it under its old number."""
        pid_file = self._images / "restored.pid"
        self._criu("restore", "--restore-detached", "--pidfile", str(pid_file))
        self._pid = int((self._host.outside(pid_file)).read_text())

    def migrate(self) -> None:
        """Refuse: its address is the host's."""
        raise BenchError("a bare process has no address of its own")

    def close(self) -> None:
        """Do nothing: all is in the lab."""
