"""Cgroups of the running kernel: freezing, killing, limits, removing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.cgroups import TOP, Cgroup, current_layout
from pymigrate.runtime.cgroups_layout import Layout
from pymigrate.runtime.errors import ContainerError, HostError, MissingFeature
from pymigrate.runtime.spec import DeviceRule, Resources

pytestmark = pytest.mark.privileged

# Uses the processor without ever sleeping, alone or as two processes.
COUNTER = """
import os, sys
child = os.fork() if "fork" in sys.argv else 1
if child: print("ready", flush=True)
while True: pass
"""
# Every process of it ends by itself after a second: should kill() lose, the machine must not.
# Doubles every 10 ms and outruns whoever kills one after the other; stops at 512, or after 5 s.
FORK_BOMB = """
import os, signal, time
end = time.monotonic() + 5
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for _ in range(9):
    try: os.fork()
    except OSError: pass
    time.sleep(0.01)
while time.monotonic() < end: time.sleep(0.01)
"""
GREEDY = """
blocks = []
print("ready", flush=True)
while True: blocks.append(bytearray(1 << 20))
"""


def only(version: int) -> Layout:
    found = tuple(each for each in current_layout().hierarchies if each.version == version)
    if not found:
        pytest.skip(f"no cgroup v{version} here")
    return Layout(found)


@pytest.fixture(params=["all", "v1", "v2"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """Return what this host has; v1 and v2 also each by itself, where it is hybrid."""
    if request.param == "all":
        return current_layout()
    return only(int(request.param[1]))


@pytest.fixture
def cgroup(layout: Layout) -> Iterator[Cgroup]:
    cgroup = Cgroup.named(f"test{os.getpid()}/web1", layout)
    cgroup.create()
    yield cgroup
    cgroup.kill()
    cgroup.remove()


def start(cgroup: Cgroup, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        preexec_fn=cgroup.join,  # noqa: PLW1509 the tests have one thread
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    if process.stdout:
        process.stdout.close()
    return process.wait(10)


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_joining_puts_a_process_into_every_hierarchy(cgroup: Cgroup) -> None:
    process = start(cgroup, COUNTER)
    lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    inside = [line for line in lines if line.endswith(f"/{TOP}/{cgroup.name}")]

    assert len(inside) == len(cgroup.members)
    assert cgroup.pids() == (process.pid,)
    cgroup.kill()
    assert end(process) == -signal.SIGKILL


def test_what_is_frozen_does_not_run_and_goes_on_when_thawed(cgroup: Cgroup) -> None:
    process = start(cgroup, COUNTER)
    cgroup.freeze()
    assert cgroup.frozen()
    before = ticks(process.pid)
    select.select([], [], [], 0.15)  # let time pass
    assert ticks(process.pid) == before

    cgroup.thaw()
    assert not cgroup.frozen()
    deadline = time.monotonic() + 5
    while ticks(process.pid) == before and time.monotonic() < deadline:
        select.select([], [], [], 0.01)
    assert ticks(process.pid) > before
    cgroup.kill()
    end(process)


def test_freezing_is_quick(cgroup: Cgroup) -> None:
    process = start(cgroup, COUNTER, "fork")
    took = []
    for _ in range(5):
        begin = time.monotonic()
        cgroup.freeze()
        took.append(time.monotonic() - begin)
        cgroup.thaw()

    assert sorted(took)[2] < 0.05  # the median, on a busy machine
    cgroup.kill()
    end(process)


def test_the_frozen_die_by_kill(cgroup: Cgroup) -> None:
    process = start(cgroup, COUNTER, "fork")
    cgroup.freeze()
    cgroup.kill()

    assert cgroup.pids() == ()
    assert end(process) == -signal.SIGKILL


def test_kill_wins_against_a_fork_bomb(cgroup: Cgroup) -> None:
    if cgroup._member("pids").controllers:
        cgroup.apply(Resources(pids_limit=400))  # this test must not hurt others
    process = start(cgroup, FORK_BOMB)
    deadline = time.monotonic() + 5
    while len(cgroup.pids()) < 30 and time.monotonic() < deadline:
        select.select([], [], [], 0.005)
    cgroup.kill()

    assert cgroup.pids() == ()
    end(process)


def test_remove_refuses_while_someone_is_in_it(cgroup: Cgroup) -> None:
    process = start(cgroup, COUNTER)
    with pytest.raises(ContainerError, match=str(process.pid)):
        cgroup.remove(timeout=0.05)
    cgroup.create()
    cgroup.add(process.pid)
    cgroup.kill()
    end(process)


def test_remove_waits_for_the_dying_and_leaves_no_parents(layout: Layout) -> None:
    cgroup = Cgroup.named(f"test{os.getpid()}/other", layout)
    cgroup.create()
    process = start(cgroup, COUNTER, "fork")
    for pid in cgroup.pids():
        os.kill(pid, signal.SIGKILL)
    cgroup.remove()

    assert not any(Path(each.base, TOP, f"test{os.getpid()}").exists() for each in cgroup.members)
    end(process)


def test_evict_takes_a_process_out_of_the_freezers_reach(cgroup: Cgroup) -> None:
    process = start(cgroup, COUNTER)
    cgroup.evict(process.pid)
    cgroup.freeze()

    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "R"
    cgroup.thaw()
    process.kill()
    end(process)


def test_a_cgroup_that_the_container_made_is_frozen_killed_and_removed_too(layout: Layout) -> None:
    cgroup = Cgroup.named(f"test{os.getpid()}/nest", layout)
    cgroup.create()
    process = start(cgroup, COUNTER)
    below = Path(cgroup.freezer_path, "service")
    below.mkdir()
    (below / "cgroup.procs").write_text(str(process.pid))

    assert cgroup.pids() == (process.pid,)
    cgroup.freeze()
    cgroup.kill()
    end(process)
    cgroup.remove()
    assert not cgroup.exists()


def test_only_the_usual_devices_can_be_opened_until_others_are_allowed(cgroup: Cgroup) -> None:
    cgroup.apply(Resources())
    program = "open('/dev/null'); open('/dev/ptmx'); open('/dev/kmsg')"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        stderr=subprocess.PIPE,
        preexec_fn=cgroup.join,
        check=False,
    )
    assert b"PermissionError" in result.stderr
    assert b"/dev/kmsg" in result.stderr

    cgroup.apply(Resources(devices=(DeviceRule(True),)))
    again = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        preexec_fn=cgroup.join,
        check=False,
    )
    assert again.returncode == 0


def test_making_a_node_can_be_allowed_and_opening_it_not(cgroup: Cgroup, tmp_path: Path) -> None:
    memory, null = tmp_path / "memory", tmp_path / "null"
    program = (
        f"import os; os.mknod({os.fspath(memory)!r}, 0o20600, os.makedev(1, 1));"
        f"os.mknod({os.fspath(null)!r}, 0o20600, os.makedev(1, 3)); open({os.fspath(null)!r});"
        f"open({os.fspath(memory)!r})"
    )

    def errors() -> bytes:
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", program],
            stderr=subprocess.PIPE,
            preexec_fn=cgroup.join,
            check=False,
        ).stderr

    cgroup.apply(Resources())
    refused = errors()
    assert b"PermissionError" in refused
    assert os.fspath(memory).encode() in refused.splitlines()[-1]
    assert null.exists()
    assert memory.exists()
    null.unlink()
    memory.unlink()

    cgroup.apply(Resources(devices=(DeviceRule(False), DeviceRule(True, "c", access="rw"))))
    assert b"PermissionError" in errors()
    assert not memory.exists()


class TestLimits:
    """Limits are in force, not only written."""

    @pytest.fixture
    def layout(self) -> Layout:
        return current_layout()

    def test_memory(self, cgroup: Cgroup) -> None:
        cgroup.apply(Resources(memory_limit=32 << 20, memory_swap=32 << 20))
        process = start(cgroup, GREEDY)

        assert end(process) == -signal.SIGKILL
        assert cgroup.oom_kills() >= 1
        assert 0 < (cgroup.stats().memory_peak_bytes or 0) <= 32 << 20

    def test_processes(self, cgroup: Cgroup) -> None:
        cgroup.apply(Resources(pids_limit=1))
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-c", "import os; os.fork()"],
            stderr=subprocess.PIPE,
            preexec_fn=cgroup.join,
            check=False,
        )

        assert b"BlockingIOError" in result.stderr

    def test_cpu(self, cgroup: Cgroup) -> None:
        cgroup.apply(Resources(cpu_quota_us=10_000, cpu_period_us=100_000, cpu_weight=50))
        process = start(cgroup, COUNTER)
        used, begin = cgroup.stats().cpu_microseconds, time.monotonic()
        select.select([], [], [], 0.5)
        cgroup.freeze()
        share = ((cgroup.stats().cpu_microseconds or 0) - (used or 0)) / (
            (time.monotonic() - begin) * 1e6
        )
        cgroup.kill()
        end(process)

        assert share < 0.3  # asked: 0.1

    def test_cpuset(self, cgroup: Cgroup) -> None:
        cgroup.apply(Resources(cpuset_cpus="0"))
        process = start(cgroup, COUNTER)

        assert os.sched_getaffinity(process.pid) == {0}
        cgroup.kill()
        end(process)

    def test_a_cpu_that_is_not_there_is_named(self, cgroup: Cgroup) -> None:
        with pytest.raises(HostError, match="set of cpus 4095"):
            cgroup.apply(Resources(cpuset_cpus="4095"))

    def test_a_controller_that_is_not_there_is_named(self) -> None:
        cgroup = Cgroup.named(f"test{os.getpid()}/bare", only(2))
        cgroup.create()
        try:
            if (Path(cgroup.freezer_path) / "memory.max").exists():
                pytest.skip("cgroup v2 has the memory controller here")
            with pytest.raises(MissingFeature, match="memory limit"):
                cgroup.apply(Resources(memory_limit=1 << 30))
        finally:
            cgroup.remove()
