"""``run --device``: a device of the host, for reading, for writing, and nothing beside it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.privileged.tool import Tool

pytestmark = pytest.mark.privileged

KMSG = os.makedev(1, 11)  # on every machine, and not among what a container may use


@pytest.fixture
def device(tmp_path: Path) -> str:
    """Make a node for the log of the kernel, which web's group may use."""
    path = tmp_path / "device"
    os.mknod(path, stat.S_IFCHR | 0o660, KMSG)
    os.chown(path, 0, 33)
    path.chmod(0o660)
    return str(path)


def tried(tool: Tool, *options: str, path: str) -> list[str]:
    """Return whether it could be opened for reading and for writing, and why not."""
    script = f"exec 2>&1; (exec 3<{path}) && echo read; (exec 3>{path}) && echo written; true"
    return tool.run("--rm", *options, "sh", "-c", script).stdout.splitlines()


def test_it_is_there_and_can_be_used_as_was_said_and_no_more(tool: Tool, device: str) -> None:
    within = "/dev/of/mine"
    shown = tool.run(
        "--rm",
        "--device",
        f"{device}:{within}",
        "busybox",
        "stat",
        "-c",
        "%F %t:%T %a %u %g",
        within,
    ).stdout
    assert "character special file 1:b 660 0 33\n" == shown

    may = ("--cap-add", "syslog")  # without it nobody reads that log
    assert ["read", "written"] == tried(tool, *may, "--device", f"{device}:{within}", path=within)
    only_read = tried(tool, *may, "--device", f"{device}:{within}:r", path=within)
    assert "read" == only_read[0]
    assert "Operation not permitted" in only_read[1]
    only_written = tried(tool, *may, "--device", f"{device}:{within}:wm", path=within)
    assert "Operation not permitted" in only_written[0]
    assert "written" == only_written[1]


def test_the_usual_devices_still_can_be_used(tool: Tool, device: str) -> None:
    found = tool.run("--rm", "--device", device, "sh", "-c", "echo x >/dev/null && echo written")

    assert "written\n" == found.stdout


def test_with_users_of_its_own_it_is_the_hosts_node(tool: Tool) -> None:
    assert "written" in tried(tool, "--userns", "auto", "--device", "/dev/full", path="/dev/full")
    said = tool.run("--userns", "auto", "--device", "/dev/kmsg:/dev/log", "true", code=2).stderr
    assert "has the path that it has on the host" in said


def test_a_directory_stands_for_the_devices_in_it(tool: Tool, tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        os.mknod(tmp_path / "all" / name, stat.S_IFCHR | 0o666, KMSG)
    (tmp_path / "all/file").touch()
    (tmp_path / "all/link").symlink_to("/dev/mem")

    found = tool.run(
        "--rm", "--device", f"{tmp_path}/all:/dev/all", "busybox", "find", "/dev/all", "-type", "c"
    ).stdout
    assert ["/dev/all/a", "/dev/all/b/c"] == sorted(found.splitlines())


def test_after_a_stop_and_a_start_it_is_there_again(tool: Tool, device: str) -> None:
    tool.run("-d", "--name", "web", "--device", f"{device}:/dev/mine", "sleep", "1000")
    write = ("exec", "web", "sh", "-c", ": >/dev/mine")
    tool(*write)
    tool("stop", "-t", "0", "web")
    tool("start", "web")
    tool(*write)
    tool("update", "--pids-limit", "50", "web")
    tool(*write)

    [node] = json.loads(tool("inspect", "web").stdout)["spec"]["linux"]["devices"]
    assert ("/dev/mine", 1, 11) == (node["path"], node["major"], node["minor"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("/nonesuch", "/nonesuch: No such file or directory"),
        ("/etc/passwd", "/etc/passwd is no device"),
        ("/dev/null:rx", "not PATH[:PATH][:rwm]"),
        ("/dev/null:", "not PATH[:PATH][:rwm]"),
        ("dev/null", "not PATH[:PATH][:rwm]"),
        ("/dev/null:/../x", "not PATH[:PATH][:rwm]"),
        ("/dev/null:/a:/b:r", "not PATH[:PATH][:rwm]"),
    ],
)
def test_what_is_no_device_is_refused_and_nothing_is_made(
    tool: Tool, given: str, words: str
) -> None:
    said = tool.run("--device", given, "true", code=2).stderr

    assert words in said
    assert "[]\n" == tool("--json", "ps", "-a").stdout


def test_a_directory_without_devices_is_refused(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()

    assert "no device is in" in tool.run("--device", f"{tmp_path}/none", "true", code=2).stderr
