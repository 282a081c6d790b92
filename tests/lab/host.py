"""The places of a lab: namespaces that look like machines, and how commands are run in them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.lab import registry
from tests.lab.registry import Entry, LabError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
INIT = Path(__file__).with_name("init.py")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PREFIX = 16  # of the lab's network
STARTING = 10.0  # seconds for a place to come up

# Joins the cgroups (whose cgroup.procs files come first, until "--"), then becomes the command.
JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")


def children(pid: int) -> list[int]:
    """List the children of a single-threaded process; nothing if it has ended."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Process(subprocess.Popen[str]):
    """A command in a place. What we started is nsenter(1), which waits for it and ends like it."""

    def inner_pid(self) -> int | None:
        """Return the command's own PID, as the machine counts; None if it has ended."""
        while self.poll() is None:
            if found := children(self.pid):
                return found[0]
            select.select([], [], [], 0.001)  # nsenter is about to fork
        return None

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command, not to nsenter, which would die and leave it running."""
        if pid := self.inner_pid():
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                return


def script(*commands: Sequence[str | Path]) -> str:
    """Write commands as a script for `sh -eu`."""
    return "".join(shlex.join(map(str, command)) + "\n" for command in commands)


class Place:
    """Namespaces with an init of their own: the lab's switch, a host, or where a client sits.

    `directory` is the place's own, on a tmpfs of the lab, at the same path inside every place;
    from outside it is `outside(directory)`.
    """

    def __init__(
        self,
        name: str,
        entry: Entry,
        *,
        address: str | None = None,
        switch: Place | None = None,
    ) -> None:
        self.name = name
        self.entry = entry
        self.address = address
        self.switch = switch
        self.directory = entry.directory / name
        self.system = entry.place(name)
        self.cgroups = [directory.parent for directory in self.system]
        self._booting: Process | None = None
        self._init: int | None = None

    @property
    def init_pid(self) -> int:
        """The machine's PID of the place's init.

        Raises:
            LabError: the place is off.

        """
        if self._init is None:
            raise LabError(f"{self.name} is off")
        return self._init

    @property
    def is_on(self) -> bool:
        """Whether the place has power."""
        return self._init is not None

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of the commands in this place."""
        return {
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PATH": SYSTEM_PATH,
            "TERM": os.environ.get("TERM", "dumb"),
            "USER": "root",
        }

    def outside(self, path: str | os.PathLike[str]) -> Path:
        """Return the path by which the machine reaches `path` of this place."""
        return Path(f"/proc/{self.init_pid}/root", os.path.relpath(path, "/"))

    def boot(self, parent: Place | None) -> None:
        """Start the place's init, in the mount and PID namespaces of `parent` if there is one."""
        unshare = [
            "unshare", *NAMESPACES, "--fork", "--propagation", "private", "--mount-proc", "--",
            sys.executable, "-I", "-S", str(INIT),
        ]  # fmt: skip
        if parent is not None:
            target = str(parent.init_pid)
            unshare = ["nsenter", "--target", target, "--mount", "--pid", "--", *unshare]
        self._booting = Process(
            [*self._join(), *unshare],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # unshare(1) complains when its child is killed
            env=self.environment,
            text=True,
        )

    def booted(self) -> None:
        """Wait until the init runs.

        Raises:
            LabError: it does not.

        """
        starting = self._booting
        assert starting is not None, "boot() comes first"
        assert starting.stdout is not None
        readable, _, _ = select.select([starting.stdout], [], [], STARTING)
        if not readable or starting.stdout.readline() != "ready\n":
            starting.kill()
            _, complaint = starting.communicate()
            raise LabError(f"the init of {self.name} did not start: {complaint}")
        pid = starting.pid
        while found := children(pid):  # nsenter (not for the switch), unshare, init
            pid = found[0]
        self._init = pid

    def _join(self) -> list[str]:
        files = [str(cgroup / "cgroup.procs") for cgroup in self.system]
        return ["sh", "-c", JOIN, "enter", *files, "--"]

    def enter(self, *namespaces: str, directory: str | os.PathLike[str] = "/") -> list[str]:
        """Return the words to put before a command so that it runs in (some) namespaces of ours."""
        wanted = namespaces or NAMESPACES
        at = [f"--wdns={os.fspath(directory)}"] if "--mount" in wanted else []
        return [*self._join(), "nsenter", "--target", str(self.init_pid), *wanted, *at, "--"]

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        directory: str | os.PathLike[str] = "/",
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
        terminal: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start a command here; signals sent through the result reach the command.

        With `terminal`, standard input must be a terminal, which becomes the command's own.
        """
        words = [os.fspath(word) for word in argv]
        if terminal:
            words = ["setsid", "--ctty", "--wait", *words]
        return Process(
            [*self.enter(directory=directory), *words],
            env={**self.environment, **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            pass_fds=pass_fds,
        )

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002  # subprocess.run's name
        timeout: float | None = 120,
        env: Mapping[str, str] | None = None,
        directory: str | os.PathLike[str] = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end and return what it said, as subprocess.run does.

        Raises:
            LabError: `check` and it failed; the message holds all it said.
            subprocess.TimeoutExpired: it did not end; it was killed.

        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(argv, stdin=stdin, env=env, directory=directory) as process:
            try:
                said, complained = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                process.communicate()
                raise
        if check and process.returncode:
            command = shlex.join([os.fspath(word) for word in argv])
            raise LabError(
                f"on {self.name}: {command} ended with {process.returncode}\n{said}{complained}"
            )
        return subprocess.CompletedProcess(
            list(argv), process.returncode, stdout=said, stderr=complained
        )

    def sh(self, text: str, **options: Any) -> str:
        """Run a shell script here and return its output."""
        return self.run(["sh", "-euc", text], **options).stdout

    def ip(self, batch: str, *, check: bool = True) -> None:
        """Run a batch of ip(8) commands on our network, with the machine's mounts and PIDs.

        Raises:
            LabError: `check`, and one failed.

        """
        command = [*self.enter("--net"), "ip", "-batch", "-"]
        said = subprocess.run(command, input=batch, text=True, capture_output=True, check=False)
        if check and said.returncode:
            raise LabError(f"{self.name}: ip: {said.stderr.strip()}\n{batch}")

    def power_off(self) -> None:
        """Cut the power: every process here dies at once, every mount and interface is gone.

        The disk stays. Cgroups are the machine's, so those that were made here are removed. May be
        repeated.
        """
        if self.switch is not None:
            # The cable goes first: dying processes close their connections, a power cut does not.
            self.switch.ip(f"link delete {self.name}\n", check=self._init is not None)
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
            self._init = None
        registry.kill_members(self.cgroups)
        for directory in self.cgroups:
            for path in registry.subtree(directory):
                if path not in (directory, directory / "system"):
                    registry.remove_cgroup(path)
        self.reap()

    def reap(self) -> None:
        """Take the exit status of what we started to boot; everything here is dead already."""
        if self._booting is not None:
            self._booting.communicate(timeout=STARTING)
            self._booting = None
        self._init = None


class Host(Place):
    """A host: a bridge `pymigrate0` with an uplink, a disk, names, and an sshd.

    /run, /tmp, /dev/shm and /etc are its own, /srv is its disk (a tmpfs that outlives a power
    cut), `root` on it is pymigrate's. The rest is the machine's file system.
    """

    root = Path("/srv/pymigrate")
    home = Path("/srv/home")

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment: pymigrate is on the PATH and finds its root."""
        return {
            **super().environment,
            "HOME": str(self.home),
            "PATH": f"{self.directory}/bin:{SYSTEM_PATH}",
            "PYMIGRATE_ROOT": str(self.root),
        }

    @property
    def ssh_destination(self) -> str:
        """What another host's ssh calls this one."""
        return f"root@{self.name}"

    def pymigrate(
        self, *argv: str | os.PathLike[str], check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `pymigrate ARGV...` here."""
        return self.run(["pymigrate", *argv], check=check, **options)

    def pymigrate_json(self, *argv: str | os.PathLike[str], **options: Any) -> Any:
        """Run `pymigrate --json ARGV...` here and return the document that it printed."""
        return json.loads(self.pymigrate("--json", *argv, **options).stdout)

    def resize_disk(self, size: str) -> None:
        """Make the disk (/srv) `size` (tmpfs(5): bytes with k, m, g, or a percentage)."""
        self.run(["mount", "-o", f"remount,size={size}", "/srv"])

    def hide_pymigrate(self) -> None:
        """Take pymigrate off this host's PATH."""
        self.run(["rm", self.directory / "bin" / "pymigrate"])

    def logs(self) -> str:
        """Return what this host's sshd has logged."""
        return (self.outside(self.directory) / "sshd.log").read_text()
