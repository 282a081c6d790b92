"""Findings about the kernel, from texts of /proc."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pymigrate.runtime import features
from pymigrate.runtime.features import Finding, findings

FILES = {
    "/proc/filesystems": "nodev\toverlay\n",
    "/proc/sys/kernel/seccomp/actions_avail": "kill allow\n",
    "/proc/sys/kernel/yama/ptrace_scope": "1\n",
    "/proc/sys/fs/pipe-max-size": "4194304\n",
    "/proc/self/limits": "Limit  Soft Limit  Hard Limit  Units\n"
    "Max open files            1024                 524288               files\n",
}


def reader(**changed: str | None) -> Callable[[str], str | None]:
    files: dict[str, str | None] = {**FILES, **{f"/proc/{k}": v for k, v in changed.items()}}
    return files.get


def found(read: Callable[[str], str | None]) -> dict[str, Finding]:
    return {each.name: each for each in findings(read)}


def test_a_good_kernel_has_all() -> None:
    names = found(reader())
    for name in ("overlayfs", "seccomp", "ptrace", "fs.pipe-max-size", "open files"):
        assert names[name].present, name


@pytest.mark.parametrize(
    ("path", "text", "name"),
    [
        ("sys/fs/pipe-max-size", "1048576\n", "fs.pipe-max-size"),
        ("sys/kernel/yama/ptrace_scope", "3\n", "ptrace"),
        ("sys/kernel/seccomp/actions_avail", None, "seccomp"),
        ("self/limits", "Max open files  64  128  files\n", "open files"),
    ],
)
def test_what_is_missing_has_a_remedy(path: str, text: str | None, name: str) -> None:
    finding = found(reader(**{path: text}))[name]
    assert not finding.present
    assert finding.remedy


def test_every_finding_says_what_it_is_needed_for() -> None:
    for finding in findings(reader()):
        assert finding.purpose
    assert features.PIPE_BYTES == 4 << 20
