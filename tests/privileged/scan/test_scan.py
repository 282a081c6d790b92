"""What the scan says of real programs, and what CRIU then says: they must agree.

Each program runs as a container of CPython. Where the scan finds an obstacle, the checkpoint is
refused before anything is touched, and CRIU really fails if the finding is skipped; where it finds
none, the program goes on after a restore.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.checkpoint import diagnosis, dump, scan, sight
from pymigrate.runtime import syscalls
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from tests.lab.registry import own_cgroups
from tests.privileged.scan.cases import CASES, PRELUDE

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

PATIENCE_MS = 20_000
UNKNOWN_HERE = (errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
PYTHON = ("-v", "/usr:/usr:ro,local", "-e", "PYTHONHOME=/usr")


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("etc", "proc", "dev", "tmp", "root", "usr", "sys", "said"):
        (root / name).mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    shutil.copy("/usr/bin/python3", root / "python3")  # the host's own may not be run
    (root / "image-file").write_text("x" * 5000)
    return root


class Box:
    """A root of its own, and a volume in which the host has sockets."""

    def __init__(self, directory: Path, rootfs: Path) -> None:
        self.root = directory / "root"
        self.rootfs = rootfs
        self.volume = directory / "volume"
        self.volume.mkdir()
        (self.volume / "gone").write_text("x")
        os.link(self.volume / "gone", self.volume / "gone.other")
        os.mkfifo(self.volume / "fifo")
        self.listener: socket.socket | None = None  # of the host, in the volume
        self.accepted: list[socket.socket] = []

    def run(self, *words: str | Path, code: int | None = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "pymigrate.migrate", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYMIGRATE_ROOT": str(self.root)},
        )
        assert code is None or code == done.returncode, done.stdout
        return done.stdout

    def container(self, name: str) -> Container:
        return Container.open(Host.open(self.root), name)

    def start(self, program: str, *options: str) -> Container:
        words = ("--name", "a", "--rootfs", str(self.rootfs), "--net", "none", *PYTHON, *options)
        self.run("run", "-d", *words, "/python3", "-c", f"{PRELUDE}{program}\ngo_on()")
        container = self.container("a")
        if not self.beats(container):
            said = self.run("logs", "a")
            if any(f"[Errno {number}]" in said for number in UNKNOWN_HERE):
                pytest.skip(f"this kernel lacks it: {said.strip().splitlines()[-1]}")
            pytest.fail(said)
        return container

    @staticmethod
    def beats(container: Container) -> bool:
        """Wait until the program goes round once more; false if it ends instead."""
        watcher = syscalls.inotify_init1()
        try:
            syscalls.inotify_add_watch(watcher, container.upper, syscalls.IN_MOVED_TO)
            init = container.state().init
            if init is None:
                return False
            try:
                pidfd = os.pidfd_open(init.pid)
            except ProcessLookupError:
                return False
            try:
                return _first_of(watcher, pidfd) == watcher
            finally:
                os.close(pidfd)
        finally:
            os.close(watcher)


def _first_of(*fds: int) -> int:
    import select

    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    ready = poll.poll(PATIENCE_MS)
    assert ready, "neither a beat nor an end"
    return ready[0][0]


@pytest.fixture
def box(tmp_path: Path, rootfs: Path) -> Iterator[Box]:
    box = Box(tmp_path, rootfs)
    back = Path.cwd()
    os.chdir(box.volume)  # the path of a unix socket is short
    with (
        socket.socket(socket.AF_UNIX) as stream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        stream.bind("host.sock")
        stream.listen()
        datagrams.bind("host.dgram")
        os.chdir(back)
        box.listener = stream
        try:
            yield box
        finally:
            for accepted in box.accepted:
                accepted.close()
            box.run("rm", "-f", "a", "b", code=None)  # whichever is there


@pytest.mark.parametrize("name", CASES)
def test_scan_and_criu_agree(name: str, box: Box, tmp_path: Path) -> None:
    expected, program, options = CASES[name]
    container = box.start(program, *(option.format(volume=box.volume) for option in options))
    if name.endswith(", accepted"):
        assert box.listener is not None
        box.accepted.append(box.listener.accept()[0])
    found = scan.scan(container)
    assert {expected} - {""} == {each.check for each in found}, found
    saved = tmp_path / "saved.tar"
    words = ("checkpoint", "a", "-o", saved, "--leave-running", "--compress", "none")
    if any(each.fatal for each in found):
        said = box.run(*words, code=31)
        assert f"[{expected}]; nothing was touched" in said
        skipped = box.run(*words, "--skip", expected, code=None)
        if not saved.exists():
            assert "it goes on as before" in skipped
            told = diagnosis.explain_file(container.directory / dump.KEPT_LOG)
            assert told.name, told.line
            return
    else:
        box.run(*words)
    box.run("rm", "-f", "a")
    if any(each.fatal for each in found):
        assert "criu could not restore it" in box.run("restore", saved, "--name", "b", code=32)
        return
    box.run("restore", saved, "--name", "b")
    assert box.beats(box.container("b")), box.run("logs", "b")


def test_a_process_that_was_moved_out_of_the_containers_cgroup_is_found(box: Box) -> None:
    container = box.start("child(lambda: None)")
    init = container.state().pid
    (strayed,) = set(container.cgroup.pids()) - {init}
    for directory in own_cgroups():
        (directory / "cgroup.procs").write_text(str(strayed))
    (found,) = scan.scan(container)
    assert ("cgroup", strayed) == (found.check, found.pid)
    said = box.run("checkpoint", "a", "-o", box.volume / "saved.tar", code=31)
    assert "[cgroup]; nothing was touched" in said


def test_check_tells_the_scan_with_its_cost(box: Box) -> None:
    box.start("kept.append(os.memfd_create('h', 0)); kept.append(libc.eventfd(3, 0))")
    document = json.loads(box.run("--json", "check", "a"))
    assert [] == document["container"]
    assert document["scan_seconds"] > 0
    assert "nothing was found that speaks against a checkpoint (" in box.run("check", "a")


# Each fork makes the next and ends; its child is taken by init, which reaps.
# Eight lines of processes, each of which makes the next one and ends; init reaps them.
STORM = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(8):
  if os.fork() == 0:
    while True:
      handle = os.memfd_create('m')
      if os.fork() != 0:
        os._exit(0)
      os.close(handle)
"""
LOOKS = 60


def test_processes_that_fork_all_the_time_are_no_finding(box: Box) -> None:
    """What is born, ends or changes its parent amid a look is no stray, no exec, no zombie kept."""
    container = box.start(STORM, "--pids-limit", "200")
    scene = sight.Scene.of(container)
    assert scene is not None
    met: set[int] = set()
    for _ in range(LOOKS):
        seen = sight.look(scene)
        met.update(process.pid for process in seen.processes)
        assert [] == [each for each in scan.judge(seen) if each.check != "zombie"]
    assert len(met) > LOOKS  # it was another storm in each look


def test_a_child_whose_parent_was_missed_did_not_come_by_exec(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = box.start("if os.fork() == 0:\n  os.fork()\n  while True: signal.pause()")
    scene = sight.Scene.of(container)
    assert scene is not None
    whole = sight.look(scene)
    (missed,) = (each.pid for each in whole.processes if each.parent == whole.init)
    process = sight.process
    monkeypatch.setattr(
        sight,
        "process",
        lambda pid, *, own_group: None if pid == missed else process(pid, own_group=own_group),
    )

    seen = sight.look(scene)

    assert 2 == len(seen.processes)
    assert [] == scan.judge(seen)


def test_a_hundred_processes_are_looked_at_in_no_time(box: Box) -> None:
    forks = "for _ in range(99):\n  if os.fork() == 0:\n    while True: signal.pause()"
    container = box.start(forks)
    scene = sight.Scene.of(container)
    assert scene is not None
    seen = sight.look(scene)
    assert 100 == len(seen.processes)
    assert all(len(process.opened) >= 3 for process in seen.processes)
    print(f"scan of 100 processes: {seen.seconds * 1000:.1f} ms")
