"""What is in a container's file systems in memory comes back from a file and from a snapshot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.privileged.tool import Tool

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

FILES = """
mkdir /dev/shm/own; echo secret > /dev/shm/own/file; echo small > /tmp/file
dd if=/dev/zero of=/dev/shm/sparse bs=1 count=1 seek=3g 2>/dev/null; : > /dev/new
"""
LOOK = """
grep tmpfs /proc/mounts | grep -v cgroup; ls -lanR /dev/shm /tmp; ls -la /dev
cat /dev/shm/own/file /tmp/file /proc/1/fd/3
ls -A /sys/firmware; touch /sys/firmware/new 2>&1; cat /proc/keys
"""


def inside(tool: Tool, script: str) -> str:
    return tool("exec", "web", "sh", "-c", script).stdout


def look(tool: Tool) -> list[str]:
    return sorted(inside(tool, LOOK).splitlines())


@pytest.fixture
def before(tool: Tool) -> list[str]:
    keeps = "exec 3<>/dev/shm/open; echo open >&3; sleep 1000"
    tool.run("-d", "--name", "web", "--tmpfs", "/tmp:size=1m", "sh", "-c", keeps)
    inside(tool, FILES)
    return look(tool)


def test_in_a_file(tool: Tool, tmp_path: Path, before: list[str]) -> None:
    path = str(tmp_path / "web.tar")
    tool("checkpoint", "web", "-o", path, "--compress", "none")
    tool("rm", "web")
    names = json.loads(tool("archive", "inspect", "--json", path).stdout)
    tool("restore", path)

    assert before == look(tool)
    assert "tmpfs-0.tar" in json.dumps(names)


def test_in_a_snapshot(tool: Tool, before: list[str]) -> None:
    for text in ("secret\n", "more\n"):
        tool("snapshot", "create", "web")
        tool("rm", "-f", "web")
        tool("snapshot", "restore", "latest")

        assert text == inside(tool, "cat /dev/shm/own/file")
        assert before == look(tool)
        inside(tool, "echo more > /dev/shm/own/file")
        before = look(tool)
