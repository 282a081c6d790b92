"""Two hosts, or more, and a client on one machine, joined by a network of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import setup
from tests.lab.host import PREFIX, Host, Place, Process, script
from tests.lab.registry import Entry, LabError, sweep

_numbers = itertools.count(1)
MODES = {"bin": 0o755, "etc": 0o644}  # of files, by their directory; all others are secret
NEEDED = ("ip", "nsenter", "ssh-keygen", "sshd", "tc", "unshare")


class Lab:
    """A switch with hosts and a client on it.

        with Lab(("alpha", "beta")) as lab:
            lab["alpha"].pymigrate("run", "-d", "--name", "web", "--ip", "10.88.0.5", "image")
            lab["alpha"].pymigrate("migrate", "web", lab["beta"].ssh_destination)
            lab.client.run(["ping", "-c1", "10.88.0.5"])

    Nothing of it can be seen on the machine but processes, their cgroups, and an entry below
    /run/pymigrate-lab: interfaces, mounts, names and files are in namespaces of the lab's own,
    which end with the process that made it (registry.py says how the rest is swept).

    Addresses: hosts 10.88.255.1 and up, the client 10.88.255.100, the router 10.88.0.1; all else
    in 10.88.0.0/16 is free for containers.
    """

    def __init__(self, hosts: Sequence[str] = ("alpha", "beta"), *, disk_size: str = "50%") -> None:
        self._names = tuple(hosts)
        self._disk_size = disk_size
        self._stack = contextlib.ExitStack()
        self._cut: set[str] = set()

    def __enter__(self) -> Self:
        """Sweep up after dead labs, then build this one."""
        if missing := [program for program in NEEDED if shutil.which(program) is None]:
            raise LabError(f"the lab needs {', '.join(missing)}: run ./test once")
        sweep()
        with self._stack:
            self._build()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the lab down: processes, cgroups, registry."""
        self._stack.close()

    def _build(self) -> None:
        self.entry = Entry.make(next(_numbers))
        self._stack.callback(self.entry.remove)
        self.switch = Place("switch", self.entry)
        self.client = Place("client", self.entry, address="10.88.255.100", switch=self.switch)
        self.hosts = {
            name: Host(name, self.entry, address=f"10.88.255.{number}", switch=self.switch)
            for number, name in enumerate(self._names, 1)
        }
        keys = start_keys(["user", *self._names])
        self._start([self.switch], None)
        self._stack.callback(self._close_switch)
        self.switch.run(
            ["sh", "-euc", setup.switch(self.entry.directory, self._names, self._disk_size)]
        )
        self.switch.ip(
            f"link set lo up\nlink add name lan address {setup.mac(setup.ROUTER)} type bridge\n"
            f"link set lan up\naddress add {setup.ROUTER}/{PREFIX} dev lan\n"
        )
        self._write_files(keys.read())
        self._raise([self.client, *self.hosts.values()])

    def _start(self, places: Sequence[Place], parent: Place | None) -> None:
        for place in places:
            place.boot(parent)
        for place in places:
            place.booted()

    def _raise(self, places: Sequence[Place]) -> None:
        """Boot places, plug their cables into the switch, and set them up, all at a time."""
        self._start(places, self.switch)
        self.switch.ip(
            "".join(
                f"link add name {place.name} type veth peer name uplink netns {place.init_pid}\n"
                f"link set {place.name} master lan\nlink set {place.name} up\n"
                for place in places
            )
        )
        setting_up = []
        for place in places:
            text = script(*setup.machine(place))
            text += f"ip -batch - << .\n{setup.network(place)}.\n"
            if isinstance(place, Host):
                text += setup.sshd(place)
            setting_up.append((place, place.popen(["sh", "-euc", text])))
        failed = [f"{place.name}: {complaint(process)}" for place, process in setting_up]
        if any(process.returncode for _, process in setting_up):
            raise LabError("\n".join(failed))

    def _write_files(self, keys: Mapping[str, str]) -> None:
        outside = self.switch.outside(self.entry.directory)
        (outside / "client").mkdir()
        addresses = {host.name: str(host.address) for host in self.hosts.values()}
        addresses["client"] = str(self.client.address)
        for host in self.hosts.values():
            for name, content in setup.files(host, keys, addresses).items():
                path = outside / host.name / name
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                path.write_text(content)
                path.chmod(MODES.get(name.parts[0], 0o600))

    def _close_switch(self) -> None:
        """Kill the switch's init and with it the whole lab, whose PID namespaces are below it."""
        self.switch.power_off()
        for place in (self.client, *self.hosts.values()):
            place.switch = None
            place.power_off()

    def __getitem__(self, name: str) -> Host:
        """Return the host of that name."""
        return self.hosts[name]

    @property
    def directory(self) -> Path:
        """The lab's tmpfs as the machine reaches it; below it, NAME/disk is the host's /srv."""
        return self.switch.outside(self.entry.directory)

    def power_on(self, name: str) -> None:
        """Boot a host again after its power_off(), with the disk that it had."""
        self._raise([self.hosts[name]])

    def cut(self, name: str) -> None:
        """Cut a host off: its packets vanish on the way, without a lost carrier to tell it."""
        self.switch.ip(f"link set {name} nomaster\n")

    def heal(self, name: str) -> None:
        """Undo cut()."""
        self.switch.ip(f"link set {name} master lan\n")

    def shape(
        self, *, rate: str | None = None, delay: str | None = None, hosts: Sequence[str] = ()
    ) -> None:
        """Give the uplinks of `hosts` (all) a rate ("1gbit") and a delay ("1ms") per direction.

        Each host's sending is shaped, so the delay of a round trip between two hosts is twice
        `delay`. Without rate and delay, undo it.

        Raises:
            LabError: this kernel has no netem, which a delay needs.

        """
        for name in hosts or self.hosts:
            enter = self.hosts[name].enter("--net")
            subprocess.run(
                [*enter, "tc", "qdisc", "del", "dev", "uplink", "root"],
                stderr=subprocess.DEVNULL,  # there may be none
                check=False,
            )
            if delay is not None:
                how = ["netem", "delay", delay, "limit", "100000"]
                how += [] if rate is None else ["rate", rate]
            elif rate is not None:
                how = ["tbf", "rate", rate, "burst", "512kb", "latency", "50ms"]
            else:
                continue
            command = ["tc", "qdisc", "add", "dev", "uplink", "root", *how]
            said = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
            if said.returncode:
                raise LabError(f"{' '.join(command)}: {said.stderr.strip()}")


class Keys:
    """SSH keys being made by ssh-keygen(1), one process each."""

    def __init__(self, names: Sequence[str]) -> None:
        self._directory = tempfile.mkdtemp(prefix="pymigrate-lab-keys.")
        self._makers = {
            name: subprocess.Popen(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name}@lab",
                 "-f", f"{self._directory}/{name}"],
            )
            for name in names
        }  # fmt: skip

    def read(self) -> dict[str, str]:
        """Wait for the keys, return their files by name, and remove the files."""
        try:
            for name, maker in self._makers.items():
                if maker.wait():
                    raise LabError(f"ssh-keygen could not make the key of {name}")
            return {path.name: path.read_text() for path in Path(self._directory).iterdir()}
        finally:
            shutil.rmtree(self._directory)


def start_keys(names: Sequence[str]) -> Keys:
    """Start to make SSH keys."""
    os.umask(0o022)
    return Keys(names)


def complaint(process: Process) -> str:
    """Wait for a process and return what it said."""
    with process:
        said, complained = process.communicate(timeout=60)
    return (said + complained).strip()
