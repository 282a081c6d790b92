"""Namespaces: what is made, joined and left, decided kind by kind."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.runtime import namespaces, syscalls
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import IdMapping, Namespace, TimeOffset
from pymigrate.runtime.spec import default_spec
from tests.fakes.kernel import RecordingKernel, open_descriptors

SPEC = default_spec(["true"])


def plan_of(*given: Namespace, network_given: bool = False) -> namespaces.Plan:
    return namespaces.plan(replace(SPEC, namespaces=given), network_given=network_given)


@pytest.mark.parametrize(("kind", "flag"), namespaces.FLAGS.items())
def test_each_kind_is_private_shared_or_joined(kind: str, flag: int) -> None:
    private = plan_of(Namespace(kind))
    assert ((), kind == "user") == (private.join, private.new_user)
    assert (0 if kind == "user" else flag) == private.unshare
    assert namespaces.Plan((), False, 0) == plan_of()
    assert namespaces.Plan(((kind, "/p"),), False, 0) == plan_of(Namespace(kind, "/p"))


def test_a_network_that_is_given_is_not_made() -> None:
    plan = plan_of(Namespace("network"), Namespace("pid"), network_given=True)
    assert namespaces.Plan((), False, syscalls.CLONE_NEWPID) == plan
    with pytest.raises(UsageError, match="given twice"):
        plan_of(Namespace("network", "/proc/1/ns/net"), network_given=True)


def test_the_users_is_joined_first_and_the_mounts_last() -> None:
    plan = plan_of(Namespace("mount", "/m"), Namespace("pid", "/p"), Namespace("user", "/u"))
    assert ["user", "pid", "mount"] == [kind for kind, _ in plan.join]


def test_a_path_that_cannot_be_joined_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    before = open_descriptors()
    plan = plan_of(
        Namespace("ipc", f"/proc/{os.getpid()}/ns/ipc"), Namespace("uts", str(tmp_path / "no"))
    )
    with pytest.raises(UsageError, match="cannot join the uts namespace"), ExitStack() as undo:
        namespaces.open_joined(plan, undo)
    assert before == open_descriptors()


def test_each_joined_kind_is_entered_as_that_kind() -> None:
    kernel = RecordingKernel()
    namespaces.join((("ipc", 7), ("mount", 8)), kernel)
    expected = [(7, syscalls.CLONE_NEWIPC), (8, syscalls.CLONE_NEWNS)]
    assert expected == [arguments for _, arguments in kernel.calls]


def test_maps_and_offsets_are_the_kernels_lines() -> None:
    mappings = (IdMapping(0, 100000, 1000), IdMapping(1000, 0, 1))
    assert "0 100000 1000\n1000 0 1\n" == namespaces.id_map(mappings)
    offsets = (TimeOffset("boottime", -3, 5),)
    assert "boottime -3 5\n" == namespaces.time_offsets(offsets)


def test_a_user_is_found_in_the_mappings() -> None:
    mappings = (IdMapping(0, 100000, 1000), IdMapping(1000, 5, 1))
    assert 100999 == namespaces.host_id(mappings, 999)
    assert 5 == namespaces.host_id(mappings, 1000)
    assert 7 == namespaces.host_id((), 7)
    with pytest.raises(UsageError, match=r"1001 is not in linux\.uidMappings"):
        namespaces.host_id(mappings, 1001)


def test_identities_are_those_of_the_process() -> None:
    ours = namespaces.identities(os.getpid())
    assert set(namespaces.FLAGS) == set(ours)
    with subprocess.Popen(["sleep", "60"]) as child:
        theirs = namespaces.identities(child.pid)
        child.kill()
    assert ours == theirs
