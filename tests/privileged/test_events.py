"""``events``: what people did and what containers did, in order, while it happens."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.privileged.tool import Tool

pytestmark = pytest.mark.privileged


def happened(tool: Tool, *options: str) -> list[dict[str, object]]:
    lines = tool("--json", "events", "--no-stream", *options).stdout.splitlines()
    return [json.loads(line) for line in lines]


def actions(tool: Tool, *options: str) -> list[object]:
    return [each["action"] for each in happened(tool, *options)]


def test_a_container_is_followed_from_its_making_to_its_removal(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    tool("pause", "web")
    tool("resume", "web")
    tool("update", "--pids-limit", "50", "web")
    tool("kill", "-s", "TERM", "web")  # to which process 1 is deaf
    tool("stop", "-t", "0", "web")
    tool("rm", "web")

    assert actions(tool) == [
        "create", "start", "pause", "resume", "update", "kill", "died", "stop", "remove",
    ]  # fmt: skip
    [died] = happened(tool, "--filter", "action=died")
    assert died["name"] == "web"
    assert died["attributes"] == {"exit_code": 137, "oom_killed": False}


def test_what_removes_itself_is_told_too(tool: Tool) -> None:
    tool.run("--rm", "--name", "job", "sh", "-c", "exit 3", code=3)

    assert actions(tool)[:3] == ["create", "start", "died"]
    with subprocess.Popen(
        tool.argv("--json", "events", "--since", "1h", "--filter", "action=remove"),
        stdout=subprocess.PIPE,
    ) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["name"] == "job"
        following.terminate()


def test_who_follows_is_told_as_it_happens(tool: Tool) -> None:
    tool.run("--name", "old", "true")
    words = tool.argv("--json", "events", "--since", "1h", "--filter", "container=new",
                      "--filter", "container=old", "--filter", "event=died")  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["name"] == "old"
        tool.run("--name", "another", "true")
        tool.run("--name", "new", "sh", "-c", "exit 4", code=4)
        line = json.loads(following.stdout.readline())
        assert (line["name"], line["attributes"]["exit_code"]) == ("new", 4)
        following.send_signal(signal.SIGINT)
        assert following.wait(timeout=20) == 130


def test_times_bound_what_is_shown(tool: Tool) -> None:
    tool.run("--name", "one", "true")
    tool.run("--name", "two", "true")
    middle = str(happened(tool, "--filter", "container=two")[0]["time"])

    assert {each["name"] for each in happened(tool, "--until", middle)} == {"one"}
    assert {each["name"] for each in happened(tool, "--since", middle)} == {"two"}
    ended = tool("events", "--since", "1h", "--until", middle).stdout.splitlines()
    assert [line.split()[1] for line in ended] == ["create", "start", "died"]
    assert "--until" in tool("events", "--until", "yesterday", code=2).stderr
    assert "colour" in tool("events", "--filter", "colour=red", code=2).stderr


@pytest.mark.criu
def test_checkpoints_and_restores_are_events(tool: Tool, tmp_path: Path) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    file = str(tmp_path / "web.tar")
    tool("checkpoint", "web", "-o", file)
    tool("restore", file)

    found = actions(tool)
    assert sorted(map(str, found[2:4])) == ["checkpoint", "died"]
    assert found[4:] == ["restore"]
