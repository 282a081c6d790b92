"""Checkpoints of real containers: held on both sides, into a file and back, and all that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pymigrate.checkpoint import dump, restore
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.checkpoint.scan import scan
from pymigrate.runtime import lifecycle
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from pymigrate.runtime.state import Status

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; echo tick $i; sleep 0.02; done"
APPLETS = ("sh", "sleep", "cat", "echo", "hostname", "env", "pwd")
PATIENCE = 10.0


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "etc", "proc", "dev", "tmp", "root"):
        (root / name).mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    return root


class Tool:
    """The command line on a root of its own."""

    def __init__(self, root: Path, rootfs: Path) -> None:
        self.root = root
        self.rootfs = rootfs
        self.environment = {**os.environ, "PYMIGRATE_ROOT": str(root)}

    def run(self, *words: str | Path, code: int = 0, **environment: str) -> str:
        """Run a command, which must end with this code; return stdout and stderr."""
        done = subprocess.run(
            [sys.executable, "-I", "-m", "pymigrate.migrate", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            env={**self.environment, **environment},
        )
        assert code == done.returncode, done.stdout
        return done.stdout

    def start(self, name: str, script: str = COUNT, *options: str) -> Container:
        """Run a container with this shell script, without a network."""
        words = ("--name", name, "--rootfs", str(self.rootfs), "--net", "none", *options)
        self.run("run", "-d", *words, "sh", "-c", script)
        return self.container(name)

    def container(self, name: str) -> Container:
        """Open a container."""
        return Container.open(Host.open(self.root), name)

    def count(self, name: str) -> int:
        """Return how far the counter of a container has come."""
        return int((self.container(name).upper / "count").read_text() or "0")

    def counts(self, name: str, seconds: float = PATIENCE) -> bool:
        """Tell whether the counter moves."""
        before = self.read(name)
        return await_true(lambda: self.read(name) != before, seconds)

    def read(self, name: str) -> str:
        """Return the counter's file, which may just be empty."""
        path = self.container(name).upper / "count"
        return path.read_text() if path.exists() else ""


def await_true(question: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Ask until it is so, or the time is over."""
    end = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.01)
    return answer


@pytest.fixture
def tool(tmp_path: Path, rootfs: Path) -> Iterator[Tool]:
    made = Tool(tmp_path / "root", rootfs)
    yield made
    for container in Container.all(Host.open(made.root)):
        container.unfence(str(container.fenced_by))
        made.run("rm", "-f", container.name)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


def held(container: Container, images: Path) -> dump.HeldDump:
    container.freeze()
    return dump.hold(container, images, DumpOptions())


def test_held_source_stands_still_and_goes_on_when_abandoned(tool: Tool, images: Path) -> None:
    container = tool.start("a")
    assert tool.counts("a")
    with held(container, images) as holding:
        assert container.cgroup.frozen()
        assert not tool.counts("a", 0.2)
        holding.abandon()
        assert not tool.counts("a", 0.2)
    container.thaw()
    assert tool.counts("a")


def test_source_stays_frozen_when_criu_is_killed(tool: Tool, images: Path) -> None:
    container = tool.start("a")
    with container.supervision() as supervision:
        prepared = dump.prepare(container)
        session = prepared._session
        assert session is not None
        container.freeze()
        holding = dump.hold(container, images, DumpOptions(), prepared)
        os.kill(session.pid, signal.SIGKILL)
        supervision.wait_spawned(session.pid)
    assert not tool.counts("a", 0.2)
    session.close()
    holding._session = None
    container.thaw()
    assert tool.counts("a")


def test_held_source_dies_without_running_when_finished(tool: Tool, images: Path) -> None:
    container = tool.start("a")
    assert tool.counts("a")
    with held(container, images) as holding:
        before = tool.read("a")
        holding.finish()
    assert await_true(lambda: container.state().status is Status.STOPPED)
    assert before == tool.read("a")


def test_held_target_runs_only_when_thawed_and_needs_nobody(
    tool: Tool, images: Path, tmp_path: Path
) -> None:
    source = tool.start("a")
    assert tool.counts("a")
    with held(source, images) as holding:
        holding.finish()
    assert await_true(lambda: source.state().status is Status.STOPPED)
    with source.prepare(plugged=False):
        options = holding.manifest.restore_options()
        pid = restore.hold(source, images, options)
    assert Status.PAUSED is source.state().status
    assert pid == source.state().pid
    assert not tool.counts("a", 0.3)
    source.plug()
    source.thaw()
    assert tool.counts("a")


def test_held_target_can_be_discarded_without_having_run(tool: Tool, images: Path) -> None:
    source = tool.start("a")
    assert tool.counts("a")
    with held(source, images) as holding:
        holding.finish()
    assert await_true(lambda: source.state().status is Status.STOPPED)
    before = tool.read("a")
    with source.prepare(plugged=False):
        restore.hold(source, images, holding.manifest.restore_options())
    lifecycle.kill(source)
    assert await_true(lambda: source.state().status is Status.STOPPED)
    assert before == tool.read("a")


def test_container_goes_through_a_file(tool: Tool, tmp_path: Path) -> None:
    tool.start("a", "echo kept > /tmp/file; cd /tmp; export WORD=said; " + COUNT, "--hostname", "h")
    assert tool.counts("a")
    file = tmp_path / "a.tar.zst"
    said = json.loads(tool.run("--json", "checkpoint", "a", "-o", file))
    assert (str(file), False) == (said["file"], said["left_running"])
    assert Status.STOPPED is tool.container("a").state().status
    before = tool.count("a")
    tool.run("rm", "a")
    done: dict[str, Any] = json.loads(tool.run("--json", "restore", file))
    assert "a" == done["name"]
    assert await_true(lambda: tool.read("a") not in ("", str(before)))
    assert await_true(lambda: tool.read("a") != "" and tool.count("a") > before)
    lines = tool.run("logs", "a").split("\n")
    ticks = [int(line.split()[1]) for line in lines if line.startswith("tick")]
    assert list(range(1, len(ticks) + 1)) == ticks, "output is missing or came twice"
    assert "kept\n" == tool.run("exec", "a", "cat", "/tmp/file")
    assert "h\n" == tool.run("exec", "a", "hostname")


def test_stopped_container_goes_on_in_its_place(tool: Tool, tmp_path: Path) -> None:
    container = tool.start("a")
    assert tool.counts("a")
    tool.run("checkpoint", "a", "-o", tmp_path / "a")
    (container.upper / "later").write_text("not in the checkpoint")
    tool.run("restore", tmp_path / "a")
    assert tool.counts("a")
    assert container.record.id == tool.container("a").record.id
    assert not (container.upper / "later").exists()


def test_one_file_is_restored_under_two_more_names(tool: Tool, tmp_path: Path) -> None:
    tool.start("a")
    assert tool.counts("a")
    file = tmp_path / "a"
    tool.run("checkpoint", "a", "-o", file, "--leave-running", "--compress", "none")
    assert tool.counts("a")
    tool.run("restore", file, "--name", "b")
    tool.run("restore", file, "--name", "c")
    for name in "abc":
        assert tool.counts(name)
    ids = {tool.container(name).record.id for name in "abc"}
    assert 3 == len(ids)
    tool.run("restore", file, code=12)
    tool.run("restore", file, "--name", "b", code=12)


def test_restored_container_can_be_checkpointed_again(tool: Tool, tmp_path: Path) -> None:
    tool.start("a")
    for round_number in range(3):
        file = tmp_path / str(round_number)
        tool.run("checkpoint", "a", "-o", file)
        tool.run("restore", file)
        assert tool.counts("a")


@pytest.mark.parametrize("users", [(), ("--userns", "100000:100000:65536")])
def test_sysctls_of_its_namespaces_go_with_it(
    tool: Tool, tmp_path: Path, users: tuple[str, ...]
) -> None:
    archive = tmp_path / "a.tar.zst"
    wanted = {"net/core/somaxconn": "77", "net/ipv4/ip_forward": "1", "kernel/shmmni": "55"}
    given = [f"--sysctl={name.replace('/', '.')}={value}" for name, value in wanted.items()]
    tool.start("a", COUNT, *given, *users)

    tool.run("checkpoint", "a", "-o", archive)
    tool.run("restore", archive, "--name", "b")

    found = {name: tool.run("exec", "b", "cat", f"/proc/sys/{name}").strip() for name in wanted}
    assert wanted == found


@pytest.mark.parametrize(
    ("parameter", "code", "said", "left"),
    [
        ("vm.swappiness=1", 2, "belongs to the whole host", []),
        ("net.core.no_such=1", 125, "cannot set the sysctl net.core.no_such", ["created"]),
        ("net.core.somaxconn=many", 125, "net.core.somaxconn to 'many'", ["created"]),
    ],
)
def test_a_sysctl_that_cannot_be_set_is_named_and_nothing_runs(
    tool: Tool, parameter: str, code: int, said: str, left: list[str]
) -> None:
    words = ("--rootfs", tool.rootfs, "--net", "none", "--sysctl", parameter, "sh", "-c", COUNT)

    assert said in tool.run("run", "-d", *words, code=code)

    assert left == [row["status"] for row in json.loads(tool.run("--json", "ps", "-a"))]


def test_terminal_is_restored(tool: Tool, tmp_path: Path) -> None:
    words = ("--name", "t", "--rootfs", tool.rootfs, "--net", "none")
    tool.run("run", "-d", "-t", *words, "sh", "-c", COUNT)
    assert tool.counts("t")
    tool.run("checkpoint", "t", "-o", tmp_path / "t")
    tool.run("restore", tmp_path / "t")
    assert tool.counts("t")
    before = tool.run("logs", "t").count("tick")
    assert await_true(lambda: tool.run("logs", "t").count("tick") > before)


def test_paused_container_is_paused_afterwards(tool: Tool, tmp_path: Path) -> None:
    container = tool.start("a")
    tool.run("pause", "a")
    tool.run("checkpoint", "a", "-o", tmp_path / "a", "--leave-running")
    assert Status.PAUSED is container.state().status


def test_failed_dump_leaves_the_container_running(tool: Tool, tmp_path: Path) -> None:
    tool.start("a")
    assert tool.counts("a")
    broken = tmp_path / "criu"
    broken.write_text(
        '#!/bin/sh\n[ "$1" != --version ] || { echo Version: 9.9; exit 0; }\nexit 1\n'
    )
    broken.chmod(0o755)
    file = tmp_path / "file"
    said = tool.run("checkpoint", "a", "-o", file, code=31, PYMIGRATE_CRIU=str(broken))
    assert "goes on as before" in said
    assert not file.exists()
    assert tool.counts("a")


def test_failed_restore_leaves_nothing(tool: Tool, tmp_path: Path) -> None:
    tool.start("a")
    assert tool.counts("a")
    tool.run("checkpoint", "a", "-o", tmp_path / "file")
    broken = tmp_path / "criu"
    broken.write_text(
        '#!/bin/sh\n[ "$1" != --version ] || { echo Version: 9.9; exit 0; }\nexit 1\n'
    )
    broken.chmod(0o755)
    said = tool.run(
        "restore", tmp_path / "file", "--name", "b", code=32, PYMIGRATE_CRIU=str(broken)
    )
    assert "nothing is left" in said
    assert ["a"] == [each.name for each in Container.all(Host.open(tool.root))]
    tool.run("restore", tmp_path / "file", code=32, PYMIGRATE_CRIU=str(broken))
    assert Status.STOPPED is tool.container("a").state().status
    tool.run("restore", tmp_path / "file")
    assert tool.counts("a")


def test_altered_file_changes_nothing(tool: Tool, tmp_path: Path) -> None:
    tool.start("a")
    assert tool.counts("a")
    file = tmp_path / "file"
    tool.run("checkpoint", "a", "-o", file, "--compress", "none")
    data = bytearray(file.read_bytes())
    at = data.index(b"tick 1\n")
    data[at : at + 4] = b"TICK"
    file.write_bytes(data)
    assert "ctr.log was altered" in tool.run("restore", file, "--name", "b", code=33)
    assert "altered" in tool.run("archive", "verify", file, code=33)
    file.write_bytes(data[: len(data) // 2])
    tool.run("restore", file, "--name", "b", code=33)
    assert ["a"] == [each.name for each in Container.all(Host.open(tool.root))]
    assert not list(tool.root.glob("staging-*"))


def test_full_disk_leaves_the_container_running(tool: Tool, tmp_path: Path) -> None:
    tool.start("a")
    assert tool.counts("a")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "small", small], check=True)
    try:
        said = tool.run("checkpoint", "a", "-o", small / "file", "--compress", "none", code=24)
        assert "goes on as before" in said
        assert [] == list(small.iterdir())
        assert tool.counts("a")
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_cannot_be_checkpointed_is_refused(tool: Tool, tmp_path: Path) -> None:
    tool.run("checkpoint", "none", "-o", tmp_path / "x", code=11)
    container = tool.start("a")
    container.fence("some-migration")
    tool.run("checkpoint", "a", "-o", tmp_path / "x", code=13)
    container.unfence("some-migration")
    tool.run("kill", "a")
    tool.run("wait", "a", code=0)
    tool.run("checkpoint", "a", "-o", tmp_path / "x", code=13)
    tool.run("restore", tmp_path / "x", code=11)
    assert not (tmp_path / "x").exists()


def test_volume_travels_in_the_file(tool: Tool, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    tool.start("a", "echo in > /data/file; " + COUNT, "-v", f"{volume}:/data")
    assert tool.counts("a")
    file = tmp_path / "file"
    tool.run("checkpoint", "a", "-o", file)
    tool.run("restore", file)
    tool.run("rm", "-f", "a")
    shutil.rmtree(volume)
    tool.run("restore", file)
    assert "in\n" == (volume / "file").read_text()
    assert tool.counts("a")
    tool.run("rm", "-f", "a")
    (volume / "file").write_text("other")
    tool.run("restore", file, code=12)
    assert "other" == (volume / "file").read_text()


def test_scan_sees_an_exec_session(tool: Tool) -> None:
    container = tool.start("a")
    assert [] == scan(container)
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "pymigrate.migrate", "exec", "a", "sleep", "60"],
        env=tool.environment,
        stdin=subprocess.DEVNULL,
    ) as session:
        try:
            assert await_true(lambda: any("sleep" in each.seen for each in scan(container)))
            assert not any(each.fatal for each in scan(container))
        finally:
            session.terminate()


def test_check_reports_this_host_and_container(tool: Tool) -> None:
    tool.start("a")
    document = json.loads(tool.run("--json", "check", "a"))
    assert document["fit"]
    names = {each["name"] for each in document["host"]}
    assert {"criu", "criu check", "freezer", "fs.pipe-max-size"} <= names


def test_check_fails_without_criu(tool: Tool, tmp_path: Path) -> None:
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert "criu" in tool.run("check", code=22, PYMIGRATE_CRIU=str(broken))


def test_a_signed_and_encrypted_checkpoint_is_restored_by_who_has_the_keys(
    tool: Tool, tmp_path: Path
) -> None:
    tool.start("a")
    assert tool.counts("a")
    secret, key, file = tmp_path / "secret", tmp_path / "key", tmp_path / "a.sealed"
    secret.write_text("what nobody else knows")
    for path in (key, tmp_path / "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    tool.run("checkpoint", "a", "-o", file, "--encrypt", secret, "--sign", key)
    before = tool.count("a")
    signed, altered = ("--signed-by", tmp_path / "key.pub"), tmp_path / "altered"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    altered.write_bytes(data)

    told = json.loads(tool.run("--json", "archive", "verify", file, "--key-file", secret, *signed))
    for words, code, said in (
        ((file, *signed), 2, "no key file was given"),
        ((file, "--key-file", key, *signed), 2, "does not open"),
        ((file, "--key-file", secret, "--signed-by", tmp_path / "other.pub"), 33, "is signed by"),
        ((altered, "--key-file", secret, *signed), 33, "is damaged"),
    ):
        refused = tool.run("restore", *words, code=code)
        assert said in refused
        assert "nothing was changed" in refused
        assert tool.container("a").state().status is Status.STOPPED
    tool.run("restore", file, "--key-file", secret, *signed)

    assert (True, True) == (told["sound"], told["encrypted"])
    assert str(told["signed_by"]).startswith("SHA256:")
    assert tool.counts("a")
    assert tool.count("a") >= before


def test_debug_keeps_what_criu_was_asked_for_and_its_logs(tool: Tool, tmp_path: Path) -> None:
    container = tool.start("web", COUNT, "-e", "WORD=secret-1")
    kept = [container.directory / name for name in (dump.KEPT_REQUEST, dump.KEPT_LOG)]
    saved = tmp_path / "saved.tar"
    tool.run("checkpoint", "web", "--leave-running", "-o", saved)
    assert not any(path.exists() for path in kept)

    again = ("-o", tmp_path / "again.tar", "--debug")
    said = tool.run("checkpoint", "web", "--leave-running", *again)
    assert "criu is asked: DUMP {" in said
    assert "secret" not in said
    request, log = (path.read_text() for path in kept)
    assert container.state().pid == json.loads(request)["pid"]
    assert "Running post-dump scripts" in log  # where it is held, with nothing left to be written
    assert "secret" not in request
    assert [0o600, 0o600] == [path.stat().st_mode & 0o777 for path in kept]

    for path in kept:
        path.unlink()
    tool.run("snapshot", "create", "web", "--repo", tmp_path / "repository", "--debug")
    assert all(path.stat().st_size for path in kept)

    tool.run("rm", "-f", "web")
    tool.run("restore", saved, "--debug")
    work = container.directory / "criu"
    assert (
        os.fspath(container.rootfs) == json.loads((work / restore.KEPT_REQUEST).read_text())["root"]
    )
    assert (work / "restore.log").stat().st_size
