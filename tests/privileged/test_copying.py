"""Files in and out of containers, and what they changed, by the command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.privileged.tool import Tool, names

pytestmark = pytest.mark.privileged
FOREVER = ("sleep", "1000")


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
def test_a_tree_goes_in_and_comes_out_the_same(tool: Tool, tmp_path: Path, runs: bool) -> None:
    tool.run("-d", "--name", "web", *FOREVER)
    if not runs:
        tool("stop", "-t", "0", "web")
    given = tmp_path / "given"
    (given / "deep").mkdir(parents=True)
    (given / "deep/file").write_text("hello\n")
    (given / "script").write_text("#!\n")
    (given / "script").chmod(0o750)
    (given / "link").symlink_to("deep/file")
    os.link(given / "script", given / "same")

    tool("cp", str(given), "web:/srv")  # there is no /srv: it becomes this name
    tool("cp", str(given), "web:/etc")  # there is an /etc: it goes into it
    tool("cp", "web:/srv/.", str(tmp_path / "back"))
    tool("cp", "web:/etc/given/deep/file", str(tmp_path / "one"))

    back = tmp_path / "back"
    assert names(back) == ["deep", "link", "same", "script"]
    assert (back / "deep/file").read_text() == (tmp_path / "one").read_text() == "hello\n"
    assert str((back / "link").readlink()) == "deep/file"
    assert (back / "script").stat().st_mode & 0o7777 == 0o750
    assert (back / "script").stat().st_ino == (back / "same").stat().st_ino
    assert tool.state("web")["status"] == ("running" if runs else "stopped")


def test_a_tar_goes_in_by_stdin_and_comes_out_by_stdout(tool: Tool) -> None:
    tool.run("-d", "--name", "web", *FOREVER)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("etc/new/file")
        info.size, info.uid, info.mode = 3, 33, 0o4755
        archive.addfile(info, io.BytesIO(b"abc"))
    for option in ((), ("-a",)):
        subprocess.run(
            tool.argv("cp", *option, "-", "web:/"), input=packed.getvalue(), check=True, timeout=60
        )
        out = subprocess.run(
            tool.argv("cp", "web:/etc/new", "-"), capture_output=True, check=True, timeout=60
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(out)) as archive:
            found = archive.getmember("new/file")
            content = archive.extractfile(found)
            assert content is not None
            assert content.read() == b"abc"
            assert (found.uid, found.mode) == ((33, 0o4755) if option else (0, 0o755))


def test_links_of_a_container_lead_nowhere_else(tool: Tool, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the host\n")
    script = f"ln -s {outside} /abs; ln -s ../../../../../..{outside} /rel; sleep 1000"
    tool.run("-d", "--name", "web", "sh", "-c", script.replace("ln -s", "busybox ln -s"))
    tool("exec", "web", "sh", "-c", "until [ -L /rel ]; do :; done")
    given = tmp_path / "given"
    given.write_text("new\n")

    for link in ("/abs", "/rel"):
        tool("cp", f"web:{link}/secret", str(tmp_path / "stolen"), code=2)
        tool("cp", str(given), f"web:{link}/given", code=2)
    tool("cp", f"web:/proc/{os.getpid()}/root/etc", str(tmp_path / "stolen"), code=2)

    assert names(outside) == ["secret"]
    assert not (tmp_path / "stolen").exists()


def test_a_container_that_swaps_directories_for_links_gets_nothing_of_the_host(
    tool: Tool, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (outside / "in").mkdir(parents=True)
    swap = (
        f"mkdir -p /d/in; busybox ln -s {outside} /l; while :; do "
        "busybox mv -T /d /x; busybox mv -T /l /d; busybox mv -T /d /l; busybox mv -T /x /d; done"
    )
    tool.run("-d", "--name", "web", "--pids-limit", "20", "sh", "-c", swap)
    given = tmp_path / "given"
    given.mkdir()
    for number in range(20):
        (given / str(number)).write_text("new\n")

    for _ in range(8):
        tool("cp", f"{given}/.", "web:/d/in", code=None)

    assert names(outside) == ["in"]
    assert names(outside / "in") == []


def test_what_does_not_fit_is_refused(tool: Tool, tmp_path: Path) -> None:
    tool.run("-d", "--name", "web", *FOREVER)
    (tmp_path / "file").write_text("x")
    for words in (
        ("web:/nowhere", "."),
        ("web:/dev/zero", str(tmp_path / "zero")),
        (str(tmp_path / "file"), "web:/no/such/directory"),
        (str(tmp_path), "web:/etc/passwd"),
        (str(tmp_path / "file"), str(tmp_path / "copy")),
        ("-", "web:/etc/passwd"),
    ):
        assert "nothing was copied" in tool("cp", *words, code=2).stderr
    (tmp_path / "etc").write_text("x")
    refused = tool("cp", str(tmp_path / "etc"), "web:/", code=2).stderr
    assert "is a directory there" in refused


def test_files_of_shifted_users_keep_the_numbers_they_have_inside(
    tool: Tool, tmp_path: Path
) -> None:
    tool.run("-d", "--name", "web", "--userns", "auto", *FOREVER)
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", 33, 33)

    tool("cp", "-a", str(tmp_path / "file"), "web:/kept")
    tool("cp", str(tmp_path / "file"), "web:/own")
    found = tool("exec", "web", "sh", "-c", "busybox stat -c %u /kept /own").stdout.split()
    assert found == ["33", "0"]

    tool("cp", "-a", "web:/kept", str(tmp_path / "back"))
    assert (tmp_path / "back").stat().st_uid == 33


def test_diff_tells_what_was_added_changed_and_deleted(tool: Tool) -> None:
    script = (
        "mkdir /new; touch /new/file; echo x >> /etc/passwd; busybox rm /etc/group; "
        "busybox rm -r /opt; mkdir /opt; touch /opt/fresh"
    )
    for name in ("old", "fresh"):
        (tool.rootfs / "opt").mkdir(exist_ok=True)
        (tool.rootfs / "opt" / name).write_text("")
    tool.run("--name", "web", "sh", "-c", script)

    assert tool("diff", "web").stdout.splitlines() == [
        "C /etc",
        "D /etc/group",
        "C /etc/passwd",
        "A /new",
        "A /new/file",
        "C /opt",
        "C /opt/fresh",
        "D /opt/old",
    ]
    assert json.loads(tool("--json", "diff", "web").stdout)["deleted"] == [
        "/etc/group",
        "/opt/old",
    ]


def test_a_container_that_changed_nothing_has_no_diff(tool: Tool) -> None:
    tool.run("--name", "web", "true")

    assert tool("diff", "web").stdout == ""
