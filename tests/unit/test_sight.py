"""What is seen of processes that come and go while one looks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pymigrate.checkpoint.sight import strayed_children


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that ends when its standard input does."""
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE) as process:
        yield process


def test_a_child_in_another_cgroup_has_strayed(child: subprocess.Popen[bytes]) -> None:
    here = os.getpid()

    assert child.pid in strayed_children(here, (here,), lambda: (here,))


def test_a_child_that_was_born_while_one_looked_has_not(child: subprocess.Popen[bytes]) -> None:
    here = os.getpid()

    assert child.pid not in strayed_children(here, (here,), lambda: (here, child.pid))


def test_a_child_that_ended_while_one_looked_has_not(child: subprocess.Popen[bytes]) -> None:
    here = os.getpid()

    def look_again() -> tuple[int, ...]:
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
        return (here,)

    assert child.pid not in strayed_children(here, (here,), look_again)


def test_a_zombie_is_listed_since_it_is_in_no_cgroup(child: subprocess.Popen[bytes]) -> None:
    here = os.getpid()
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert child.pid in strayed_children(here, (here,), lambda: (here,))
