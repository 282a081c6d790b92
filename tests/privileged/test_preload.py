"""Limits of other users' processes, read by a root without CAP_SYS_RESOURCE."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.checkpoint import rlimits
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
    if not any(map(shutil.which, rlimits.COMPILERS)):
        pytest.skip("there is no C compiler here")
    path = tmp_path_factory.mktemp("rlimits") / "rlimits.so"
    rlimits.build(path)
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
    assert rlimits.needed(STATUS.format("000001fffeffffff"))
    assert not rlimits.needed(STATUS.format("000001ffffffffff"))


def test_library_that_is_not_there_is_not_preloaded(tmp_path: Path) -> None:
    assert ["criu", "swrk"] == rlimits.wrapped(["criu", "swrk"], tmp_path / "none.so")


def test_lack_of_a_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingFeature, match="no C compiler"):
        rlimits.build(tmp_path / "rlimits.so")
    assert [] == list(tmp_path.iterdir())
