"""--init: orphans are reaped, and signals reach a command that has no handler for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime import reaping
from tests.privileged.tool import Tool, until

pytestmark = pytest.mark.privileged

# Leaves an orphan that ends when somebody writes to the pipe, under a process that never waits.
ORPHAN = ("sh", "-c", "(sh -c 'echo $$; read x < /go/fifo' &); exec sleep 1000")


def orphan_state(tool: Tool, tmp_path: Path, *options: str) -> Iterator[str | None]:
    """Yield the orphan's state, as proc_pid_stat(5) has it, before its end and from then on."""
    (tmp_path / "go").mkdir()
    os.mkfifo(tmp_path / "go/fifo")
    tool.run("-d", "--name", "web", *options, "-v", f"{tmp_path}/go:/go:local", *ORPHAN)
    until(lambda: bool(tool("logs", "web").stdout))
    inner = tool("logs", "web").stdout.strip()
    rows = [line.split(None, 2) for line in tool("top", "web").stdout.splitlines()[1:]]
    pid = next(row[0] for row in rows if row[1] == inner)

    def state() -> str | None:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return None

    yield state()
    (tmp_path / "go/fifo").write_text("end\n")
    while True:
        yield state()


def test_an_orphan_is_reaped(tool: Tool, tmp_path: Path) -> None:
    states = orphan_state(tool, tmp_path, "--init")

    assert next(states) == "S"
    until(lambda: next(states) is None)


def test_without_it_the_orphan_stays_a_zombie(tool: Tool, tmp_path: Path) -> None:
    states = orphan_state(tool, tmp_path)

    assert next(states) == "S"
    until(lambda: next(states) == "Z")


def test_a_command_without_handlers_is_ended_by_a_signal(tool: Tool) -> None:
    tool.run("-d", "--init", "--name", "web", "sleep", "1000")
    tool("kill", "-s", "TERM", "web")

    assert tool("wait", "web").stdout == "143\n"


@pytest.mark.parametrize("option", ["--read-only", "--userns=auto", "--cap-drop=all"])
def test_the_exit_code_is_the_commands_under_any_confinement(tool: Tool, option: str) -> None:
    tool.run("--init", option, "sh", "-c", "exit 7", code=7)


def test_it_is_no_change_that_the_container_made(tool: Tool) -> None:
    tool.run("--init", "--name", "web", "touch", "/made")

    assert tool("diff", "web").stdout == "A /made\n"


def test_a_command_that_is_not_there_is_told_as_podman_does(tool: Tool) -> None:
    tool.run("--init", "nonesuch", code=127)


def test_it_needs_a_process_1_of_its_own(tool: Tool) -> None:
    refused = tool.run("--init", "--share", "pid", "true", code=2)

    assert "PID namespace" in refused.stderr
    assert tool("ps", "-aq").stdout == ""


def test_in_the_hosts_root_the_hosts_own_is_run(tool: Tool) -> None:
    tool.run("--init", "--name", "web", "--share", "mount", "/bin/busybox", "true")

    args = json.loads(tool("inspect", "web").stdout)["spec"]["process"]["args"]
    assert args == [str(reaping.find()), "--", "/bin/busybox", "true"]


@pytest.mark.criu
def test_it_goes_along(tool: Tool, tmp_path: Path) -> None:
    tool.run("-d", "--init", "--name", "web", "sleep", "1000")
    file = str(tmp_path / "web.tar")
    tool("checkpoint", "web", "-o", file)
    tool("rm", "web")
    tool("restore", file)
    tool("kill", "-s", "TERM", "web")

    assert tool("wait", "web").stdout == "143\n"
