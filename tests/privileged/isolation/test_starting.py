"""The command, its terminal, and what a failed start leaves: nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import (
    CannotRun,
    CommandNotFound,
    HostError,
    MissingFeature,
    UsageError,
)
from pymigrate.runtime.settings import (
    KINDS,
    Mount,
    Namespace,
    Rlimit,
)
from pymigrate.runtime.spec import default_process, default_spec
from pymigrate.runtime.stdio import TERMINAL, Stdio
from tests.fakes.kernel import RecordingKernel, open_descriptors
from tests.privileged.isolation.box import (
    MAPPINGS,
    Box,
    no_children,
    read_until_end,
)

pytestmark = [pytest.mark.privileged, pytest.mark.requires("root")]


@pytest.mark.parametrize(
    ("args", "cwd", "kind", "message"),
    [
        (("nope",), "/", CommandNotFound, "nope: no such command on the container's PATH"),
        (("/bin/nope",), "/", CommandNotFound, "/bin/nope: no such command in the container"),
        (("/file",), "/", CannotRun, "cannot run /file: permission denied"),
        (("/bin",), "/", CannotRun, "cannot run /bin: is a directory"),
        (("/script",), "/", CannotRun, "cannot run /script: its interpreter is not there"),
        (("/garbage",), "/", CannotRun, "cannot run /garbage: it is not a program"),
        (("/proc/self/exe",), "/", CannotRun, "it is the host's own interpreter"),
        (("/exe-script",), "/", CannotRun, "it is the host's own interpreter"),
        (("true",), "/nope", CannotRun, "working directory /nope: No such file"),
        (("true",), "/proc/self/fd/3", CannotRun, "working directory /proc/self/fd/3"),
    ],
)
def test_a_command_that_cannot_run_is_named_and_leaves_nothing(
    box: Box, args: tuple[str, ...], cwd: str, kind: type[CannotRun], message: str
) -> None:
    (box.root / "file").write_text("x")
    (box.root / "exe").symlink_to("/proc/self/exe")
    for name, text in (
        *(("script", "#!/nope\n"), ("garbage", "\x01\x02")),
        *(("exe-script", "#! /other-script x\n"), ("other-script", "#!/exe\n")),
    ):
        (box.root / name).write_text(text)
        (box.root / name).chmod(0o755)
    before = open_descriptors()
    spec = default_spec(["x"], process=default_process(args, cwd=cwd))
    with pytest.raises(kind) as raised:
        box.start(spec, Stdio(None, None, None))

    assert message in raised.value.message
    assert kind is type(raised.value)
    assert before == open_descriptors()
    no_children()


def test_impossible_settings_are_refused_before_anything_starts(box: Box) -> None:
    before = open_descriptors()
    spec = default_spec(["true"])
    missing = Mount("/data", "bind", "/nonexistent", ("rbind",))
    with pytest.raises(HostError, match="/nonexistent"):
        box.start(replace(spec, mounts=(*spec.mounts, missing)), Stdio(None, None, None))
    with pytest.raises(UsageError, match="root directory /nonexistent"):
        box.start(spec, Stdio(None, None, None), rootfs="/nonexistent")
    bad = Mount("/x", "tmpfs", "tmpfs", ("size=lots",))
    with pytest.raises(HostError, match=r"cannot mount tmpfs on /x: .*Bad value for 'size'"):
        box.start(replace(spec, mounts=(*spec.mounts, bad)), Stdio(None, None, None))
    process = replace(spec.process, rlimits=(Rlimit("RLIMIT_NOFILE", 1, 1 << 40),))
    with pytest.raises(MissingFeature, match="RLIMIT_NOFILE"):
        box.start(replace(spec, process=process), Stdio(None, None, None))
    assert before == open_descriptors()
    no_children()


def test_pid_1_leads_a_session_and_is_the_callers_child(box: Box) -> None:
    fields = box.run("cat /proc/1/stat").split(") ")[1].split()
    assert ["0", "1", "1"] == fields[1:4]  # parent, process group, session


def test_a_terminal_is_the_containers_own(box: Box) -> None:
    script = "tty; echo to-tty > /dev/tty; stat -c %F:%u /dev/console; ls -l /proc/self/fd/0"
    spec = default_spec(["x"], process=default_process(["sh", "-c", script], terminal=True))
    started = box.start(spec, TERMINAL)
    assert started.terminal_master_fd is not None
    try:
        text = read_until_end(started.terminal_master_fd)
    finally:
        os.close(started.terminal_master_fd)
        os.waitpid(started.pid, 0)
    lines = text.splitlines()
    assert ["/dev/pts/0", "to-tty", "character special file:0"] == lines[:3]
    assert lines[3].endswith("/dev/pts/0")


class Refusing:
    """A cgroup that cannot be joined."""

    def open_unified(self) -> None:
        return None

    def join(self, *, unified: bool = True) -> None:
        raise PermissionError(13, "Permission denied", "/sys/fs/cgroup/x/cgroup.procs")


def test_a_cgroup_that_cannot_be_joined_is_named(box: Box) -> None:
    with pytest.raises(HostError, match=r"cannot join the cgroup: Permission denied: /sys/fs"):
        box.start(default_spec(["true"]), Stdio(None, None, None), cgroup=Refusing())
    no_children()


@pytest.mark.parametrize("user", [False, True])
def test_failure_of_any_system_call_leaves_nothing(box: Box, user: bool) -> None:
    kinds = tuple(Namespace(kind) for kind in KINDS if user or kind != "user")
    maps = {"uid_mappings": MAPPINGS, "gid_mappings": MAPPINGS} if user else {}
    spec = default_spec(
        ["true"],
        hostname="web",
        namespaces=kinds,
        root_readonly=True,
        process=default_process(["true"], terminal=True),
        **maps,
    )
    before = open_descriptors()
    mounted = Path("/proc/self/mountinfo").read_text()
    number = 0
    while True:
        kernel = RecordingKernel(real=syscalls, fails_at=number)
        try:
            started = box.start(spec, TERMINAL, kernel=kernel)
        except HostError as error:
            if not any(text in error.message for text in ("injected", "Input/output error")):
                raise
            number += 1
            assert before == open_descriptors()
            no_children()
            continue
        break
    assert started.terminal_master_fd is not None
    os.close(started.terminal_master_fd)
    os.waitpid(started.pid, 0)
    assert before == open_descriptors()
    assert mounted == Path("/proc/self/mountinfo").read_text()
    # Every call was reached: many mounts of several calls each.
    assert number > 80


def test_settings_in_a_file_start_a_container(box: Box, tmp_path: Path) -> None:
    from pymigrate.runtime import spec as specs

    path = tmp_path / "config.json"
    specs.save(default_spec(["true"], hostname="filed"), path)
    assert json.loads(path.read_text())["hostname"] == "filed"
    assert "filed" == box.run("hostname", specs.load(path))
