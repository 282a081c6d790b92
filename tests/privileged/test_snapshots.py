"""Snapshots of real containers: they run on, come back, and are told apart."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.killed.striking import moments, struck
from tests.privileged.tool import Tool, until

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

ALL = [pytest.mark.long, pytest.mark.timeout(1800)]

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done"


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Tool]:
    made = Tool(tmp_path)
    yield made
    for name in names(made):
        made("rm", "-f", name)


def names(tool: Tool) -> list[str]:
    return [one["name"] for one in json.loads(tool("ps", "-a", "--json").stdout)]


def start(tool: Tool, name: str = "web", script: str = COUNT) -> Path:
    """Run a container that counts; returns its file as the host sees it."""
    tool.run("-d", "--name", name, "sh", "-c", script)
    count = tool.root / "containers" / name / "upper/count"
    until(lambda: count.exists() and count.read_text() != "")
    return count


def moves(count: Path) -> bool:
    before = count.read_text()
    until(lambda: count.read_text() not in ("", before))
    return True


def create(tool: Tool, *words: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(tool("snapshot", "create", "web", "--json", *words).stdout)
    return made


def kept(tool: Tool, *words: str) -> list[str]:
    found = json.loads(tool("snapshot", "ls", "--json", *words).stdout)
    return [one["id"] for one in found]


def test_container_runs_on_and_every_snapshot_comes_back(tool: Tool) -> None:
    count = start(tool)
    made = [create(tool) for _ in range(3) if moves(count)]
    tool("snapshot", "verify", "--data")
    last = int(count.read_text() or 0)

    for number, one in enumerate(made):
        tool("snapshot", "restore", one["id"], "--name", f"copy{number}")

    counts = [tool.root / f"containers/copy{number}/upper/count" for number in range(3)]
    assert all(moves(one) for one in (*counts, count))
    listed = json.loads(tool("snapshot", "ls", "--json").stdout)
    assert [one["id"] for one in made] == [one["id"] for one in listed]
    assert made[2]["new_bytes"] < made[0]["new_bytes"]
    assert last > 0


def test_memory_and_files_are_of_one_instant(tool: Tool) -> None:
    count = start(
        tool, script="i=0; while :; do i=$((i+1)); echo $i >> /log; echo $i > /count; done"
    )
    made = create(tool)
    tool("rm", "-f", "web")

    tool("snapshot", "restore", made["id"])
    assert moves(count)
    tool("kill", "web")
    tool("wait", "web", code=None)

    # The number is in memory, the line in the file: were one older, one would be twice or missing.
    lines = count.with_name("log").read_text().split()
    assert [str(number) for number in range(1, len(lines) + 1)] == lines


def test_stopped_container_is_continued_in_its_place(tool: Tool) -> None:
    count = start(tool)
    made = create(tool)
    tool("kill", "web")
    tool("wait", "web", code=None)

    tool("snapshot", "restore", "latest")

    assert moves(count)
    assert ["web"] == names(tool)
    assert made["id"] == json.loads(tool("snapshot", "show", "latest", "--json").stdout)["id"]


def test_rewind_puts_a_running_container_back_and_keeps_the_present(tool: Tool) -> None:
    count = start(tool, script="i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done")
    past = create(tool)
    tool("exec", "web", "touch", "/later")
    identity = json.loads(tool("inspect", "web").stdout)["id"]

    done = json.loads(tool("snapshot", "restore", past["id"], "--in-place", "--json").stdout)

    assert moves(count)
    assert not count.with_name("later").exists()
    assert identity == json.loads(tool("inspect", "web").stdout)["id"]
    tool("snapshot", "restore", done["before"], "--in-place")
    assert moves(count)
    assert count.with_name("later").exists()
    tool("snapshot", "restore", past["id"], "--in-place", "--name", "other", code=2)
    words = ("snapshot", "restore", past["id"], "--skip", "tcp,moon")
    assert "no such check to skip: moon" in tool(*words, "--in-place", code=2).stderr
    assert "--in-place writes down first" in tool(*words, code=2).stderr
    tool(*words[:-1], "tcp,zombie", "--in-place")
    assert moves(count)


def test_rewind_that_fails_leaves_the_present_running(tool: Tool) -> None:
    count = start(tool)
    past = create(tool)
    packs = tool.root / "snapshots/packs"
    for path in packs.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        data[-9] ^= 4  # its table too, so that the present does not count on it
        path.write_bytes(data)

    said = tool("snapshot", "restore", past["id"], "--in-place", code=33).stderr

    assert "web runs on as it was before" in said
    assert moves(count)


def test_one_that_is_paused_is_written_down_as_it_stands_and_goes_on_when_resumed(
    tool: Tool,
) -> None:
    """Its processes cannot be asked for anything while they stand still, and stay as they are."""
    count = start(tool)
    tool("pause", "web")
    made = create(tool)
    assert "paused" == tool.state("web")["status"]
    tool("resume", "web")
    assert moves(count)
    tool("snapshot", "restore", made["id"], "--name", "copy")
    if tool.state("copy")["status"] == "paused":
        tool("resume", "copy")
    assert moves(tool.root / "containers/copy/upper/count")


def test_diff_tells_files_processes_and_memory(tool: Tool) -> None:
    start(tool)
    first = create(tool)["id"]
    # More memory than the counting ever has: its short-lived child may be there, or not.
    held = "noise=$(head -c 1000000 /dev/zero | tr '\\0' x); (sleep 1000; echo $noise) &"
    tool("exec", "web", "sh", "-c", f"echo new > /fresh; rm /etc/group; {held}")
    second = create(tool)["id"]

    found = json.loads(tool("snapshot", "diff", first, second, "--json").stdout)

    files = {one["path"]: one["change"] for one in found["files"]}
    assert "A" == files["/fresh"]
    assert "A" == files["/etc/group"]  # a whiteout
    assert "C" == files["/count"]
    fresh = [one["after"] for one in found["processes"] if one["before"] is None]
    assert "sleep" in [one["command"] for one in fresh]
    before, after = found["memory_bytes"]
    assert after > before
    assert 0 < found["changed_memory_bytes"] < after
    nothing = json.loads(tool("snapshot", "diff", first, first, "--json").stdout)
    assert ([], [], 0) == (nothing["files"], nothing["processes"], nothing["changed_memory_bytes"])


def test_encrypted_repository_wants_its_secret(tool: Tool, tmp_path: Path) -> None:
    start(tool)
    key = tmp_path / "key"
    key.write_text("open sesame\n")
    options = ("--repo", str(tmp_path / "elsewhere"), "--key-file", str(key))
    made = create(tool, *options)

    tool("snapshot", "ls", *options[:2], code=2)
    assert made["id"] in tool("snapshot", "ls", "--json", *options).stdout
    environment = {"PYMIGRATE_PASSPHRASE_FILE": str(key)}
    said = subprocess.run(
        tool.argv("snapshot", "verify", "--data", *options[:2]),
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "1 snapshots are sound" in said.stdout


def test_rules_forget_and_prune_frees(tool: Tool) -> None:
    start(tool)
    made = [create(tool)["id"] for _ in range(4)]

    plan = json.loads(tool("snapshot", "prune", "--keep-last", "2", "-n", "--json").stdout)
    assert made[:2] == plan["removed"]
    assert 4 == len(json.loads(tool("snapshot", "ls", "--json").stdout))
    done = json.loads(tool("snapshot", "prune", "--keep-last", "2", "--json").stdout)

    assert made[:2] == done["removed"]
    assert made[2:] == [one["id"] for one in json.loads(tool("snapshot", "ls", "--json").stdout)]
    tool("snapshot", "verify", "--data")
    tool("snapshot", "rm", made[2][:8], "latest")
    assert "" == tool("snapshot", "ls", "--json").stdout.strip("[]\n")
    tool("snapshot", "restore", made[3], code=11)


def test_damage_is_named_and_restore_refuses_it(tool: Tool) -> None:
    start(tool)
    made = create(tool)
    for path in (tool.root / "snapshots/packs").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)

    said = tool("snapshot", "verify", "--data", code=33).stderr
    assert made["id"][:8] in said
    assert "pack " in said
    tool("snapshot", "restore", made["id"], "--name", "copy", code=33)
    assert ["web"] == names(tool)


@pytest.mark.parametrize(
    ("words", "every"),
    [
        ("create web", 30),
        ("prune --keep-last 1", 7),
        pytest.param("create web", 1, marks=ALL),
        pytest.param("prune --keep-last 1", 1, marks=ALL),
    ],
)
def test_commands_killed_at_any_effect_cost_nothing(tool: Tool, words: str, every: int) -> None:
    """Die at each so many-eth effect.

    What is published restores each time, the container runs, and the next run goes on.
    """
    count = start(tool)
    deaths = 0
    for moment in moments(every):
        create(tool)
        died = struck(tool, "command", moment, ("snapshot", *words.split()))
        deaths += died
        assert moves(count)  # nobody had to say `resume`
        tool("snapshot", "verify", "--data")
        for identity in kept(tool):
            tool("snapshot", "restore", identity, "--name", "copy")
            assert moves(tool.root / "containers/copy/upper/count")
            tool("rm", "-f", "copy")
        tool("snapshot", "prune", "--keep-last", "1")
        assert not list((tool.root / "snapshots/tmp").iterdir())
        assert 1 == len(kept(tool))
        if not died:
            break
    assert deaths > 2


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of its own, whose size can be changed."""
    made = tmp_path / "small"
    made.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "small", made], check=True)
    yield made
    subprocess.run(["umount", made], check=True)


def leave_pages(disk: Path, free: int) -> None:
    """Make a disk as large as what is on it, and so many pages."""
    size = shutil.disk_usage(disk).used + free * os.sysconf("SC_PAGE_SIZE")
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=ALL)])
def test_disk_that_is_full_at_any_page_is_told_and_costs_no_snapshot(
    tool: Tool, small: Path, step: int
) -> None:
    at = ("--repo", str(small))
    count = start(tool)
    first = create(tool, *at)
    for free in itertools.count(1, step):
        leave_pages(small, free)
        made = tool("snapshot", "create", "web", *at, code=None)
        leave_pages(small, 1024)
        assert moves(count)
        tool("snapshot", "verify", "--data", *at)
        if made.returncode == 0:
            break
        assert made.returncode == 24
        assert "is full" in made.stderr
        assert [first["id"]] == kept(tool, *at)
    assert free > 1
    assert 2 == len(kept(tool, *at))
    tool("snapshot", "prune", "--keep-last", "1", *at)
    tool("snapshot", "restore", "latest", "--name", "copy", *at)
    assert moves(tool.root / "containers/copy/upper/count")


def test_container_like_another_stores_what_differs(tool: Tool) -> None:
    script = f"numbers=$(seq 100000); {COUNT}"
    start(tool, script=script)
    first = create(tool)
    start(tool, "twin", script)
    second = json.loads(tool("snapshot", "create", "twin", "--json").stdout)

    assert second["new_bytes"] < first["new_bytes"] / 4
    tool("snapshot", "restore", second["id"], "--name", "copy")
    assert moves(tool.root / "containers/copy/upper/count")


def test_what_is_not_there_is_told(tool: Tool) -> None:
    tool("snapshot", "ls", code=11)
    tool("snapshot", "create", "nobody", code=11)
    start(tool)
    tool("snapshot", "create", "web", "--repo", "sftp://beta/srv", code=2)
    tool("snapshot", "create", "web", "--repo", "ssh://127.0.0.1:1/srv", code=41)
    tool("snapshot", "create", "web", "--repo", "/usr", code=2)
