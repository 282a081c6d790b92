"""Privileged tests run in cgroups of their own and leave the machine as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime import syscalls
from tests import residue
from tests.lab.registry import Entry, own_cgroups
from tests.privileged.tool import Tool
from tests.residue import Snapshot

PATIENCE = 3.0  # seconds for the kernel to take apart what a test has let go


@pytest.fixture(scope="session", autouse=True)
def session_cgroups() -> Iterator[list[Path]]:
    """Run in cgroups and a mount namespace of our own, to tell our leavings from those of others.

    The cgroups are registered like a lab's: if this run is killed, the next one sweeps them.
    """
    if os.geteuid() != 0:
        yield []
        return
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    before = own_cgroups()
    entry = Entry.make(0)
    try:
        for directory in entry.place("session"):
            (directory / "cgroup.procs").write_text("0")
        yield [*entry.cgroups]
    finally:
        for directory in before:
            (directory / "cgroup.procs").write_text("0")
        entry.remove()


@pytest.fixture(autouse=True)
def no_residue(session_cgroups: list[Path]) -> Iterator[None]:
    """Fail a test that leaves mounts, cgroups, interfaces, processes or files, or takes any."""
    before = Snapshot.take(session_cgroups)
    yield
    left = residue.settle(lambda: Snapshot.take(session_cgroups), before, PATIENCE)
    gone = Snapshot.take(session_cgroups).gone_since(before)
    assert not left, "the test left behind:\n" + "\n".join(left)
    assert not gone, "the test took away:\n" + "\n".join(gone)


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Tool]:
    """Give a test a host of its own; its containers are removed at the end."""
    made = Tool(tmp_path)
    yield made
    left = made("ps", "-aq").stdout.split()
    if left:
        made("rm", "-f", *left)
