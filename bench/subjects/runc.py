"""runc, driven by hand: a bundle, a directory of images, rsync."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.subjects import cgroups
from bench.subjects.cable import Cable
from bench.subjects.subject import (
    CHECKPOINTS,
    IMAGE,
    NAME,
    fresh,
    peer_environment,
    program,
    size,
    version,
)
from bench.workload import Workload
from tests.lab import Host, Lab

STORE = Path("/srv/runc")
STATE = "/run/runc-bench"
LOG = "/run/runc-bench.log"


class Runc:
    """Containers of runc in a network namespace made for them."""

    name = "runc"
    formats: tuple[str, ...] = ("directory",)
    moving = "dump, rsync, restore"
    address = "10.88.0.12"

    def __init__(self, lab: Lab, image: str | Path = IMAGE, *, tcp: bool = False) -> None:
        """Take the hosts, the directory that is the root, and whether it has connections."""
        self._image = image
        self._tcp = ("--tcp-established",) if tcp else ()
        self._hosts = [lab["alpha"], lab["beta"]]
        self._source, self._target = self._hosts
        self._cable = Cable("runc", self.address)
        self._images = CHECKPOINTS / "runc" / "images"
        self.mac = self._cable.mac

    def _runc(
        self, host: Host, *argv: str | Path, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return host.run(["runc", "--root", STATE, *argv], env=peer_environment(), check=check)

    def versions(self) -> dict[str, str]:
        """Return its version and that of what copies."""
        return {
            "runc": version(self._source, program("runc"), "--version"),
            "rsync": version(self._source, program("rsync"), "--version"),
        }

    def prepare(self) -> None:
        """Make the bundle of `true`."""
        program("runc")
        self._bundle(self._source, "true", ["/true"], None)

    def _bundle(self, host: Host, name: str, argv: Sequence[str], network: str | None) -> Path:
        """Make a bundle from what `runc spec` proposes."""
        bundle = fresh(host, STORE / name)
        self._runc(host, "spec", "--bundle", bundle)
        config = host.outside(bundle) / "config.json"
        spec = json.loads(config.read_text())
        spec["process"] |= {"args": list(argv), "terminal": False}
        spec["root"] = {"path": str(self._image), "readonly": False}
        spec["linux"]["cgroupsPath"] = f"{cgroups.PARENT}/{name}"
        if network:
            for namespace in spec["linux"]["namespaces"]:
                if namespace["type"] == "network":
                    namespace["path"] = network
        config.write_text(json.dumps(spec))
        return bundle

    def _detached(self, host: Host, verb: str, options: str) -> None:
        # The workload keeps runc's standard streams: CRIU could not restore pipes to the harness.
        host.sh(
            f"""\
rm -f {LOG}
runc --root {STATE} --log {LOG} {verb} --detach --bundle {STORE / NAME} {options} {NAME} \\
  < /dev/null > /dev/null 2>&1 || {{ cat {LOG} >&2; exit 1; }}
""",
            env=peer_environment(),
        )

    def start(self) -> None:
        """Run `true`."""
        self._runc(self._source, "run", "--bundle", STORE / "true", "true")

    def launch(self, workload: Workload) -> None:
        """Run the workload detached."""
        for host in self._hosts:
            self._cable.lay(host)
            self._bundle(host, NAME, workload.argv, self._cable.namespace)
        self._cable.plug(self._source, self._target)
        self._detached(self._source, "run", "")

    def execute(self) -> None:
        """Run `true` beside the workload."""
        self._runc(self._source, "exec", NAME, "/true")

    def _checkpoint(self, *options: str) -> None:
        work = self._images.parent / "work"
        where = ("--image-path", self._images, "--work-path", work)
        self._runc(self._source, "checkpoint", *self._tcp, *options, *where, NAME)

    def _restore(self, host: Host) -> None:
        work = self._images.parent / "work"
        options = " ".join((*self._tcp, f"--image-path {self._images} --work-path {work}"))
        self._detached(host, "restore", options)

    def checkpoint(self, form: str) -> int:  # noqa: ARG002  # there is only one
        """Checkpoint to a directory."""
        fresh(self._source, self._images)
        self._checkpoint("--leave-running")
        return size(self._source, self._images)

    def remove(self) -> None:
        """Remove the container from both hosts."""
        for host in self._hosts:
            if NAME in self._runc(host, "list", "--quiet").stdout.split():
                self._runc(host, "delete", "--force", NAME)

    def restore(self) -> None:
        """Restore from the directory."""
        self._restore(self._source)

    def migrate(self) -> None:
        """Do by hand what runc has no command for, both hosts at one's fingertips."""
        for host in self._hosts:
            fresh(host, self._images)
        self._checkpoint()
        if not self._tcp:  # a segment that finds no socket yet is answered by a reset
            self._cable.plug(self._target, self._source)
        to = f"{self._target.ssh_destination}:{self._images}/"
        self._source.run(["rsync", "--archive", f"{self._images}/", to])
        self._restore(self._target)
        if self._tcp:
            self._cable.plug(self._target, self._source)

    def close(self) -> None:
        """Remove the cgroups."""
        cgroups.remove()
