"""Limits, each proved by a workload that hits it; changed while running; and what is used."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from tests.privileged.tool import DEADLINE, Tool

pytestmark = [pytest.mark.privileged, pytest.mark.quiet]
BUSY = "while :; do :; done"


def stats(tool: Tool, name: str, seconds: float = 1.0) -> dict[str, float]:
    text = tool("--json", "stats", "--no-stream", "--interval", str(seconds), name).stdout
    found: dict[str, float] = json.loads(text)
    return found


def cpu_share(tool: Tool, name: str, seconds: float) -> float:
    """How many CPUs it got, counted by the kernel against our clock, over this time."""
    cgroup = Container.open(Host.open(tool.root), name).cgroup
    used, begin = cgroup.stats().cpu_microseconds or 0, time.monotonic()
    time.sleep(seconds)  # what is measured is this time
    now = cgroup.stats().cpu_microseconds or 0
    return (now - used) / 1e6 / (time.monotonic() - begin)


def test_want_of_memory_ends_a_process_and_is_reported(tool: Tool) -> None:
    script = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
    tool.run("--name", "web", "--memory", "16m", "--pids-limit", "10", "sh", "-c", script, code=137)

    assert tool.state("web")["oom_killed"] is True
    assert "out of memory" in tool("ps", "-a").stdout


def test_the_cpu_quota_holds_within_a_tenth_also_when_it_is_changed(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "--cpus", "0.3", "--pids-limit", "10", "sh", "-c", BUSY)
    assert cpu_share(tool, "web", 2.0) == pytest.approx(0.3, rel=0.1)

    tool("update", "--cpus", "0.1", "web")
    assert cpu_share(tool, "web", 3.0) == pytest.approx(0.1, rel=0.1)
    assert json.loads(tool("inspect", "web").stdout)["spec"]["linux"]["resources"]["cpu"] == {
        "quota": 10000,
        "period": 100000,
    }


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a node for the disk below the test's files."""
    device = tmp_path.stat().st_dev
    if not Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").exists():
        pytest.skip("the test's files are on no disk")
    os.mknod(tmp_path / "disk", stat.S_IFBLK | 0o600, device)
    return tmp_path / "disk"


def keep(path: Path, size: int) -> None:
    """Make a file that is on the disk: what is not would be written by whoever goes around it."""
    path.parent.mkdir()
    with path.open("wb") as stream:
        stream.write(os.urandom(size))
        stream.flush()
        os.fsync(stream.fileno())


def transfer(tool: Tool, tmp_path: Path, option: str, script: str) -> float:
    """Run a script in a container that waits for us; return the seconds that it took."""
    for name in ("go", "done"):
        os.mkfifo(tmp_path / "v" / name)
    words = ("sh", "-c", f"read x < /v/go; {script}; echo > /v/done")
    tool.run("-d", "--name", "web", option, "-v", f"{tmp_path}/v:/v:local", *words)
    (tmp_path / "v/go").write_text("go\n")
    begun = time.monotonic()
    (tmp_path / "v/done").read_text()
    return time.monotonic() - begun


@pytest.mark.parametrize("way", ["read", "write"])
def test_bytes_to_and_from_a_disk_are_held_to_their_rate(
    tool: Tool, tmp_path: Path, disk: Path, way: str
) -> None:
    keep(tmp_path / "v/file", 12 << 20)
    script = {
        "read": "dd if=/v/file of=/dev/null bs=256k iflag=direct",
        "write": "dd if=/dev/zero of=/v/file bs=256k count=48 oflag=direct conv=notrunc",
    }[way]
    took = transfer(tool, tmp_path, f"--device-{way}-bps={disk}:4m", script)

    assert took == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("way", ["read", "write"])
def test_operations_on_a_disk_are_held_to_their_rate(
    tool: Tool, tmp_path: Path, disk: Path, way: str
) -> None:
    keep(tmp_path / "v/file", 1 << 20)
    script = {
        "read": "dd if=/v/file of=/dev/null bs=4k count=150 iflag=direct",
        "write": "dd if=/dev/zero of=/v/file bs=4k count=150 oflag=direct conv=notrunc",
    }[way]
    took = transfer(tool, tmp_path, f"--device-{way}-iops={disk}:50", script)

    assert took == pytest.approx(3.0, rel=0.1)


def test_the_rate_of_a_disk_is_changed_and_taken_away_while_it_runs(tool: Tool, disk: Path) -> None:
    tool.run("-d", "--name", "web", f"--device-write-bps={disk}:4m", "sleep", "1000")
    cgroup = Container.open(Host.open(tool.root), "web").cgroup

    def limits() -> str:
        files = ("blkio.throttle.write_bps_device", "io.max")
        places = [Path(cgroup.path(each), name) for each in cgroup.members for name in files]
        return "".join(path.read_text() for path in places if path.exists())

    assert "4194304" in limits()
    tool("update", f"--device-write-bps={disk}:2m", "web")
    assert "2097152" in limits()
    tool("update", f"--device-write-bps={disk}:-1", "web")
    assert limits() == ""


@pytest.fixture
def bfq(tmp_path: Path) -> Iterator[str]:
    """Have one disk of the machine scheduled by weight: a file of the test's."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    os.truncate(file, 64 << 20)
    made = subprocess.run(
        ["losetup", "--direct-io=on", "--find", "--show", str(file)],
        check=True,
        capture_output=True,
        text=True,
    )
    device = made.stdout.strip()
    scheduler = Path("/sys/block", Path(device).name, "queue/scheduler")
    try:
        if "bfq" not in scheduler.read_text():
            pytest.skip("the kernel has no BFQ")
        scheduler.write_text("bfq")
        # Else it favours for some seconds who has just begun, and leaves the order of what it
        # passes on to a disk that takes much at once.
        for name, value in (("low_latency", "0"), ("strict_guarantees", "1")):
            scheduler.with_name("iosched").joinpath(name).write_text(value)
        yield device
        scheduler.write_text("none")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_weight_of_disks_is_set_where_one_is_scheduled_by_it(tool: Tool, bfq: str) -> None:
    tool.run("-d", "--name", "web", "--io-weight", "300", "sleep", "1000")
    cgroup = Container.open(Host.open(tool.root), "web").cgroup

    found = [
        file.read_text()
        for member in cgroup.members
        for file in Path(cgroup.path(member)).glob("*io.bfq.weight")
    ]
    assert found in (["300\n"], ["default 300\n"])


def test_a_disk_is_divided_by_weight(tool: Tool, tmp_path: Path, bfq: str) -> None:
    subprocess.run(["mkfs.ext4", "-q", bfq], check=True)
    volume = tmp_path / "v"
    volume.mkdir()
    subprocess.run(["mount", bfq, str(volume)], check=True)
    try:
        for name, weight in (("light", 100), ("heavy", 1000)):
            (volume / name).write_bytes(bytes(16 << 20))
            read = f"dd if=/v/{name} of=/dev/null bs=256k iflag=direct 2>/dev/null"
            four = f"for i in 1 2 3 4; do (while :; do {read}; done) & done; wait"
            options = ("--io-weight", str(weight), "-v", f"{volume}:/v")
            tool.run("-d", "--name", name, *options, "sh", "-c", four)
        before = [has_read(tool, name) for name in ("light", "heavy")]
        deadline = time.monotonic() + DEADLINE
        while (heavy := has_read(tool, "heavy") - before[1]) < 1 << 30:
            assert time.monotonic() < deadline, f"{heavy} bytes only"
            time.sleep(0.05)
        light = has_read(tool, "light") - before[0]
        tool("rm", "-f", "light", "heavy")
    finally:
        subprocess.run(["umount", "--lazy", str(volume)], check=True)

    assert 2 * heavy > 5 * light, (heavy, light)


def has_read(tool: Tool, name: str) -> int:
    """How many bytes a container has read of disks."""
    found = Container.open(Host.open(tool.root), name).cgroup.stats().read_bytes
    assert found is not None
    return found


def test_a_weight_of_disks_is_refused_where_none_is_scheduled_by_it(tool: Tool) -> None:
    if any("[bfq]" in path.read_text() for path in Path("/sys/block").glob("*/queue/scheduler")):
        pytest.skip("a disk of this machine is scheduled by BFQ")
    said = tool.run("--name", "web", "--io-weight", "300", "true", code=22)

    assert "weight of block io" in said.stderr
    resources = json.loads(tool("inspect", "web").stdout)["spec"]["linux"]["resources"]
    assert resources["blockIO"] == {"weight": 300}


HUGE = """
import mmap, sys
size = int(sys.argv[1]) << 21
try:
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | int(sys.argv[2], 16))
except OSError as error:
    sys.exit(error.strerror)
for page in range(0, size, 1 << 21):
    memory[page] = 1
"""
RESERVED, UNRESERVED = "0x40000", "0x44000"  # MAP_HUGETLB, and with MAP_NORESERVE


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Have the machine keep eight of 2 MiB."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pool.exists():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    before = pool.read_text()
    try:
        pool.write_text("8")
        assert pool.read_text() == "8\n", "the machine has no eight huge pages left"
        yield
    finally:
        pool.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_end_at_their_limit_also_when_it_is_changed(tool: Tool) -> None:
    tool("run", "-d", "--name", "web", "--net", "none", "--rootfs", "/", "--hugetlb", "2MB:4m",
         "sleep", "1000")  # fmt: skip

    def use(pages: int, how: str, *, code: int = 0) -> str:
        return tool(
            "exec", "web", sys.executable, "-c", HUGE, str(pages), how, code=code
        ).stderr.strip()

    use(2, RESERVED)
    assert use(3, RESERVED, code=1) == "Cannot allocate memory"
    use(2, UNRESERVED)
    use(3, UNRESERVED, code=128 + signal.SIGBUS)
    tool("update", "--hugetlb", "2MB:8m", "web")
    use(4, RESERVED)
    use(4, UNRESERVED)
    use(5, RESERVED, code=1)
    tool("update", "--hugetlb", "2MB:-1", "web")
    use(8, RESERVED)


def test_huge_pages_of_a_size_that_the_kernel_has_not_are_refused(tool: Tool) -> None:
    said = tool.run("--name", "web", "--hugetlb", "3MB:6m", "true", code=22)

    assert "cannot enforce the limit of huge pages of 3MB" in said.stderr
    assert "this kernel has huge pages of" in said.stderr


def test_a_fork_bomb_ends_at_the_limit_of_processes(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "--pids-limit", "12", "--memory", "64m", "sleep", "1000")
    # Bounded by itself too: at most 64 processes, of 20 seconds each.
    bomb = "i=0; while [ $i -lt 64 ]; do sleep 20 & i=$((i+1)); done; echo all"

    failed = tool("exec", "web", "sh", "-c", bomb, code=2)

    assert "fork" in failed.stderr
    assert "all" not in failed.stdout
    assert stats(tool, "web", 0.05)["processes"] == 11  # the bomb's shell has given up


def test_a_device_that_is_not_allowed_cannot_be_opened_even_where_its_node_is(tool: Tool) -> None:
    script = (
        "busybox mknod /null c 1 3 && echo made; echo > /null && echo written; "
        "busybox mknod /mem c 1 1 2>/dev/null; cat /mem 2>&1 | grep -c ."
    )
    found = tool.run("--rm", "--cap-add", "mknod", "sh", "-c", script, code=None).stdout

    assert found.splitlines()[:2] == ["made", "written"]
    os.mknod(tool.rootfs / "mem", 0o20666, os.makedev(1, 1))
    refused = tool.run("--rm", "cat", "/mem", code=1).stderr
    assert "Operation not permitted" in refused


def test_limits_are_changed_while_it_runs_and_stay(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "--memory", "64m", "sleep", "1000")
    tool("update", "--memory", "32m", "--pids-limit", "7", "--cpu-weight", "50", "web")

    found = stats(tool, "web", 0.05)
    assert (found["memory_limit_bytes"], found["pids_limit"]) == (32 << 20, 7)
    tool("exec", "web", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done", code=2)
    tool("update", "--memory", "-1", "--pids-limit", "-1", "web")
    tool("exec", "web", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 0.1 & done; wait")

    tool("stop", "-t", "0", "web")
    tool("update", "--pids-limit", "5", "web")
    tool("start", "web")
    assert stats(tool, "web", 0.05)["pids_limit"] == 5
    tool("exec", "web", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done", code=2)


def test_of_several_limits_all_change_or_none(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "--memory", "64m", "--pids-limit", "9", "sleep", "1000")
    before = tool("inspect", "web").stdout

    # The kernel refuses the last one, after the others were set.
    failed = tool(
        "update", "--memory", "32m", "--cpus", "0.5", "--cpuset-cpus", "900", "web", code=20
    )

    assert "900" in failed.stderr
    assert tool("inspect", "web").stdout == before
    # More than 32 MiB at once: the old limit holds, and the new one would not let it.
    greedy = ("dd", "if=/dev/zero", "of=/dev/null", "bs=40M", "count=1")
    tool("exec", "web", *greedy)
    tool("update", "--memory", "32m", "web")
    tool("exec", "web", *greedy, code=137)


@pytest.mark.parametrize(
    "words", [(), ("--memory", "1k"), ("--memory-swap", "10m"), ("--cpus", "nan")]
)
def test_limits_that_make_no_sense_change_nothing(tool: Tool, words: tuple[str, ...]) -> None:
    tool.run("-d", "--name", "web", "--memory", "64m", "sleep", "1000")
    before = tool("inspect", "web").stdout

    tool("update", *words, "web", code=2)

    assert tool("inspect", "web").stdout == before


def test_stats_count_processors_memory_processes_and_disk(tool: Tool) -> None:
    script = f"sleep 1000 & {BUSY}"
    options = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "10")
    tool.run("-d", "--name", "web", *options, "sh", "-c", script)
    found = stats(tool, "web", 2.0)

    assert found["cpus"] == pytest.approx(0.5, rel=0.2)
    assert found["processes"] == 2
    assert 0 < found["memory_bytes"] < found["memory_limit_bytes"] == 64 << 20
    assert (found["cpus_limit"], found["pids_limit"]) == (0.5, 10)
    text = tool("stats", "--no-stream", "--interval", "0.1").stdout
    assert "web" in text
    assert "64.0 MiB" in text


def test_stats_go_on_until_the_container_ends(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    words = tool.argv("--json", "stats", "--interval", "0.05", "web")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        for _ in range(3):
            assert json.loads(watching.stdout.readline())["name"] == "web"
        tool("kill", "web")
        assert watching.wait(timeout=20) == 0


def test_a_container_that_does_not_run_has_no_stats(tool: Tool) -> None:
    tool.run("--name", "web", "true")

    assert "uses nothing" in tool("stats", "--no-stream", "web", code=13).stderr
