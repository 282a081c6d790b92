"""What is preloaded into CRIU: the limits that a root without CAP_SYS_RESOURCE may not ask for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.checkpoint import preload
from pymigrate.runtime.errors import MissingFeature

pytestmark = pytest.mark.privileged

WITHOUT = ("setpriv", "--bounding-set", "-sys_resource", "--")
# By syscall(), as CRIU does it; the arguments: how many calls, PID.
READ = """
import ctypes, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 302, "aarch64": 261}[platform.machine()]
for resource in range(int(sys.argv[1])):
    limit = (ctypes.c_uint64 * 2)()
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_long(int(sys.argv[2])), ctypes.c_long(resource),
        ctypes.c_long(0), limit,
    )
    print(*(limit if result == 0 else (os.strerror(ctypes.get_errno()),)))
"""
STATUS = "Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{}\nCapBnd:\t000001ffffffffff\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile it."""
    if not any(map(shutil.which, preload.COMPILERS)):
        pytest.skip("there is no C compiler here")
    path = tmp_path_factory.mktemp("preload") / "preload.so"
    preload.build(path)
    return path


@pytest.fixture
def other() -> Iterator[int]:
    """Run a process of another user, with limits that nobody else has."""
    command = ("prlimit", "--nofile=123:456", "--cpu=unlimited")
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    sleep = "echo; exec sleep 1000"
    with subprocess.Popen([*command, *user, "sh", "-c", sleep], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def read(count: int, pid: int, library: Path | None) -> list[str]:
    preload = [] if library is None else ["env", f"LD_PRELOAD={library}"]
    command = [*WITHOUT, *preload, sys.executable, "-c", READ, str(count), str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_limit_of_another_users_process_is_told(other: int, library: Path) -> None:
    assert ["Operation not permitted"] == read(1, other, None)

    told = read(16, other, library)

    themselves = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    direct = subprocess.run(
        [*themselves, "/usr/bin/python3", "-c", READ, "16", str(other)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert direct.stdout.splitlines() == told
    assert "123 456" == told[7]


def test_what_is_no_limit_is_still_an_error(other: int, library: Path) -> None:
    assert "Invalid argument" == read(17, other, library)[16]


def test_process_that_is_not_there_is_still_an_error(library: Path) -> None:
    assert ["No such process"] == read(1, 4194304, library)


def test_library_is_not_asked_for_where_root_has_the_capability() -> None:
    assert preload.needed(STATUS.format("000001fffeffffff"))
    assert not preload.needed(STATUS.format("000001ffffffffff"))


def test_library_is_preloaded_where_it_is_there_and_has_something_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preload, "LIBRARY", tmp_path / "preload.so")
    monkeypatch.setattr(preload, "needed", lambda: False)
    assert ["criu"] == preload.wrapped(["criu"], 4)
    (tmp_path / "preload.so").touch()

    loaded = ["/usr/bin/env", f"LD_PRELOAD={tmp_path / 'preload.so'}"]
    assert [*loaded, "PYMIGRATE_HIDDEN=4", "criu"] == preload.wrapped(["criu"], 4)
    assert ["criu"] == preload.wrapped(["criu"])
    monkeypatch.setattr(preload, "needed", lambda: True)
    assert [*loaded, "criu"] == preload.wrapped(["criu"])


# Looks at memory of its own as CRIU does; all areas but the third are in the table.
LOOK = """
import ctypes, fcntl, mmap, os, struct, sys
from pymigrate.checkpoint import hidden_memory
from pymigrate.checkpoint.hidden_memory import Hidden
from pymigrate.runtime.memory import Area

SIZE = 4 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.pread64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
areas = [mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(5)]
starts = sorted(ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in areas)
for each in areas:
    each[: 3 * 4096] = b"x" * 3 * 4096
pid = os.getpid()
rows = [Area(start, start + SIZE, True) for start in (*starts[:2], *starts[3:])]
others = [Area(each.start, each.end + (1 << 30), True) for each in rows]
table = int(sys.argv[1])
os.pwrite(table, hidden_memory.table([Hidden(pid - 1, 1, others), Hidden(pid, 1, rows),
                                      Hidden(pid + 1, 1, others)]), 0)
pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
other = os.open(f"/proc/{os.getppid()}/pagemap", os.O_RDONLY)

def scan(start, end, anyof=0x18, left_out=0x24, file=pagemap):
    regions = ctypes.create_string_buffer(24 * 1000)
    asked = ctypes.create_string_buffer(struct.pack(
        "=12Q", 96, 0, start, end, 0, ctypes.addressof(regions), 1000, 0,
        left_out, left_out, anyof, 0x98), 96)
    found = libc.ioctl(file, 0xC0606610, asked)
    if found < 0:
        return os.strerror(ctypes.get_errno())
    return found, struct.unpack_from("=Q", asked, 32)[0] == end

def read(start, end):
    into = ctypes.create_string_buffer(b"y" * (SIZE // 512), SIZE // 512)
    size = (end - start) // 512
    assert size == libc.pread64(pagemap, into, size, start // 512)
    return sum(entry >> 63 for (entry,) in struct.iter_unpack("=Q", into.raw[:size]))

for start in starts:
    print(scan(start, start + SIZE), read(start, start + SIZE))
start = starts[0]
print(scan(start, start + SIZE, anyof=8), scan(start, start + SIZE, left_out=0x20))
print(scan(start, start + SIZE - 4096), scan(start + 4096, start + SIZE), scan(start, starts[-1]))
print(read(start, start + SIZE - 4096), scan(start, start + SIZE, file=other)[0] >= 0)
print(scan(start, start + SIZE, anyof=1 << 60), scan(start, start + SIZE, file=table))
"""


def test_just_what_criu_asks_of_just_a_hidden_area_is_answered_by_nothing(library: Path) -> None:
    table = os.memfd_create("table")

    def looked(name: str) -> list[str]:
        command = ["env", f"LD_PRELOAD={library}", f"PYMIGRATE_HIDDEN={name}", sys.executable]
        found = subprocess.run(
            [*command, "-c", LOOK, str(table)],
            capture_output=True,
            text=True,
            check=True,
            pass_fds=(table,),
        )
        return found.stdout.splitlines()

    try:
        hidden, shown = looked(str(table)), [looked(name) for name in ("999", "", "x")]
    finally:
        os.close(table)

    there = "(1, True) 3"
    for lines in shown:
        assert [there] * 5 == lines[:5]
    assert ["(0, True) 0"] * 2 + [there] + ["(0, True) 0"] * 2 == hidden[:5]
    assert all(lines[5:] == hidden[5:] for lines in shown)
    assert "(1, True) (1, True)" == hidden[5]
    assert "(1, True) (1, True)" == " ".join(hidden[6].split(" ")[:4])
    assert ["3 True", "Invalid argument Inappropriate ioctl for device"] == hidden[7:]


def test_lack_of_a_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingFeature, match="no C compiler"):
        preload.build(tmp_path / "preload.so")
    assert [] == list(tmp_path.iterdir())
