"""Two hosts, a container that keeps a ledger, and all that can be done to a move of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pymigrate.migrate import journal
from pymigrate.migrate.agent import MEMORY_NAME
from pymigrate.migrate.cli_agent import AGENT_NAME
from pymigrate.migrate.wanted_sender import PROCESS_NAME as LANE_NAME
from pymigrate.runtime import launch
from tests.lab import Client, Host, Lab, registry
from tests.lab.host import REPOSITORY, Process
from tests.privileged.faults.matrix import Case, Side
from tests.privileged.faults.struck import AGENT
from tests.privileged.faults.struck_agent import POINT

STRUCK = Path(__file__).with_name("struck.py")
STRUCK_AGENT = STRUCK.with_name("struck_agent.py")
NAME = "ledger"
ADDRESS = "10.88.0.41"
PORT = 7000
INTERVAL = 0.02  # seconds between two looks at both hosts
PATIENCE = 60.0
KILL = 1 << (signal.SIGKILL - 1)  # in the sets of signals of proc(5)
PF_EXITING = 4  # in the flags of proc(5); kernel: include/linux/sched.h

# Each line of a client is in the file before it is answered; the count is in memory alone.
SERVER = """#!/bin/sh
count=0
while read -r number; do
  count=$((count + 1))
  echo "$number" >> /written
  echo "$number $count"
done
"""


@dataclass(frozen=True)
class Seen:
    """What was found after one run: where the container runs, and what went wrong."""

    at: str
    twice: int = 0
    lost: int = 0
    wrong: tuple[str, ...] = ()


class Watch:
    """A thread that looks all the time whether both hosts run a copy."""

    def __init__(self, hosts: tuple[Host, ...]) -> None:
        """Begin to look."""
        self._hosts = hosts
        self._end = threading.Event()
        self.twice = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(INTERVAL):
            # A processor may be taken from us between two looks: the first one is looked at again.
            both = all(map(runs, self._hosts)) and runs(self._hosts[0])
            if both and not any(map(is_restoring, self._hosts)) and all(map(runs, self._hosts)):
                self.twice += 1

    def close(self) -> None:
        """Look no more."""
        self._end.set()
        self._thread.join()


def runs(host: Host) -> bool:
    """Say whether the container has a process on a host that may run code of its own."""
    found: set[Path] = set()
    with suppress(OSError):  # it is being removed
        for cgroup in cgroups(host):
            if (cgroup / "cgroup.events").exists():
                frozen = "frozen 1" in (cgroup / "cgroup.events").read_text()
            else:
                frozen = (cgroup / "freezer.state").read_text() == "FROZEN\n"
            if frozen:
                return False
            found.update(
                Path("/proc", pid) for pid in (cgroup / "cgroup.procs").read_text().split()
            )
    return any(map(is_alive, found))


@dataclass(frozen=True)
class Task:
    """A process by its name and its arguments; a zombie has none of these."""

    pid: int
    name: str
    words: tuple[str, ...]

    @classmethod
    def of(cls, pid: int) -> Task:
        """Look at one; OSError if it is gone."""
        process = Path("/proc", str(pid))
        words = (process / "cmdline").read_text().split("\0")
        return cls(pid, (process / "comm").read_text().strip(), tuple(words))


def is_alive(process: Path) -> bool:
    """Say whether it is a process of the container's, and not about to die.

    What is to become CRIU joins the cgroup before that, and is a copy of the supervisor there. What
    is killed leaves the freezer.
    """
    with suppress(OSError):
        task = Task.of(int(process.name))
        status = dict(
            line.split(":\t", 1) for line in (process / "status").read_text().splitlines()
        )
        pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
        flags = int((process / "stat").read_text().rpartition(")")[2].split()[6])
        is_dying = bool(pending & KILL or flags & PF_EXITING)
        is_ours = is_criu(task) or is_supervisor(task)
        return bool(task.words[0]) and not is_ours and not is_dying
    return False


def cgroups(host: Host) -> Iterator[Path]:
    """Yield the container's directories in those hierarchies that can freeze."""
    for directory in host.cgroups:
        if (directory / "cgroup.events").exists() or (directory / "freezer.state").exists():
            for below in ("system/pymigrate", "pymigrate"):
                yield from directory.glob(f"{below}/*/{NAME}")


def is_restoring(host: Host) -> bool:
    """Say whether CRIU is at work: then the processes run its code, and none of the container's."""
    return any(map(is_criu, tasks(host)))


def tasks(host: Host) -> Iterator[Task]:
    """Yield the processes of a host."""
    for pid in registry.members(host.cgroups):
        with suppress(OSError):
            yield Task.of(pid)


def is_criu(task: Task) -> bool:
    """Say so of CRIU before its request, and after that, when it calls itself "criu: dump …"."""
    return Path(task.words[0]).name == "criu" or task.words[0].startswith("criu: ")


def is_lane(task: Task) -> bool:
    """Say so of the process that sends what is waited for."""
    return task.name == LANE_NAME


def is_agent(task: Task) -> bool:
    return task.name in (AGENT_NAME, MEMORY_NAME)


def is_session(task: Task) -> bool:
    return task.words[0].startswith("sshd: root")


def is_supervisor(task: Task) -> bool:
    return task.name == launch.PROCESS_NAME


def kill(host: Host, wanted: Callable[[Task], bool]) -> None:
    """Kill all such processes of a host, at least one; wait until they are dead."""
    found = [task for task in tasks(host) if wanted(task)]
    assert found, f"nothing to kill at {host.name}: {list(tasks(host))}"
    for task in found:
        with suppress(ProcessLookupError):  # it died of another's death
            os.kill(task.pid, signal.SIGKILL)
    await_none(host, wanted)


def await_none(host: Host, wanted: Callable[[Task], bool]) -> None:
    """Wait until a host has no such process."""
    registry.wait_for(lambda: not any(map(wanted, tasks(host))), PATIENCE)


@dataclass
class Field:
    """The hosts and where the container is; it moves to and fro, with the same connection."""

    lab: Lab
    home: Host
    away: Host
    client: Client | None = None
    checked: int = 0
    """How many acknowledged numbers have been read back from the file."""

    names: dict[str, Host] = field(default_factory=dict)

    @classmethod
    def of(cls, lab: Lab) -> Field:
        """Give the first host the image of the server."""
        home, away = lab["alpha"], lab["beta"]
        made = cls(lab, home, away)
        home.sh(
            "mkdir -p /srv/rootfs/bin; cp /bin/busybox /srv/rootfs/bin/busybox;"
            "chroot /srv/rootfs /bin/busybox --install -s /bin"
        )
        server = home.outside("/srv/rootfs/bin/serve")
        server.write_text(SERVER)
        server.chmod(0o755)
        for host in (home, away):
            host.run(["mkdir", "-p", "/srv/rootfs"])
            agent = host.outside(AGENT)
            agent.write_text(
                f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} {STRUCK_AGENT} "$@"\n'
            )
            agent.chmod(0o755)
        home.pymigrate("image", "import", "/srv/rootfs", "small")
        return made

    def begin(self) -> None:
        """Have the container run somewhere, and a client write."""
        if self.client is not None:
            return
        self.home.pymigrate(
            "run", "-d", "--name", NAME, "--ip", f"{ADDRESS}/16", "small",
            "nc", "-ll", "-p", str(PORT), "-e", "serve",
        )  # fmt: skip
        self.client = Client(self.lab.client, "ledger", ADDRESS, PORT, "--rate", "200")
        self.checked = 0

    def end(self) -> None:
        """Switch both hosts off and on, and forget the container and all moves."""
        if self.client is not None:
            self.client.close()
            self.client = None
        for host in (self.home, self.away):
            host.power_off()
            self.lab.power_on(host.name)
            host.sh("rm -rf /srv/pymigrate/containers/* /srv/pymigrate/migrations/*")

    def forget(self) -> None:
        """Remove the journals, as if there had been no move."""
        for host in (self.home, self.away):
            directory = host.outside("/srv/pymigrate/migrations")
            for each in directory.glob("*"):
                shutil.rmtree(each)

    def strike(self, case: Case) -> Seen:
        """Move the container, strike at a point of the move, recover, and look what is left."""
        self.begin()
        watch = Watch((self.home, self.away))
        try:
            with self.moving(case) as move:
                STRIKES[case.fault.name](self, move)
                self.go_on(move)
                mend(self)
            settled = self.home.pymigrate("recover", check=False)
            at, wrong = self.look(case)
            if settled.returncode and not case.ends_with_its_host:
                wrong.append(f"recover: {settled.returncode}: {settled.stderr}")
            lost = self.read_back() if at != "nowhere" else 0
        finally:
            watch.close()
        self.forget()
        if wrong or at == "nowhere" or not any(map(is_supervisor, tasks(self.home))):
            self.end()  # what is left cannot be moved once more
        return Seen(at, watch.twice, lost, tuple(wrong))

    @contextmanager
    def moving(self, case: Case) -> Iterator[Process]:
        """Start a move that stands still at the point."""
        words: list[str | Path] = [
            sys.executable, STRUCK, NAME, f"root@{self.away.name}", case.mode, case.point.label,
        ]  # fmt: skip
        at_target = case.point.side is Side.TARGET
        if at_target:
            self.away.outside(POINT).write_text(case.point.label, encoding="ascii")
        with self.home.popen(
            words, stdin=subprocess.PIPE, env={"PYTHONPATH": str(REPOSITORY)}
        ) as move:
            assert move.stdout is not None
            if at_target:
                registry.wait_for(
                    lambda: bool(stopped(self.away)) or move.poll() is not None, PATIENCE
                )
            if move.poll() is not None or not (at_target or move.stdout.readline() == "here\n"):
                raise AssertionError(f"the move did not come to this point: {move.communicate()}")
            yield move

    def go_on(self, move: Process) -> None:
        """Let the move go on to its end, if there is still one."""
        for pid in stopped(self.away) if self.away.is_on else ():
            os.kill(pid, signal.SIGCONT)
        with suppress(BrokenPipeError):
            move.communicate("\n", timeout=PATIENCE * 2)

    def look(self, case: Case) -> tuple[str, list[str]]:
        """Say where it runs, and what is not as the journal has it."""
        here, there = runs(self.home), runs(self.away)
        at = "source" if here else "target" if there else "nowhere"
        wrong = []
        histories = [
            journal.read(path)
            for path in self.home.outside("/srv/pymigrate/migrations").glob("*/journal")
        ]
        decided = {"source" if each.rolled_back else "target" for each in histories}
        if at != "nowhere" and not decided <= {at}:
            wrong.append(f"it runs at the {at}, and the journal says {decided}")
        if here and there:
            wrong.append("it runs twice")
        other = self.away if here else self.home
        if at != "nowhere" and (other.outside("/srv/pymigrate/containers") / NAME).exists():
            wrong.append(f"{other.name} still has a copy")
        if (at == "nowhere") is not case.ends_with_its_host:
            wrong.append(f"it runs {'' if at == 'nowhere' else 'at the '}{at}")
        if there:
            self.home, self.away = self.away, self.home
        return at, wrong

    def read_back(self) -> int:
        """Have the client go on, and count what it had acknowledged and is not in the file."""
        assert self.client is not None
        while not (seen := self.client.ask("now"))["answers"]:
            pass  # the client itself gives up, with an error, when nothing comes
        acknowledged = seen["acknowledged"]
        path = self.home.outside("/srv/pymigrate/containers") / NAME / "upper" / "written"
        numbers = [int(line) for line in path.read_text().split()]
        wanted = range(self.checked + 1, acknowledged + 1)
        lost = sum(number > len(numbers) or numbers[number - 1] != number for number in wanted)
        self.checked = acknowledged
        return lost


def mend(ground: Field) -> None:
    """Put the network and the power back, whatever was struck; ends of cut lines are ended."""
    for host in (ground.home, ground.away):
        if not host.is_on:
            ground.lab.power_on(host.name)
        ground.lab.heal(host.name)
        host.sh("nft delete table ip lost 2>/dev/null || true; ss -K -Htn state established")
        await_none(host, is_session)


def stopped(host: Host) -> list[int]:
    """List the processes that have stopped; these are agents of ours."""
    found = []
    for pid in registry.members(host.cgroups):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found += [pid] if status == "T" else []
    return found


def kill_pager(host: Host) -> None:
    """Kill the agent that puts memory into processes."""
    (pager,) = [task.pid for task in tasks(host) if task.name == MEMORY_NAME]
    os.kill(pager, signal.SIGKILL)
    registry.wait_for(lambda: pager not in [task.pid for task in tasks(host)], PATIENCE)


def interrupt(ground: Field, move: Process) -> None:
    move.send_signal(signal.SIGINT)


def killed(ground: Field, move: Process) -> None:
    move.send_signal(signal.SIGKILL)
    move.wait()


def command_and_agents(ground: Field, move: Process) -> None:
    killed(ground, move)
    for task in tasks(ground.away):
        if is_agent(task):
            with suppress(ProcessLookupError):
                os.kill(task.pid, signal.SIGKILL)


def reset(ground: Field, move: Process) -> None:
    ground.away.sh("ss -K -Htn state established")


def cut(ground: Field, move: Process) -> None:
    ground.lab.cut(ground.away.name)


def lose_answers(ground: Field, move: Process) -> None:
    ground.home.run(
        ["nft", "add table ip lost; add chain ip lost in { type filter hook input priority 0; };"
         f"add rule ip lost in ip saddr {ground.away.address} drop"]
    )  # fmt: skip


STRIKES: dict[str, Callable[[Field, Process], None]] = {
    "command of the source killed": killed,
    "command of the source interrupted": interrupt,
    "agents of the target killed": lambda ground, _: kill(ground.away, is_agent),
    "sshd of the target killed": lambda ground, _: kill(ground.away, is_session),
    "command and agents killed": command_and_agents,
    "all connections reset": reset,
    "link cut until the command ends": cut,
    "answers of the target lost until the command ends": lose_answers,
    "CRIU of the source killed": lambda ground, _: kill(ground.home, is_criu),
    "CRIU of the target killed": lambda ground, _: kill(ground.away, is_criu),
    "agent of the memory killed": lambda ground, _: kill_pager(ground.away),
    "process of the lane killed": lambda ground, _: kill(ground.home, is_lane),
    "supervisor at the source killed": lambda ground, _: kill(ground.home, is_supervisor),
    "supervisor at the target killed": lambda ground, _: kill(ground.away, is_supervisor),
    "power of the target lost": lambda ground, _: ground.away.power_off(),
    "power of the source lost": lambda ground, _: ground.home.power_off(),
}
