"""Labels of security modules: which are taken where, and what is written for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pymigrate.runtime import labels
from pymigrate.runtime.errors import HostError, MissingFeature
from pymigrate.runtime.labels import APPARMOR, SELINUX, Label
from pymigrate.runtime.settings import Process

PLAIN = Process(("true",))
CONFINED = Process(("true",), apparmor_profile="mine", selinux_label="u:r:t:s0")
BOTH = (Label(APPARMOR, "mine"), Label(SELINUX, "u:r:t:s0"))


def test_what_is_asked_for_is_taken_where_the_module_is() -> None:
    assert () == labels.chosen(PLAIN, frozenset())
    assert BOTH == labels.chosen(CONFINED, frozenset({APPARMOR, SELINUX}))


@pytest.mark.parametrize(
    ("here", "missing"),
    [({APPARMOR}, "SELinux label u:r:t:s0"), ({SELINUX}, "AppArmor profile mine")],
)
def test_what_the_host_has_not_is_refused(here: set[str], missing: str) -> None:
    with pytest.raises(MissingFeature, match=missing):
        labels.chosen(CONFINED, frozenset(here))


def test_to_be_unconfined_is_taken_where_there_is_something_to_be_free_of() -> None:
    free = Process(("true",), apparmor_profile="unconfined")

    assert () == labels.chosen(free, frozenset())
    assert (Label(APPARMOR, "unconfined"),) == labels.chosen(free, frozenset({APPARMOR}))


def test_a_module_is_here_when_it_is_at_work(tmp_path: Path) -> None:
    assert frozenset() == labels.modules(tmp_path)
    enabled = tmp_path / "sys/module/apparmor/parameters/enabled"
    enabled.parent.mkdir(parents=True)
    enabled.write_text("N\n")
    assert frozenset() == labels.modules(tmp_path)
    enabled.write_text("Y\n")
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    assert {APPARMOR, SELINUX} == labels.modules(tmp_path)


@pytest.mark.parametrize(
    ("file", "label", "written"),
    [
        ("self/attr/apparmor/exec", BOTH[0], b"exec mine"),
        ("self/attr/exec", BOTH[0], b"exec mine"),  # Linux before 5.1
        ("self/attr/exec", BOTH[1], b"u:r:t:s0"),
    ],
)
def test_it_is_written_for_the_next_exec(
    tmp_path: Path, file: str, label: Label, written: bytes
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_bytes(b"")
    proc = os.open(tmp_path, os.O_PATH)
    labels.take_at_exec(label, proc)
    os.close(proc)

    assert written == (tmp_path / file).read_bytes()


def test_a_refusal_of_the_kernel_names_the_label(tmp_path: Path) -> None:
    (tmp_path / "self/attr").mkdir(parents=True)
    (tmp_path / "self/attr/exec").symlink_to("/dev/full")
    proc = os.open(tmp_path, os.O_PATH)
    with pytest.raises(HostError, match="cannot take the SELinux label u:r:t:s0: No space"):
        labels.take_at_exec(BOTH[1], proc)
    os.close(proc)
