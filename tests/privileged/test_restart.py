"""Containers that are run again when they end: by whom, when, and when not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from pymigrate.runtime.lock import locked
from pymigrate.runtime.state import Identity
from tests.privileged.tool import Tool, names, until

pytestmark = pytest.mark.privileged

# Each run waits for the code with which it is to end.
OBEDIENT = ("sh", "-c", "echo run; read code < /go/fifo; exit $code")


@pytest.fixture
def go(tmp_path: Path) -> Path:
    (tmp_path / "go").mkdir()
    os.mkfifo(tmp_path / "go/fifo")
    return tmp_path / "go"


def end(go: Path, code: int) -> None:
    """Have the run that waits, or is about to, end."""
    with (go / "fifo").open("w") as stream:
        stream.write(f"{code}\n")


def obedient(tool: Tool, go: Path, policy: str, *options: str) -> Identity:
    tool.run(
        "-d", "--name", "web", "--restart", policy, *options, "-v", f"{go}:/go:local", *OBEDIENT
    )
    return tool.supervisor("web")


def is_run(tool: Tool, number: int) -> bool:
    state = tool.state("web")
    return (state["status"], state["restarts"]) == ("running", number)


def has_ended(tool: Tool, supervisor: Identity) -> bool:
    """Say whether nobody is left who could run it again."""
    return tool.state("web")["status"] == "stopped" and not supervisor.is_alive


def test_always_runs_it_again_by_the_same_supervisor_until_stop(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "always")
    for number, code in enumerate((0, 3, 0), 1):
        end(go, code)
        until(lambda number=number: is_run(tool, number))  # type: ignore[misc]
    assert tool.supervisor("web") == supervisor
    assert tool("logs", "web").stdout == "run\n" * 4

    tool("stop", "-t", "0", "web")
    until(lambda: has_ended(tool, supervisor))
    assert tool.state("web")["restarts"] == 3
    tool("start", "web")
    assert is_run(tool, 0)


def test_a_run_again_leaves_nothing_of_the_run_before(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "always")

    def held() -> list[str]:
        return names(f"/proc/{supervisor.pid}/fd")

    end(go, 1)
    until(lambda: is_run(tool, 1))
    before = len(held())
    for number in (2, 3):
        end(go, 1)
        until(lambda number=number: is_run(tool, number))  # type: ignore[misc]
    until(lambda: len(held()) == before)
    mounts = Path(f"/proc/{supervisor.pid}/mountinfo").read_text()
    assert mounts.count(str(tool.root / "containers/web/rootfs")) == 1


@pytest.mark.parametrize("option", ["-t", "-i", "--userns=auto", "--init", "--read-only"])
def test_containers_of_every_kind_are_run_again(tool: Tool, go: Path, option: str) -> None:
    obedient(tool, go, "always", option)
    end(go, 1)
    until(lambda: is_run(tool, 1))
    end(go, 0)
    until(lambda: is_run(tool, 2))
    assert tool("logs", "web").stdout.split() == ["run"] * 3
    assert tool("exec", "web", "echo", "here").stdout == "here\n"


def test_who_runs_it_in_the_foreground_sees_the_first_end(tool: Tool) -> None:
    words = ("--name", "web", "--restart", "on-failure:1", "sh", "-c", "echo run; exit 3")
    assert tool.run(*words, code=3).stdout.startswith("run\n")
    until(lambda: tool.state("web")["status"] == "stopped")
    assert tool("logs", "web").stdout == "run\nrun\n"


def test_on_failure_runs_it_again_so_often_and_not_after_success(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "on-failure:2")
    for number in (1, 2):
        end(go, 7)
        until(lambda number=number: is_run(tool, number))  # type: ignore[misc]
    end(go, 8)
    until(lambda: has_ended(tool, supervisor))
    state = tool.state("web")
    assert (state["restarts"], state["exit_code"]) == (2, 8)

    tool("start", "web")
    supervisor = tool.supervisor("web")
    end(go, 0)
    until(lambda: has_ended(tool, supervisor))
    assert tool.state("web")["restarts"] == 0


def test_a_person_who_is_at_work_on_it_comes_first_and_stop_ends_the_wait(
    tool: Tool, go: Path
) -> None:
    supervisor = obedient(tool, go, "always")
    with locked(tool.root / "containers/web"):
        end(go, 5)
        until(lambda: tool.state("web")["status"] == "restarting")
        assert "restarting (5)" in tool("ps").stdout
        assert tool("ps", "--filter", "status=restarting", "--names").stdout == "web\n"
        assert tool("wait", "web").stdout == "5\n"
        assert "is restarting" in tool("exec", "web", "true", code=13).stderr
        tool("stop", "web")
    assert has_ended(tool, supervisor)


def test_it_goes_on_when_that_person_is_done(tool: Tool, go: Path) -> None:
    obedient(tool, go, "always")
    with locked(tool.root / "containers/web"):
        end(go, 5)
        until(lambda: tool.state("web")["status"] == "restarting")
    until(lambda: is_run(tool, 1))


def test_kill_and_rm_end_it_for_good(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "always")
    tool("kill", "web")
    until(lambda: has_ended(tool, supervisor))
    tool("start", "web")
    supervisor = tool.supervisor("web")
    end(go, 1)
    tool("rm", "-f", "web")  # in whatever state it is
    assert not supervisor.is_alive
    assert tool("ps", "-aq").stdout == ""


def test_what_cannot_be_run_again_is_tried_again(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "on-failure:3")
    (tool.rootfs / "bin/sh").unlink()
    end(go, 1)
    until(lambda: has_ended(tool, supervisor))

    assert tool.state("web")["restarts"] == 3
    log = (tool.root / "containers/web/supervisor.log").read_text()
    assert log.count("could not run it again") == 3


def test_limits_changed_while_it_ran_hold_in_the_next_run(tool: Tool, go: Path) -> None:
    obedient(tool, go, "always", "--pids-limit", "50")
    tool("update", "--pids-limit", "60", "web")
    end(go, 1)
    until(lambda: is_run(tool, 1))

    stats = json.loads(tool("--json", "stats", "--no-stream", "web").stdout)
    assert "60" in json.dumps(stats)


def test_what_a_migration_holds_is_not_run_again(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "always")
    fence = tool.root / "containers/web/migration"
    fence.write_text('{"migration": "m"}')
    os.kill(int(str(tool.state("web")["pid"])), signal.SIGKILL)
    until(lambda: has_ended(tool, supervisor))
    fence.unlink()


def test_a_fence_that_comes_during_the_wait_holds_too(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "always")
    fence = tool.root / "containers/web/migration"
    with locked(tool.root / "containers/web"):
        end(go, 5)
        until(lambda: tool.state("web")["status"] == "restarting")
        fence.write_text('{"migration": "m"}')
    log = tool.root / "containers/web/supervisor.log"
    until(lambda: "a migration holds it" in log.read_text())
    assert tool.state("web")["status"] == "restarting"
    fence.unlink()
    until(lambda: is_run(tool, 1))
    assert tool.supervisor("web") == supervisor


def test_nobody_runs_it_again_when_its_supervisor_is_gone(tool: Tool, go: Path) -> None:
    supervisor = obedient(tool, go, "always")
    os.kill(supervisor.pid, signal.SIGKILL)
    end(go, 1)
    until(lambda: tool.state("web")["status"] == "stopped")


def test_impossible_policies_are_refused_before_anything_is_made(tool: Tool) -> None:
    assert "on-failure" in tool.run("--restart", "often", "true", code=2).stderr
    assert "--rm" in tool.run("--rm", "--restart", "always", "true", code=2).stderr
    assert tool("ps", "-aq").stdout == ""


@pytest.mark.criu
def test_a_checkpoint_ends_it_and_the_restored_one_has_the_policy(
    tool: Tool, go: Path, tmp_path: Path
) -> None:
    tool.run("-d", "--name", "web", "--restart", "always", "sleep", "1000")
    supervisor = tool.supervisor("web")
    file = str(tmp_path / "web.tar.zst")
    tool("checkpoint", "web", "-o", file, "--leave-running")
    assert tool.supervisor("web") == supervisor
    tool("checkpoint", "web", "-o", file)
    assert has_ended(tool, supervisor)

    tool("restore", file)
    first = int(str(tool.state("web")["pid"]))
    os.kill(first, signal.SIGKILL)
    until(lambda: is_run(tool, 1))


@pytest.mark.criu
def test_a_checkpoint_that_fails_takes_nothing_of_the_policy(tool: Tool, tmp_path: Path) -> None:
    tool.run("-d", "--name", "web", "--restart", "always", "sleep", "1000")
    tool("checkpoint", "web", "-o", str(tmp_path / "none/web.tar.zst"), code=None)
    os.kill(int(str(tool.state("web")["pid"])), signal.SIGKILL)
    until(lambda: is_run(tool, 1))
