"""What this machine offers to tests: each feature's name, and how it is found out.

A test says what it needs, and is skipped with the reason where that is missing:

    @requires("criu:mem_dirty_track", "netem")
    def test_…

The markers `privileged` and `criu` need root and criu. PYMIGRATE_REQUIRED=root,criu turns a skip
for the want of one of these into a failure: on a machine that was set up for the tests, a test
that cannot run has failed.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SHOWN = (
    "root",
    "criu",
    "cgroup1",
    "cgroup2",
    "netem",
    "userfaultfd",
    "criu:mem_dirty_track",
    "podman",
    "skopeo",
)
CRIU = ("/opt/pymigrate/criu/sbin/criu",)  # made by vagrant/provision where Debian's does not work


def requires(*names: str) -> pytest.MarkDecorator:
    """Mark a test as needing these features."""
    for name in names:
        if name.partition(":")[0] not in KNOWN:
            raise ValueError(f"{name!r} is not a feature that tests/features.py knows")
    return pytest.mark.requires(*names)


@functools.cache
def missing(name: str) -> str | None:
    """Say why a feature is missing; None if it is there."""
    kind, _, detail = name.partition(":")
    return KNOWN[kind](detail)


def must_be_there(name: str) -> bool:
    """Say whether PYMIGRATE_REQUIRED names this feature."""
    return name in os.environ.get("PYMIGRATE_REQUIRED", "").split(",")


def needs(item: pytest.Item) -> list[str]:
    """List what a test needs, in the order in which the reasons are told."""
    found = ["root"] if item.get_closest_marker("privileged") else []
    found += ["criu"] if item.get_closest_marker("criu") else []
    for marker in item.iter_markers("requires"):
        found += marker.args
    return list(dict.fromkeys(found))


def check(item: pytest.Item) -> None:
    """Skip the test if it needs what is not here, or fail if that was required."""
    for name in needs(item):
        if reason := missing(name):
            said = f"needs {name}: {reason}"
            (pytest.fail if must_be_there(name) else pytest.skip)(said)


def report() -> str:
    """Say in one line what is here and what is not."""
    here = [name for name in SHOWN if missing(name) is None]
    absent = [name for name in SHOWN if name not in here]
    return f"pymigrate: with {', '.join(here) or 'nothing'}; without {', '.join(absent) or 'none'}"


def _root(_: str) -> str | None:
    return None if os.geteuid() == 0 else "these tests make namespaces and cgroups as root"


def criu_program() -> str | None:
    """Return the CRIU that the tests use."""
    own = [path for path in CRIU if os.access(path, os.X_OK)]
    return own[0] if own else shutil.which("criu")


def _criu(feature: str) -> str | None:
    program = criu_program()
    if program is None:
        return "there is no criu; ./test installs it"
    if os.geteuid() != 0:
        return "criu needs root"
    check = [program, "check", *([f"--feature={feature}"] if feature else [])]
    # CRIU writes what it found out to /run, where it must not stay.
    hidden = 'mount -n -t tmpfs none /run && exec "$@"'
    said = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", hidden, "sh", *check],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return None if said.returncode == 0 else (said.stdout.strip() or "no").splitlines()[-1]


def _cgroup(kind: str) -> str | None:
    kinds = [
        line.partition(" - ")[2].split()[0]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return None if kind in kinds else f"no {kind} file system is mounted"


def _program(name: str) -> str | None:
    """Other tools of the field, with which ours has to get along."""
    found = shutil.which(name)
    return None if found else f"there is no {name}; vagrant/provision --for bench installs it"


def _netem(_: str) -> str | None:
    if os.geteuid() != 0:
        return "tc needs root"
    said = subprocess.run(
        ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if said.returncode == 0 else said.stderr.strip()


KNOWN: dict[str, Callable[[str], str | None]] = {
    "root": _root,
    "criu": _criu,
    "cgroup1": lambda _: _cgroup("cgroup"),
    "cgroup2": lambda _: _cgroup("cgroup2"),
    "netem": _netem,
    "podman": lambda _: _program("podman"),
    "skopeo": lambda _: _program("skopeo"),
    "userfaultfd": lambda _: _criu("uffd"),
}
