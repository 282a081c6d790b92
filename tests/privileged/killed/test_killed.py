"""A command or a supervisor killed at any effect: it works, or `rm -f` removes all of it."""

from __future__ import annotations

import json

import pytest

from tests.privileged.killed.striking import moments, struck
from tests.privileged.tool import Tool, names

pytestmark = pytest.mark.privileged

NET = ("--net", "bridge", "--bridge", "pmtest0", "-p", "127.0.0.1:18080:80")
ALL = pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(3600)])
SOME = pytest.mark.parametrize("every", [40, ALL])
"""Die at each so many-eth effect; all of them take half an hour."""

VERBS = {
    "run": ("run", "-d"),
    "create": ("create",),
    "start": ("start", "web"),
    "exec": ("exec", "web", "true"),
    "pause": ("pause", "web"),
    "resume": ("resume", "web"),
    "restart": ("restart", "-t", "0", "web"),
    "stop": ("stop", "-t", "0", "web"),
    "rm": ("rm", "-f", "web"),
}
MAKING = {"run", "create"}


def making(tool: Tool, *verb: str) -> tuple[str, ...]:
    options = (*NET, "--name", "web", "--rootfs", str(tool.rootfs))
    return (*verb, *options, "sleep", "1000")


def set_scene(tool: Tool, verb: str) -> None:
    """Make a container to which the verb can be done."""
    if verb in MAKING:
        return
    tool(*making(tool, *VERBS["create" if verb == "start" else "run"]))
    if verb == "resume":
        tool("pause", "web")


def check(tool: Tool, moment: int) -> None:
    """See that the container works or is not there, and that it can be removed as a whole."""
    found = json.loads(tool("ps", "-a", "--json").stdout)
    for each in found:
        now = tool.state("web")["status"]
        assert now in {"created", "prepared", "running", "paused", "stopped"}, (moment, each)
        if now == "paused":
            tool("resume", "web")
        if now in {"running", "paused"}:
            assert tool("exec", "web", "echo", "works").stdout == "works\n", moment
    tool("rm", "-f", "web")
    assert json.loads(tool("ps", "-a", "--json").stdout) == []
    tool.run("--rm", "true")  # sweeps what was half made or half removed
    assert names(tool.root / "containers") == [], moment


@SOME
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_that_is_killed_leaves_what_works_or_is_removed_whole(
    tool: Tool, verb: str, every: int
) -> None:
    for moment in moments(every):
        set_scene(tool, verb)
        words = making(tool, *VERBS[verb]) if verb in MAKING else VERBS[verb]

        more = struck(tool, "command", moment, words)

        check(tool, moment)
        if not more:
            break


@SOME
def test_a_supervisor_that_is_killed_leaves_what_works_or_is_removed_whole(
    tool: Tool, every: int
) -> None:
    for moment in moments(every):
        more = struck(tool, "supervisor", moment, making(tool, *VERBS["run"]))

        check(tool, moment)
        if not more:
            break
