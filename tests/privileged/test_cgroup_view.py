"""What a container sees of its cgroup: its own limits and processes, also after a restore."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.privileged.tool import Tool

pytestmark = pytest.mark.privileged

# Which of these there is depends on the host's layout.
LIMIT = (
    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max "
    "/sys/fs/cgroup/unified/memory.max 2>/dev/null; true"
)
PROCESSES = (
    "cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | grep -x 1"
)


def inside(tool: Tool, script: str, code: int | None = 0) -> str:
    return tool("exec", "web", "sh", "-c", script, code=code).stdout


def mounted(tool: Tool) -> list[tuple[str, str, str]]:
    """List what is mounted there, the first first: how it may be used, kind and place."""
    lines = inside(tool, "grep /sys/fs/cgroup /proc/self/mounts").splitlines()
    words = sorted((each.split() for each in lines), key=lambda each: each[1])
    return [(each[3].split(",")[0], each[2], each[1]) for each in words]


def test_a_container_sees_its_own_limit_and_processes_and_changes_none(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "--memory", "64m", "sleep", "1000")

    assert "67108864" == inside(tool, LIMIT).split()[0]
    assert "1\n" == inside(tool, PROCESSES)
    found = mounted(tool)
    assert "/sys/fs/cgroup" == found[0][2]
    assert {"ro"} == {access for access, _, _ in found}
    for _, _, place in found:
        tried = inside(
            tool, f"mkdir {place}/x 2>&1 || echo 1 2>&1 > {place}/cgroup.procs", code=None
        )
        assert 2 == tried.count("Read-only") + tried.count("nonexistent")
    tool("update", "--memory", "32m", "web")
    assert "33554432" == inside(tool, LIMIT).split()[0]


def test_what_a_person_mounts_there_is_there_instead(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    said = tool.run("-v", f"{tmp_path}/mine:/sys/fs/cgroup", "ls", "/sys/fs/cgroup")

    assert "file\n" == said.stdout


def test_a_container_with_the_hosts_mounts_sees_the_hosts(tool: Tool) -> None:
    said = tool("run", "--rm", "--rootfs", "/", "--share", "mount,network", "--", "/bin/busybox",
                "ls", "/sys/fs/cgroup")  # fmt: skip

    assert sorted(each.name for each in Path("/sys/fs/cgroup").iterdir()) == said.stdout.split()


@pytest.mark.criu
@pytest.mark.parametrize("options", [(), ("--userns", "auto")])
def test_it_is_the_same_after_a_restore(
    tool: Tool, tmp_path: Path, options: tuple[str, ...]
) -> None:
    # One sleep may be interrupted by the restore, as by a signal.
    command = ("sh", "-c", "while :; do sleep 1000; done")
    tool.run("-d", "--name", "web", "--memory", "64m", *options, *command)
    before = mounted(tool)
    whole = inside(tool, "busybox awk '{print $2, $3}' /proc/self/mounts")
    tool("checkpoint", "web", "-o", str(tmp_path / "web.tar.zst"))
    tool("rm", "web")

    tool("restore", str(tmp_path / "web.tar.zst"))

    assert before == mounted(tool)
    assert sorted(whole.splitlines()) == sorted(
        inside(tool, "busybox awk '{print $2, $3}' /proc/self/mounts").splitlines()
    )
    assert "67108864" == inside(tool, LIMIT).split()[0]
    assert "1\n" == inside(tool, PROCESSES)
