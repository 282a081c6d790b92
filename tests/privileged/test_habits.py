"""Logs that are bounded and followed, and lists that are filtered, by the command line."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.privileged.tool import Tool

pytestmark = pytest.mark.privileged


def test_a_follower_sees_all_lines_across_rotations(tool: Tool) -> None:
    # Paced by the follower, who answers each hundred: a faster writer outruns any bounded log.
    script = (
        "read start; i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); "
        "[ $((i % 100)) = 0 ] && read go; done"
    )
    options = ("--log-opt", "max-size=4096", "-i", "--name", "web")
    with tool.popen(*options, "sh", "-c", script) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"start\n")
        running.stdin.flush()
        for number in range(3000):
            assert running.stdout.readline() == b"line %d\n" % number
            if number % 100 == 99:
                running.stdin.write(b"go\n")
                running.stdin.flush()
        running.stdin.close()
        assert running.wait(timeout=20) is not None

    kept = tool("logs", "web").stdout.splitlines()
    assert kept == [f"line {number}" for number in range(3000 - len(kept), 3000)]
    files = [tool.root / "containers/web" / name for name in ("log", "log.1")]
    assert all(path.stat().st_size <= 4096 for path in files)
    assert tool("logs", "--tail", "2", "web").stdout == "line 2998\nline 2999\n"


def test_logs_begin_at_a_time_and_go_on_until_the_end(tool: Tool) -> None:
    tool.run("-d", "-i", "--name", "web", "sh", "-c", "echo old; read go; echo new")
    words = tool.argv("logs", "-f", "--since", "1h", "web")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"old\n"
        subprocess.run(tool.argv("attach", "web"), input=b"go\n", check=False, timeout=30)
        assert following.stdout.read() == b"new\n"
    times = [json.loads(line)["time"] for line in tool("--json", "logs", "web").stdout.splitlines()]

    assert tool("logs", "--since", times[1], "web").stdout == "new\n"
    assert tool("logs", "--since", "2100-01-01", "web").stdout == ""
    tool("logs", "--since", "yesterday", "web", code=2)


def test_the_list_is_filtered(tool: Tool) -> None:
    tool.run("-d", "--name", "web1", "sleep", "1000")
    tool.run("-d", "--name", "web2", "sleep", "1000")
    tool.run("--name", "job", "sh", "-c", "exit 3", code=3)
    tool("pause", "web2")

    def listed(*words: str) -> list[str]:
        filters = [part for word in words for part in ("--filter", word)]
        return tool("ps", "--names", *filters).stdout.split()

    assert listed() == ["web1", "web2"]
    assert listed("name=eb") == ["web1", "web2"]
    assert listed("name=eb", "status=paused") == ["web2"]
    assert listed("status=paused", "status=running") == ["web1", "web2"]
    assert listed("exited=3") == ["job"]
    assert listed("exited=0") == []
    assert listed("status=exited", "name=job") == ["job"]
    [row] = json.loads(tool("ps", "--format", "json", "--filter", "name=web1").stdout)
    assert ("web1", "running") == (row["name"], row["status"])
    assert "no such status" in tool("ps", "--filter", "status=gone", code=2).stderr
    assert listed(f"image={tool.rootfs}", "network=none", "name=1") == ["web1"]
    assert "unknown" in tool("ps", "--filter", "colour=red", code=2).stderr


@pytest.mark.parametrize("net", ["none", "host", "bridge"])
def test_a_container_finds_others_by_the_names_that_it_was_given(tool: Tool, net: str) -> None:
    said = tool.run(
        "--rm", "--net", net, "--dns", "192.0.2.53", "--dns-search", "example.org",
        "--add-host", "db:192.0.2.7", "--add-host", "host:host-gateway",
        "cat", "/etc/resolv.conf", "/etc/hosts",
    ).stdout.replace("\t", " ").splitlines()  # fmt: skip

    servers = [line for line in said if line.startswith("nameserver")]
    assert ["nameserver 192.0.2.53"] == servers
    assert {"search example.org", "192.0.2.7 db"} <= set(said)
    assert ("10.88.0.1 host" if net == "bridge" else "127.0.0.1 host") in said
