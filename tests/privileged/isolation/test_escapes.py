"""The known ways out of a container, each tried; and tried once more where it must succeed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.runtime import enter, syscalls
from pymigrate.runtime.errors import HostError
from pymigrate.runtime.settings import Mount
from pymigrate.runtime.spec import default_process, default_spec
from pymigrate.runtime.stdio import Stdio
from tests.fakes.kernel import RecordingKernel
from tests.privileged.isolation.box import Box
from tests.privileged.tool import Tool

pytestmark = [pytest.mark.privileged, pytest.mark.requires("root")]

ATTACKER = """
import ctypes, json, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
ways_out, victim, major, minor = sys.argv[1:]
def done(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def again(path):  # what was there before: who may write that may write anything
    with open(path, "r+b", buffering=0) as file:
        file.write(file.read())
for name, way_out in json.loads(ways_out).items():
    if os.fork() == 0:
        libc.unshare(0x20000)  # where that may be, one does not spoil the mounts of the next
        try:
            exec(way_out)
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        else:
            print(name, flush=True)
        os._exit(0)
    os.wait()
"""

WAYS_OUT = {
    "mount": "done(libc.mount(b'none', b'/mnt', b'tmpfs', 0, None))",
    "fsopen": "done(libc.syscall(430, b'tmpfs', 0))",
    "mount of what is masked": "os.mkdir('/p'); done(libc.mount(b'proc', b'/p', b'proc', 0, None))",
    "umount": "done(libc.umount2(b'/proc/sys', 2)); again('/proc/sys/kernel/core_pattern')",
    "remount": (
        "done(libc.mount(None, b'/proc/sys', None, 0x1020, None));"
        "again('/proc/sys/kernel/core_pattern')"
    ),
    "sysctl": "again('/proc/sys/kernel/core_pattern')",
    "sysctl of another": "again(f'/proc/{victim}/root' + '/proc/sys/kernel/core_pattern')",
    "sysrq": "open('/proc/sysrq-trigger', 'wb').write(b'h')",
    "release_agent": (
        "done(libc.mount(b'none', b'/mnt', b'cgroup', 0, b'freezer'));again('/mnt/release_agent')"
    ),
    "ptrace": "done(libc.ptrace(0x4206, int(victim), None, None))",
    "memory": "open(f'/proc/{victim}/mem', 'r+b')",
    "root": "os.listdir(f'/proc/{victim}/root')",
    "descriptors": "open(f'/proc/{victim}/fd/0')",
    "setns": "done(libc.setns(os.open(f'/proc/{victim}/ns/mnt', os.O_RDONLY), 0))",
    "file handles": (
        "handle = ctypes.create_string_buffer(b'\\x80\\0\\0\\0', 136); number = ctypes.c_int();"
        "done(libc.name_to_handle_at(-100, b'/usr', handle, ctypes.byref(number), 0));"
        "done(libc.open_by_handle_at(os.open('/usr', 0), handle, 0))"
    ),
    "disk": (
        "os.mknod('/disk', stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)));"
        "open('/disk', 'rb').read(1)"
    ),
    "users": "done(libc.unshare(0x10000000))",
}
"""By name, what ends without an error where it gets out."""


@pytest.fixture
def victim() -> Iterator[int]:
    """Run a process of the host's root, outside all containers."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def python(tool: Tool) -> Tool:
    """Give containers a Python: the host's libraries and a copy, for its own would be refused."""
    for name in ("lib", "lib64"):
        (tool.rootfs / name).symlink_to(f"usr/{name}")
    for name in ("usr", "mnt"):
        (tool.rootfs / name).mkdir()
    shutil.copy(Path(sys.executable).resolve(), tool.rootfs / "bin/python3")
    return tool


def ways_out_of(python: Tool, victim: int, *options: str) -> set[str]:
    """Try all of them in a container that sees the host's processes; return which worked."""
    disk = re.search(r"(?m)^ +(\d+) +(\d+) ", Path("/proc/partitions").read_text())
    assert disk is not None
    said = python.run(
        *("--rm", "--share", "pid", "-v", "/usr:/usr:ro", *options),
        *("/bin/python3", "-I", "-c", ATTACKER, json.dumps(WAYS_OUT), str(victim), *disk.groups()),
    )
    print(said.stderr)
    return set(said.stdout.splitlines())


def test_no_known_way_leads_out(python: Tool, victim: int) -> None:
    assert ways_out_of(python, victim) == set()


def test_the_same_attempts_succeed_with_all_privileges(python: Tool, victim: int) -> None:
    # Nothing is mounted then that could be taken away; and device rules hold for all.
    others = {"umount", "remount", "disk"}
    if not Path("/proc/sysrq-trigger").exists():
        others.add("sysrq")

    found = ways_out_of(python, victim, "--privileged", "--share", "cgroup")

    assert found == WAYS_OUT.keys() - others


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_no_descriptor_of_the_caller_reaches_the_command(tool: Tool, verb: str) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    where = ("--net", "none", "--rootfs", str(tool.rootfs)) if verb == "run" else ("web",)
    leaked = [os.open(path, os.O_RDONLY) for path in ("/", "/proc/self/ns/mnt", "/etc/passwd")]
    said = subprocess.run(
        tool.argv(verb, *where, "sh", "-c", "echo /proc/$$/fd/*"),
        pass_fds=leaked,
        capture_output=True,
        check=True,
        text=True,
    )
    for descriptor in leaked:
        os.close(descriptor)

    found = {Path(word).name for word in said.stdout.split()}
    assert found == {*"012", "3"}  # the last is the shell's, which reads the directory
    assert not found & {*map(str, leaked)}


class Watched(RecordingKernel):
    """Lets the container look about at each call of the process that enters it."""

    dumpable = False

    def _do(self, name: str, *arguments: object) -> int:
        if self.dumpable and arguments[:1] == (syscalls.PR_SET_DUMPABLE,):
            return 0
        if os.getppid() == 0:  # its parent is outside: it is in the PID namespace
            for path, flags in (("/go", os.O_WRONLY), ("/done", os.O_RDONLY)):
                os.close(os.open(path, flags))
        return super()._do(name, *arguments)


@pytest.mark.parametrize("dumpable", [False, True])
def test_who_enters_a_container_is_closed_to_it_until_its_command_runs(
    box: Box, dumpable: bool
) -> None:
    script = (
        "while :; do : < /go; for p in /proc/[0-9]*; do"
        " [ $p = /proc/1 ] || readlink $p/exe >> /found; done; : > /done; done"
    )
    for name in ("go", "done"):
        os.mkfifo(box.root / name)
    (box.root / "found").touch()
    spec = default_spec(["sh", "-c", script])
    null = os.open("/dev/null", os.O_RDWR)
    started = box.start(spec, Stdio(None, null, null))
    kernel = Watched(syscalls)
    kernel.dumpable = dumpable
    process = default_process(["true"])
    entered = enter.enter(
        started.pid, spec, process, cgroup=None, stdio=Stdio(None, null, null), kernel=kernel
    )
    os.close(null)
    os.waitpid(entered.pid, 0)
    os.kill(started.pid, signal.SIGKILL)
    os.waitpid(started.pid, 0)

    # Also readlink looks at itself. Without our doing it would see the host's Python.
    assert ("python" in (box.root / "found").read_text()) == dumpable


class Swapping(RecordingKernel):
    """Puts a link to a directory of the host where a volume is to be mounted, at one of two calls.

    ``seen`` is a file for what is in the host's directory after each mount.
    """

    at = ""
    volume = -1
    outside = Path()
    seen = -1

    def _do(self, name: str, *arguments: object) -> int:
        if name == "openat2" and arguments[1] == "data/sub":
            self.reached = True
        if name == self.at and getattr(self, "reached", False):
            self.at = ""
            os.rename("sub", "old", src_dir_fd=self.volume, dst_dir_fd=self.volume)
            os.symlink(self.outside, "sub", dir_fd=self.volume)
        result = super()._do(name, *arguments)
        if name == "move_mount" and self.outside.exists():
            os.write(self.seen, repr([*self.outside.iterdir()]).encode())
        return result


@pytest.mark.parametrize("at", ["openat2", "move_mount"])
def test_a_destination_that_becomes_a_link_leads_no_mount_out(
    box: Box, tmp_path: Path, at: str
) -> None:
    (box.root / "data/sub").mkdir(parents=True)
    for name in ("volume", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    kernel = Swapping(syscalls)
    kernel.at, kernel.outside = at, tmp_path / "outside"
    kernel.volume = os.open(box.root / "data", os.O_RDONLY)
    kernel.seen = os.memfd_create("seen")
    spec = default_spec(["x"])
    mount = Mount("/data/sub", "bind", str(tmp_path / "volume"), ("rbind",))
    said = ""
    with contextlib.suppress(HostError):  # where it leads nothing can be made
        said = box.run(
            "ls /data/old /data/sub", replace(spec, mounts=(*spec.mounts, mount)), kernel=kernel
        )
    seen = os.pread(kernel.seen, 65536, 0).decode()
    os.close(kernel.volume)
    os.close(kernel.seen)

    assert (box.root / "data/sub").is_symlink()  # the window was hit
    assert "of-outside" not in said
    assert "of-volume" not in seen
