"""Health commands: what they say of a container, and that they are in nobody's way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.privileged.tool import Tool, until

pytestmark = pytest.mark.privileged

EACH_SECOND = ("--health-interval", "1s")
# Says that it has begun, and would take for ever.
ENDLESS = (*EACH_SECOND, "--health-cmd", "echo > /go/began; read x < /go/fifo")


@pytest.fixture
def go(tmp_path: Path) -> Path:
    (tmp_path / "go").mkdir()
    os.mkfifo(tmp_path / "go/fifo")
    return tmp_path / "go"


def health(tool: Tool) -> object:
    return tool.state("web")["health"]


def checks(tool: Tool) -> int:
    """Count the processes of checks."""
    return sum("/go/fifo" in line for line in tool("top", "web").stdout.splitlines())


def endless(tool: Tool, go: Path, *options: str) -> None:
    """Start a container, and return when a check runs in it that does not end."""
    tool.run("-d", "--name", "web", "-v", f"{go}:/go:local", *ENDLESS, *options, "sleep", "1000")
    until((go / "began").exists)
    assert checks(tool) == 1


def test_the_verdict_is_that_of_the_command(tool: Tool) -> None:
    options = (*EACH_SECOND, "--health-cmd", "grep -q yes /ok", "--health-retries", "2")
    tool.run("-d", "--name", "web", *options, "sleep", "1000")
    assert health(tool) == "starting"
    until(lambda: health(tool) == "unhealthy")
    assert "running (unhealthy)" in tool("ps").stdout
    assert tool("ps", "--names", "--filter", "health=unhealthy").stdout == "web\n"

    tool("exec", "web", "sh", "-c", "echo yes > /ok")
    until(lambda: health(tool) == "healthy")
    lines = tool("--json", "events", "--no-stream", "--filter", "action=health").stdout
    told = [json.loads(line)["attributes"]["status"] for line in lines.splitlines()]
    assert told == ["unhealthy", "healthy"]
    tool("stop", "-t", "0", "web")
    assert health(tool) is None


def test_it_runs_as_the_containers_own_command_does(tool: Tool) -> None:
    command = "id -u > /dev/shm/id; cat /proc/1/comm /proc/self/status >> /dev/shm/id"
    options = (*EACH_SECOND, "--health-cmd", command, "-u", "web", "--cap-drop", "all")
    tool.run("-d", "--name", "web", *options, "sleep", "1000")
    until(lambda: health(tool) == "healthy")

    seen = tool("exec", "web", "cat", "/dev/shm/id").stdout
    assert seen.startswith("33\nsleep\n")
    assert "CapEff:\t0000000000000000" in seen
    assert "Seccomp:\t2" in seen


def test_a_check_that_takes_too_long_has_failed_and_is_gone(tool: Tool, go: Path) -> None:
    endless(tool, go, "--health-timeout", "1s", "--health-retries", "1")
    until(lambda: health(tool) == "unhealthy")
    until(lambda: checks(tool) == 0)


def test_a_container_is_paused_without_the_check_and_gets_none_meanwhile(
    tool: Tool, go: Path
) -> None:
    endless(tool, go)
    tool("pause", "web")
    assert checks(tool) == 0
    assert health(tool) == "starting"
    (go / "began").unlink()
    tool("resume", "web")
    until((go / "began").exists)


@pytest.mark.criu
def test_a_checkpoint_has_no_check_in_it_and_the_restored_one_is_checked(
    tool: Tool, go: Path, tmp_path: Path
) -> None:
    endless(tool, go)
    file = str(tmp_path / "web.tar")
    tool("checkpoint", "web", "-o", file, "--leave-running")
    (go / "began").unlink()
    until((go / "began").exists)
    tool("checkpoint", "web", "-o", file)
    (go / "began").unlink()
    tool("restore", file)
    assert health(tool) == "starting"
    until((go / "began").exists)


def test_what_makes_no_sense_is_refused(tool: Tool) -> None:
    for options in (
        ("--health-interval", "10s"),
        ("--health-cmd", "true", "--health-interval", "10"),
        ("--health-cmd", "true", "--health-timeout", "2d"),
        ("--health-cmd", "true", "--health-retries", "0"),
    ):
        assert "--health-" in tool.run(*options, "true", code=2).stderr
    assert tool("ps", "-aq").stdout == ""
