"""CRIU's own post-copy, by hand: `dump --lazy-pages`, `lazy-pages --page-server`, `restore`.

A bare process in a network namespace of its own, with all other namespaces its host's: there is
no tool that drives this for containers. CRIU puts all memory into pipes, two descriptors for each
MiB or more, so it gets all that the hard limit allows.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench.harness import BenchError
from bench.limits import PIPE_SIZE, raised
from bench.subjects.cable import Cable
from bench.subjects.login import logged_in
from bench.subjects.subject import CHECKPOINTS, criu_program, fresh, version
from bench.workload import Workload
from tests.lab import Host, Lab, LabError

PORT = 9988
FIRST_PID = 30000  # free on the target, whose PID namespace is another one
PIPE = 4 << 20  # bytes, of each of CRIU's pipes: PIPE_MAX_SIZE pages (page-pipe.h), rounded up
LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


class LazyPages:
    """A dynamic program of an image, run by the image's own loader."""

    name = "criu lazy-pages"
    moving = "dump, rsync, restore"
    address = "10.88.0.13"

    def __init__(self, lab: Lab, image: Path) -> None:
        self._image = image
        self._hosts = [lab["alpha"], lab["beta"]]
        self._source, self._target = self._hosts
        self._cable = Cable("lazy", self.address)
        self._images = CHECKPOINTS / "lazy"
        self.mac = self._cable.mac
        self._limits = ExitStack()

    def versions(self) -> dict[str, str]:
        """Return its version."""
        return {"criu": version(self._source, criu_program(), "--version")}

    def prepare(self) -> None:
        """Do nothing: the image is on both hosts."""

    def launch(self, workload: Workload) -> None:
        """Start the process, in a session of its own, with the pipes that CRIU needs."""
        self._limits.enter_context(raised(PIPE_SIZE, PIPE))
        for host in self._hosts:
            self._cable.lay(host)
        self._cable.plug(self._source, self._target)
        program, *options = workload.argv
        libraries = ":".join(f"{self._image}/{each}" for each in LIBRARIES)
        loader = f"{self._image}/lib64/ld-linux-x86-64.so.2 --library-path {libraries}"
        words = " ".join(f"'{each}'" for each in options)
        self._source.sh(
            f"""\
echo {FIRST_PID} > /proc/sys/kernel/ns_last_pid
nsenter --net={self._cable.namespace} setsid {loader} {self._image}/usr/bin/{program} {words} \\
  < /dev/null > /dev/null 2>&1 &
"""
        )

    def _pid(self, host: Host) -> str:
        said = host.run(["pgrep", "-f", f"{self._image}/usr/bin/redis-server"], check=False).stdout
        return said.split()[0] if said.split() else ""

    def migrate(self) -> None:
        """Do it by hand, both hosts at one's fingertips."""
        with logged_in(self._source, self._target) as login:
            self._migrate(" ".join(("ssh", *login)))

    def _migrate(self, ssh: str) -> None:
        for host in self._hosts:
            fresh(host, self._images)
        pid = self._pid(self._source)
        inode = self._source.sh(f"stat -L -c %i /proc/{pid}/ns/net").strip()
        criu = f"{criu_program()} %s -D {self._images} --manage-cgroups=ignore"
        common = "--tcp-established --lazy-pages --network-lock"
        self._step(
            self._source,
            "dump",
            f"""\
ulimit -Sn $(ulimit -Hn)
setsid {criu % "dump"} -o dump.log {common} nftables --tree {pid} --external 'net[{inode}]:lazy' \\
  --address 0.0.0.0 --port {PORT} --status-fd 9 9> {self._images}/ready \\
  < /dev/null > /dev/null 2>&1 &
until [ -s {self._images}/ready ]; do kill -0 $!; sleep 0.001; done
{self._cable.unplugging}""",
        )
        to = f"{self._target.ssh_destination}:{self._images}/"
        self._source.run(["rsync", "--archive", "--rsh", ssh, f"{self._images}/", to])
        self._step(
            self._target,
            "restore",
            f"""\
cat > {self._images}/hook << 'END'
#!/bin/sh -e
# Not plugged in before: a segment that finds no socket yet is answered by a reset.
[ "$CRTOOLS_SCRIPT_ACTION" = network-unlock ] || exit 0
{self._cable.plugging}END
chmod +x {self._images}/hook
{criu % "lazy-pages"} -o lazy.log --page-server --address {self._source.address} --port {PORT} \\
  < /dev/null > /dev/null 2>&1 &
until [ -S {self._images}/lazy-pages.socket ]; do kill -0 $!; sleep 0.001; done
exec 8< {self._cable.namespace}
{criu % "restore"} -o restore.log {common} skip --restore-detached --inherit-fd 'fd[8]:lazy' \\
  --action-script {self._images}/hook
""",
        )
        self._step(self._target, "lazy", "while pgrep -x criu > /dev/null; do sleep 0.005; done")

    def _step(self, host: Host, name: str, text: str) -> None:
        try:
            host.sh(text)
        except LabError as error:
            errors = " / ".join([*self._errors(self._source), *self._errors(self._target)])
            raise BenchError(f"criu {name}: {errors or error}") from error

    def _errors(self, host: Host) -> list[str]:
        """Return what went wrong by CRIU's logs; limits that it cannot raise do no harm."""
        logs = sorted(host.outside(self._images).glob("*.log"))
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return [line for line in lines if "Error" in line and "RLIMIT_NOFILE" not in line][:3]

    def remove(self) -> None:
        """Kill the process wherever it is, and what serves its pages."""
        for host in self._hosts:
            if pid := self._pid(host):
                host.sh(f"kill -KILL {pid}; while kill -0 {pid} 2> /dev/null; do :; done")
            host.run(["pkill", "-KILL", "-x", "criu"], check=False)
        self._limits.close()

    def close(self) -> None:
        """Do nothing: all is in the lab."""
