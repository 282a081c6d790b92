"""A lab of virtual machines: a network of its own, keys, seeds, and what remains of it: nothing.

All processes of a lab live in namespaces of its own, below one process that holds them. When that
one dies, the kernel kills the others and takes the network apart; so what is left to remove is a
directory below /run. A lab with a leash ends with the process that made it; one without stays
until `down`.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import guest_images
import guest_machines
from debian_packages import SetupError, say
from guest_images import Image
from guest_machines import READY, Machine
from guest_seed import control_socket, make_keys, seed, ssh_config
from guests import CLIENT_ADDRESS, GUESTS, PREFIX, STATE, Guest, Release

BRIDGE = "pymigrate0"  # of the name that containers look for: this machine can be a host there, too
PATIENCE = 900.0  # seconds for guests to come up; a busy machine emulates slowly


class Lab:
    """The lab of a name: its namespaces, its guests, its directory below /run."""

    def __init__(self, name: str = "lab") -> None:
        self.name = name
        self.directory = STATE / name
        self._holder: subprocess.Popen[bytes] | None = None
        self._booting: list[Machine] = []

    @property
    def holder(self) -> int | None:
        """The PID of the process that holds the namespaces; None if the lab is down."""
        try:
            pid, started = map(int, (self.directory / "holder").read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        return pid if start_time(pid) == started else None

    @property
    def guests(self) -> list[Guest]:
        """The guests that were started, whether they still run or not."""
        return [guest for guest in GUESTS.values() if self.console(guest).exists()]

    def console(self, guest: Guest) -> Path:
        """Return the file with all that a guest's kernel and init have said."""
        return self.directory / f"{guest.name}.console"

    def is_running(self, guest: Guest) -> bool:
        """Say whether the guest's machine runs."""
        pid = self.holder
        return pid is not None and f"file:{self.console(guest)}" in commands_of(pid)

    def up(
        self, guests: Sequence[Guest], *, leash: bool = False, disks: Sequence[Path] = ()
    ) -> dict[Release, Image]:
        """Start guests; those that run already stay. Returns when each answers by SSH.

        What is returned is what they run from. With `leash` the lab ends when this process does,
        however it does. Each has `disks`, read-only, behind its own.
        """
        images = self.start(guests, leash=leash, disks=disks)
        self.wait()
        return images

    def start(
        self, guests: Sequence[Guest], *, leash: bool = False, disks: Sequence[Path] = ()
    ) -> dict[Release, Image]:
        """Do as `up` does, but return as soon as their machines run."""
        guest_images.provide_programs(guest.release for guest in guests)
        images = guest_images.build_all(guest.release for guest in guests)
        if self.holder is None:
            self.down()  # what a killed one left
            self._make_network(leash=leash)
        for guest in guests:
            if not self.is_running(guest):
                image = images[guest.release]
                accelerator = guest_machines.accelerator(guest, image)
                archive = seed(guest, image.base, self.directory)
                console = self.console(guest)
                self._start(Machine(guest, image, archive, console, accelerator, tuple(disks)))
        return images

    def wait(self) -> None:
        """Wait until each guest that was started here answers by SSH."""
        deadline = time.monotonic() + PATIENCE
        while self._booting:
            self._wait_for(self._booting[0], deadline)
            self._booting.pop(0)

    def _make_network(self, *, leash: bool) -> None:
        self.directory.mkdir(mode=0o700, parents=True)
        make_keys(self.directory)
        (self.directory / "ssh_config").write_text(ssh_config(self.directory))
        hold = ["cat"] if leash else ["sleep", "infinity"]
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        unshare += ["--propagation", "private", "--mount-proc", "--"]
        outside = subprocess.Popen(
            [*unshare, "sh", "-c", 'echo ready; exec "$@" > /dev/null', "hold", *hold],
            stdin=subprocess.PIPE if leash else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it outlives whoever reads ours
            start_new_session=True,
        )
        self._holder = outside
        if outside.stdout is None or outside.stdout.readline() != b"ready\n":
            raise SetupError("the lab's namespaces cannot be made", "namespaces need root")
        outside.stdout.close()
        [pid] = children(outside.pid)
        (self.directory / "holder").write_text(f"{pid} {start_time(pid)}\n")
        self._ip(
            f"link set lo up\nlink add name {BRIDGE} address 02:88:0a:58:00:01 type bridge\n"
            f"link set {BRIDGE} up\naddress add {CLIENT_ADDRESS}/{PREFIX} dev {BRIDGE}\n"
        )

    def _ip(self, batch: str) -> None:
        command = [*self.enter("--net"), "ip", "-batch", "-"]
        said = subprocess.run(command, input=batch, text=True, capture_output=True, check=False)
        if said.returncode:
            raise SetupError(f"ip: {said.stderr.strip()}", "the lab's network cannot be made")

    def _start(self, machine: Machine) -> None:
        tap = machine.interface
        self._ip(
            f"tuntap add dev {tap} mode tap\nlink set {tap} master {BRIDGE}\nlink set {tap} up\n"
            if not self._has_interface(tap)
            else f"link set {tap} up\n"
        )
        machine.console.touch()
        # It returns when the machine runs, and leaves QEMU as a child of the holder.
        if self._run_inside(machine.command(), self._log(machine.guest), timeout=None):
            hint = self._last_words(machine.guest)
            raise SetupError(f"guest {machine.guest.name} does not start", hint)
        self._booting.append(machine)

    def _run_inside(self, argv: Sequence[str], log: Path, *, timeout: float | None) -> int:
        """Run a command in all namespaces of the lab: what it leaves running ends with the lab."""
        mortal = ["setpriv", "--pdeathsig", "KILL"]  # until it has left something running
        with log.open("wb") as output:
            try:
                return subprocess.run(
                    [*self.enter("--net", "--mount", "--pid"), *mortal, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    timeout=timeout,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                return 255

    def _has_interface(self, name: str) -> bool:
        show = [*self.enter("--net"), "ip", "link", "show", "dev", name]
        return subprocess.run(show, capture_output=True, check=False).returncode == 0

    def _wait_for(self, machine: Machine, deadline: float) -> None:
        """Wait for a guest's init to be done, then for its sshd."""
        guest = machine.guest
        while READY not in machine.console.read_text(errors="replace"):
            if not self.is_running(guest) or time.monotonic() > deadline:
                raise SetupError(f"guest {guest.name} did not come up", self._last_words(guest))
            select.select([], [], [], 0.1)  # a file of QEMU's: nothing to wait on
        while time.monotonic() < deadline:
            if self._connect(guest):
                return
            select.select([], [], [], 0.2)
        raise SetupError(f"guest {guest.name} does not answer by SSH", self._last_words(guest))

    def _connect(self, guest: Guest) -> bool:
        """Open the connection that all commands in a guest share: a login takes an emulated second.

        A process in the lab's namespaces holds it, as it does QEMU, so it ends with the lab.
        """
        control_socket(self.directory, guest.name).unlink(missing_ok=True)
        command = ["ssh", "-F", str(self.directory / "ssh_config"), "-M", "-N", "-f", guest.name]
        return self._run_inside(command, self._log(guest), timeout=60) == 0

    def _log(self, guest: Guest) -> Path:
        """Return the file with what was last said by who brings the guest up."""
        return self.directory / f"{guest.name}.log"

    def _last_words(self, guest: Guest) -> str:
        words = self.console(guest).read_text(errors="replace").splitlines()[-15:]
        words += self._log(guest).read_text(errors="replace").splitlines()
        return "it said: " + "\n".join(words)

    def enter(self, *namespaces: str) -> list[str]:
        """Return the words before a command that is to run in (some) namespaces of the lab.

        With "--net" alone it runs as a third machine on the lab's network.
        """
        holder = self.holder
        if holder is None:
            raise SetupError(f"the lab {self.name} is down", "vagrant/lab up")
        return ["nsenter", "--target", str(holder), *namespaces, "--"]

    def ssh(self, guest: Guest, argv: Sequence[str] = (), *, terminal: bool = False) -> list[str]:
        """Return the command that runs `argv` in a guest, or a shell there.

        `argv` are words for the guest's shell, as with ssh itself. It ends with who runs it: by
        itself ssh would wait for a guest that is gone.
        """
        options = ["-F", str(self.directory / "ssh_config"), *(["-tt"] if terminal else [])]
        mortal = ["setpriv", "--pdeathsig", "KILL"]
        return [*mortal, *self.enter("--net"), "ssh", *options, guest.name, *argv]

    def run(
        self, guest: Guest, argv: Sequence[str], *, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run words of a shell in a guest; a guest that hangs counts as a failure, 255."""
        command = self.ssh(guest, argv)
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            late = f"no answer in {timeout:g} s"
            return subprocess.CompletedProcess(command, 255, stdout="", stderr=late)

    def down(self) -> None:
        """End everything of the lab and remove what it left. May be repeated."""
        if (pid := self.holder) is not None:
            kill(pid)
        if self._holder is not None:
            if self._holder.stdin is not None:
                self._holder.stdin.close()
            self._holder.wait()
            self._holder = None
        self._booting.clear()
        if self.directory.exists():
            shutil.rmtree(self.directory)
        if STATE.exists() and not any(STATE.iterdir()):
            STATE.rmdir()


def sweep(names: Iterable[str] | None = None) -> list[str]:
    """Remove what labs left whose holder is dead; return their names."""
    swept = []
    for directory in sorted(STATE.glob("*")):
        lab = Lab(directory.name)
        if lab.holder is None and (names is None or directory.name in names):
            say(f"removing what is left of the lab {lab.name}")
            lab.down()
            swept.append(lab.name)
    return swept


def kill(pid: int) -> None:
    """Kill a process and wait until it is gone, and with it its PID namespace.

    Raises SetupError if it does not go: what its directory holds is in use then.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        gone, _, _ = select.select([pidfd], [], [], PATIENCE)
    finally:
        os.close(pidfd)
    if not gone:
        raise SetupError(f"process {pid} of the lab does not end", "the kernel's log may say why")


def start_time(pid: int) -> int | None:
    """Return when `pid` was started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # proc(5): from field 3; the name may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def children(pid: int) -> list[int]:
    """List the children of a single-threaded process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def commands_of(holder: int) -> str:
    """Return the command lines of all processes in the holder's PID namespace."""
    found = []
    for process in Path(f"/proc/{holder}/root/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes().decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return "\n".join(found)


def describe(lab: Lab) -> list[dict[str, object]]:
    """Return what there is of each guest, for `status`."""
    rows: list[dict[str, object]] = []
    for guest in lab.guests:
        image = guest_images.find(guest.release)
        rows.append(
            {
                "guest": guest.name,
                "running": lab.is_running(guest),
                "address": guest.address,
                "kernel": image.base.release if image else guest.release.name,
                "criu": image.base.criu if image else "",
                "cgroup": guest.cgroup,
            }
        )
    return rows
