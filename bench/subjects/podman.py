"""podman, with runc as its runtime, the way it runs on a host without systemd."""

from __future__ import annotations

import shutil
import subprocess
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

STORE = Path("/srv/podman")
GLOBAL = (
    *("--root", str(STORE / "root"), "--runroot", "/run/podman", "--tmpdir", "/run/podman/tmp"),
    *("--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--events-backend=file"),
    "--runtime=runc",
)
# It keeps a cache in /var/lib/containers, whatever it is told.
HIDE = f"""\
mkdir -p {STORE}/var {STORE}/work
mount -n -t overlay -o lowerdir=/var/lib,upperdir={STORE}/var,workdir={STORE}/work var /var/lib
"""
# Its defaults are above what a root without CAP_SYS_RESOURCE may set.
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


class Podman:
    """Containers of podman in a network namespace made for them."""

    name = "podman"
    formats: tuple[str, ...] = ("zstd", "none")
    moving = "export, scp, import"
    address = "10.88.0.11"

    def __init__(self, lab: Lab, image: str | Path = IMAGE, *, tcp: bool = False) -> None:
        """Take the hosts, the directory that becomes the image, and whether it has connections."""
        self._image = image
        self._tcp = ("--tcp-established",) if tcp else ()
        self._hosts = [lab["alpha"], lab["beta"]]
        self._source, self._target = self._hosts
        self._cable = Cable("podman", self.address)
        self._archive = CHECKPOINTS / "podman" / "archive"
        self.mac = self._cable.mac

    def _podman(self, host: Host, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        return host.run(["podman", *GLOBAL, *argv], env=peer_environment())

    def versions(self) -> dict[str, str]:
        """Return its version and that of what copies; its runtime is the subject runc."""
        return {
            "podman": version(self._source, program("podman"), "--version"),
            "scp": version(self._source, "ssh", "-V"),
        }

    def prepare(self) -> None:
        """Import the image on both hosts."""
        program("podman")
        for host in self._hosts:
            host.sh(HIDE)
        archive, saved = STORE / "image.tar", STORE / "saved.tar"
        self._source.sh(f"tar -C {self._image} -cf {archive} .")
        self._podman(self._source, "import", "--quiet", archive, NAME)
        # Imported twice it would be two images, and the target would not know the container's.
        self._podman(self._source, "save", "--quiet", "--output", saved, NAME)
        shutil.copy(self._source.outside(saved), self._target.outside(saved))
        self._podman(self._target, "load", "--quiet", "--input", saved)

    def _run(self, *argv: str) -> None:
        parent = f"--cgroup-parent={cgroups.PARENT}"
        self._podman(self._source, "run", parent, "--pull=never", *LIMITS, *argv)

    def start(self) -> None:
        """Run `true`."""
        self._run("--rm", "--network=none", NAME, "/true")

    def wire(self) -> None:
        """Make its network anew, plugged into the first host."""
        for host in self._hosts:
            self._cable.lay(host)
        self._cable.plug(self._source, self._target)

    def launch(self, workload: Workload) -> None:
        """Run the workload detached."""
        self.wire()
        network = f"--network=ns:{self._cable.namespace}"
        self._run("-d", "--name", NAME, network, NAME, *workload.argv)

    def execute(self) -> None:
        """Run `true` beside the workload."""
        self._podman(self._source, "exec", NAME, "/true")

    def _export(self, *options: str) -> None:
        self._podman(
            self._source,
            *("container", "checkpoint", *self._tcp, *options, "--export"),
            *(self._archive, NAME),
        )

    def _import(self, host: Host) -> None:
        self._podman(host, "container", "restore", *self._tcp, "--import", self._archive)

    def checkpoint(self, form: str) -> int:
        """Checkpoint to one file."""
        fresh(self._source, self._archive.parent)
        self._export("--leave-running", "--compress", form)
        return size(self._source, self._archive)

    def remove(self) -> None:
        """Remove the container from both hosts."""
        for host in self._hosts:
            self._podman(host, "rm", "--force", "--ignore", "--time", "0", NAME)

    def restore(self) -> None:
        """Restore from the file."""
        self._import(self._source)

    def migrate(self) -> None:
        """Do by hand what podman has no command for, both hosts at one's fingertips."""
        for host in self._hosts:
            fresh(host, self._archive.parent)
        self._export()
        if not self._tcp:  # a segment that finds no socket yet is answered by a reset
            self._cable.plug(self._target, self._source)
        to = f"{self._target.ssh_destination}:{self._archive}"
        self._source.run(["scp", "-q", str(self._archive), to])
        self._import(self._target)
        if self._tcp:
            self._cable.plug(self._target, self._source)

    def close(self) -> None:
        """Remove the cgroups."""
        cgroups.remove()
