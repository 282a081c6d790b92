"""Moves back and forth under load: neither host holds more after the last than after the first."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from itertools import cycle, islice
from pathlib import Path

import pytest

from pymigrate.migrate.agent import MEMORY_NAME
from pymigrate.migrate.cli_agent import AGENT_NAME
from tests.lab import Client, Host, Lab, images
from tests.lab.registry import members, subtree, wait_for

pytestmark = [pytest.mark.privileged, pytest.mark.criu, pytest.mark.requires("userfaultfd")]

ADDRESS = "10.88.0.28"
PORT = 6379
SERVER = ("redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", "")
MIB = "16"
PINGERS = 3
PATIENCE = 60.0  # seconds for the kernel, and an agent that has been left, to go
SLACK = 16 << 20  # bytes: the writers' new keys, and events, which are kept up to a size
JOURNAL = 64 << 10  # bytes of one move's journal, which stays as its report
FILES = "find /srv /run /tmp /var/tmp /dev/shm -path '*/images/layers' -prune -o -printf '%p %s\\n'"


@dataclass(frozen=True)
class Books:
    """What a host holds, each thing by a name without the numbers that change."""

    processes: Counter[str]
    descriptors: Counter[str]
    mounts: Counter[str]
    cgroups: Counter[str]
    interfaces: Counter[str]
    rules: Counter[str]
    files: Counter[str]

    @classmethod
    def of(cls, host: Host) -> Books:
        """Look at all of the host, its containers too."""
        pids = sorted(members(host.cgroups))
        namespaces = {Path(f"/proc/{pid}/ns/mnt").readlink(): pid for pid in pids}
        networks = {Path(f"/proc/{pid}/ns/net").readlink(): pid for pid in pids}
        return cls(
            Counter(map(command, pids)),
            Counter(f"{command(pid)}: {each}" for pid in pids for each in opened(pid)),
            Counter(each for pid in namespaces.values() for each in mounted(pid)),
            Counter(nameless(str(path)) for top in host.cgroups for path in subtree(top)),
            Counter(host.sh("ls /sys/class/net").split()),
            Counter(nameless(each) for pid in networks.values() for each in ruled(pid)),
            Counter(nameless(name) for name in sizes(host) if "/migrations/" not in name),
        )

    def beyond(self, before: Books) -> list[str]:
        """List what there is more of than before."""
        found = []
        for field in fields(self):
            more = getattr(self, field.name) - getattr(before, field.name)
            found += [f"{field.name}: {count} more of {name}" for name, count in more.items()]
        return found


def nameless(text: str) -> str:
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "N", text)


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def opened(pid: int) -> list[str]:
    return [nameless(str(path.readlink())) for path in Path(f"/proc/{pid}/fd").iterdir()]


def mounted(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [nameless(" ".join(line.split()[3:5])) for line in lines]


def ruled(pid: int) -> list[str]:
    """List the rules for packets in the process's network."""
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "nft", "list", "ruleset"]
    said = subprocess.run(enter, capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


def agents(host: Host) -> list[int]:
    """List the agents of moves: one that was left needs a moment to end."""
    found = []
    for pid in members(host.cgroups):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if command(pid) in (AGENT_NAME, MEMORY_NAME):
                found.append(pid)
    return found


def settled(host: Host) -> Books:
    """Take inventory when no agent is left, nor the shell that sshd gave it."""
    found: list[Books] = []

    def at_rest() -> bool:
        if agents(host):
            return False
        with suppress(FileNotFoundError, ProcessLookupError, subprocess.CalledProcessError):
            found.append(Books.of(host))
        return bool(found) and not found[-1].processes["sh"]

    assert wait_for(at_rest, PATIENCE), agents(host)
    return found[-1]


def sizes(host: Host) -> dict[str, int]:
    """Return the size of every file that the host's disk and its temporary places hold."""
    lines = (line.rsplit(" ", 1) for line in host.sh(FILES).splitlines())
    return {name: int(size) for name, size in lines}


def resident(host: Host) -> int:
    """Return the bytes of memory that the host's processes have."""
    found = 0
    for pid in members(host.cgroups):
        status = Path(f"/proc/{pid}/status").read_text()
        found += sum(int(kib) << 10 for kib in re.findall(r"RssAnon:\s+(\d+)", status))
    return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    image = images.bootstrap("demo-redis", ["redis-server"])
    with Lab(("alpha", "beta")) as lab:
        for host in lab.hosts.values():
            images.lend(image, host)
        yield lab


@pytest.mark.parametrize(
    ("moves", "modes"),
    [
        (4, ("pre", "hybrid")),
        pytest.param(
            *(20, ("stop", "pre", "post", "hybrid")),
            marks=(pytest.mark.long, pytest.mark.timeout(1200)),
        ),
    ],
)
def test_after_moves_back_and_forth_both_hosts_hold_what_they_held(
    lab: Lab, moves: int, modes: tuple[str, ...]
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("run", "-d", "--name", "redis", "--ip", ADDRESS, "demo-redis", *SERVER)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                Client(lab.client, kind, ADDRESS, PORT, "--rate", "200", "--mib", MIB)
            )
            for kind in ("redis-fill", "redis-writer", *["redis-ping"] * PINGERS)
        ][1:]
        before: dict[str, Books] = {}
        memory: dict[str, int] = {}
        disk: dict[str, int] = {}
        for number, mode in enumerate(islice(cycle(modes), moves), 1):
            source, target = (alpha, beta) if number % 2 else (beta, alpha)
            moved = source.pymigrate_json(
                "migrate", "redis", target.ssh_destination, "--mode", mode
            )
            assert ("moved", mode) == (moved["result"], moved["mode"])
            for client in clients:
                while not client.ask("moved")["answers"]:
                    pass  # the client itself gives up, with an error, when nothing comes
            if number == len(modes):
                before = {name: settled(host) for name, host in lab.hosts.items()}
                memory = {name: resident(host) for name, host in lab.hosts.items()}
                disk = {name: sum(sizes(host).values()) for name, host in lab.hosts.items()}

        for name, host in lab.hosts.items():
            left = settled(host).beyond(before[name])
            assert not left, "\n".join(left)
            assert resident(host) < memory[name] + SLACK
            assert sum(sizes(host).values()) < disk[name] + SLACK
            journals = {path: size for path, size in sizes(host).items() if "/migrations/" in path}
            assert moves == sum(path.endswith("/journal") for path in journals)
            assert max(journals.values()) < JOURNAL
        writer, *pingers = [client.finish() for client in clients]
    assert writer["same_connection"]
    assert 0 == writer["lost"]
    assert all(each["answers"] for each in pingers)
