"""Planning a move: every finding is provoked, and nothing else is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.migrate.cpu import BASELINES
from pymigrate.migrate.facts import controllers, label_of, security_module
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.plan import (
    CHECKS,
    ContainerFacts,
    HostFacts,
    Plan,
    Refusal,
    examine,
    make_plan,
)
from pymigrate.runtime.cgroups_layout import Hierarchy, Layout
from pymigrate.runtime.errors import UsageError

HERE = HostFacts(
    host_id="a" * 12,
    hostname="alpha",
    kernel="6.12.1",
    machine="x86_64",
    criu_version="4.1.1",
    cgroup="v2",
    cpu_features=frozenset({"sse2", "avx2"}),
    features=frozenset({"time-namespaces", "udp-lite", "lazy-memory", "CAP_CHOWN", "CAP_NET_RAW"}),
    memory_available=8 << 30,
    disk_available=8 << 30,
    page_size=4096,
)
THERE = replace(HERE, host_id="b" * 12, hostname="beta")
WEB = ContainerFacts(
    name="web",
    memory=64 << 20,
    files=1 << 20,
    namespaces=frozenset({"mount", "pid", "time", "user"}),
    network_mode="bridge",
    capabilities=frozenset({"CAP_CHOWN", "CAP_NET_RAW"}),
    controllers=frozenset({"memory", "pids"}),
)

PROVOKED = {
    "same-host": replace(THERE, host_id=HERE.host_id),
    "architecture": replace(THERE, machine="aarch64"),
    "criu": replace(THERE, criu_version=""),
    "cpu": replace(THERE, cpu_features=frozenset({"sse2"})),
    "kernel": replace(THERE, kernel="7.3.4", features=HERE.features - {"udp-lite"}),
    "time": replace(THERE, features=HERE.features - {"time-namespaces"}),
    "users": replace(THERE, kernel="5.15.0"),
    "capabilities": replace(THERE, features=HERE.features - {"CAP_NET_RAW"}),
    "controllers": replace(THERE, features=HERE.features | {"controller:pids"}),
    "lsm": replace(THERE, features=HERE.features | {"lsm:none"}),
    "clock": replace(THERE, clock_ahead=-7.0),
    "disks": THERE,
    "devices": THERE,
    "memory": replace(THERE, memory_available=1 << 20),
    "disk": replace(THERE, disk_available=1 << 20),
}

CONTAINERS = {
    "disks": replace(WEB, limited_disks=("8:0",)),
    "devices": replace(WEB, devices=("/dev/fuse",)),
    "lsm": replace(WEB, labels=frozenset({"docker-default"})),
}
"""The containers that provoke a finding themselves."""


def test_like_hosts_give_a_plan() -> None:
    plan = make_plan("m1", HERE, THERE, WEB)

    assert isinstance(plan, Plan)
    assert (plan.source, plan.target, plan.skipped) == ("alpha", "beta", ())


NO_USERFAULTFD = replace(THERE, features=HERE.features - {"lazy-memory"})
ROOT = replace(WEB, namespaces=WEB.namespaces - {"user"})


@pytest.mark.parametrize(
    ("wanted", "mode"),
    [("auto", Mode.HYBRID), *((mode.value, mode) for mode in Mode)],
)
def test_memory_is_filled_in_later_where_that_is_asked_for(wanted: str, mode: Mode) -> None:
    plan = make_plan("m1", HERE, THERE, ROOT, mode=wanted)

    assert isinstance(plan, Plan)
    assert (mode, mode is not Mode.STOP) == (plan.mode, plan.lazy)


@pytest.mark.parametrize(("target", "container"), [(NO_USERFAULTFD, ROOT), (THERE, WEB)])
def test_memory_goes_before_the_restore_where_it_cannot_be_filled_in_later(
    target: HostFacts, container: ContainerFacts
) -> None:
    plan = make_plan("m1", HERE, target, container)

    assert isinstance(plan, Plan)
    assert (Mode.STOP, False) == (plan.mode, plan.lazy)


@pytest.mark.parametrize("mode", ["pre", "post", "hybrid"])
@pytest.mark.parametrize(("target", "container"), [(NO_USERFAULTFD, ROOT), (THERE, WEB)])
def test_a_mode_that_cannot_be_had_is_refused_and_cannot_be_skipped(
    mode: str, target: HostFacts, container: ContainerFacts
) -> None:
    refused = make_plan("m1", HERE, target, container, mode=mode)

    assert isinstance(refused, Refusal)
    assert "use --mode stop" in refused.error().hint
    with pytest.raises(UsageError):
        make_plan("m1", HERE, target, container, mode=mode, skip=["mode"])


@pytest.mark.parametrize("check", CHECKS)
def test_each_difference_is_found_alone_with_a_remedy(check: str) -> None:
    (finding,) = examine(HERE, PROVOKED[check], CONTAINERS.get(check, WEB))

    assert finding.check == check
    assert finding.remedy


@pytest.mark.parametrize("check", CHECKS)
def test_a_finding_refuses_unless_it_is_skipped_by_name(check: str) -> None:
    container = CONTAINERS.get(check, WEB)
    refused = make_plan("m1", HERE, PROVOKED[check], container)
    skipped = make_plan("m1", HERE, PROVOKED[check], container, skip=[check])

    assert isinstance(refused, Refusal)
    assert f"[{check}]" in refused.error().message
    assert "nothing was touched" in refused.error().message
    assert isinstance(skipped, Plan)
    assert [finding.check for finding in skipped.skipped] == [check]


def test_an_older_criu_of_the_same_major_is_refused_too() -> None:
    """Seen: images of 4.2.1 on 7.3 fail with 4.1.1 on 6.12, "vdso: ELF header magic mismatch"."""
    newest = replace(HERE, criu_version="4.2.1")
    older = make_plan("m1", newest, THERE, WEB)
    patch = make_plan("m1", newest, replace(THERE, criu_version="4.2"), WEB)

    assert isinstance(older, Refusal)
    assert isinstance(patch, Plan)


@pytest.mark.parametrize(
    ("criu", "kernel", "udp_lite", "unfit"),
    [
        ("3.17.1", "6.1.0-50-cloud-amd64", True, False),
        ("3.17.1", "6.13.1", True, True),
        ("4.1.1", "6.13.1", True, False),
        ("4.1.1", "7.3.4", False, True),
        ("4.2.1", "7.3.4", False, False),
    ],
)
def test_a_criu_that_is_known_to_fail_on_its_kernel_is_refused_on_either_side(
    criu: str, kernel: str, udp_lite: bool, unfit: bool
) -> None:
    features = HERE.features if udp_lite else HERE.features - {"udp-lite"}
    host = replace(THERE, criu_version=criu, kernel=kernel, features=features)
    source = replace(host, host_id="c" * 12)

    found = [finding.check for finding in examine(source, host, WEB)]

    assert found == (["kernel", "kernel"] if unfit else [])


def test_an_older_major_criu_at_the_target_is_refused_and_a_newer_one_is_not() -> None:
    older = make_plan("m1", HERE, replace(THERE, criu_version="3.17.1"), WEB)
    newer = make_plan("m1", replace(HERE, criu_version="3.17.1"), THERE, WEB)

    assert isinstance(older, Refusal)
    assert isinstance(newer, Plan)


V2 = BASELINES["x86-64-v2"].features
RICH = replace(HERE, cpu_features=BASELINES["x86-64-v3"].features | {"avx512f"})


def test_a_baseline_is_all_that_the_target_needs_to_have() -> None:
    poor = replace(THERE, cpu_features=V2 | {"xsave"})
    held = replace(WEB, cpu_baseline="x86-64-v2")

    assert isinstance(make_plan("m1", RICH, poor, held), Plan)
    free = make_plan("m1", RICH, poor, WEB)
    assert isinstance(free, Refusal)
    assert "--cpu-baseline x86-64-v2" in free.findings[0].remedy
    higher = make_plan("m1", RICH, poor, replace(WEB, cpu_baseline="x86-64-v3"))
    assert isinstance(higher, Refusal)
    assert "lacks abm, avx, avx2, bmi1, bmi2, f16c and 2 more" in higher.findings[0].seen


def test_no_baseline_helps_where_criu_could_not_restore_the_registers() -> None:
    """Seen: "FPU xsave area present, but host cpu doesn't support it"."""
    bare = replace(THERE, cpu_features=V2)

    held = make_plan("m1", RICH, bare, replace(WEB, cpu_baseline="x86-64-v2"))
    free = make_plan("m1", RICH, bare, WEB)

    assert isinstance(held, Refusal)
    assert "lacks xsave" in held.findings[0].seen
    assert isinstance(free, Refusal)
    assert "--cpu-baseline" not in free.findings[0].remedy


def test_a_baseline_of_a_newer_pymigrate_counts_as_none() -> None:
    unknown = replace(WEB, cpu_baseline="x86-64-v9")

    assert isinstance(make_plan("m1", RICH, replace(THERE, cpu_features=V2), unknown), Refusal)


def test_several_findings_are_all_named() -> None:
    worst = replace(THERE, machine="aarch64", memory_available=0, disk_available=0)
    refusal = make_plan("m1", HERE, worst, WEB)

    assert isinstance(refusal, Refusal)
    assert [finding.check for finding in refusal.findings] == ["architecture", "memory", "disk"]


def test_skipping_what_is_no_check_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no such check"):
        make_plan("m1", HERE, THERE, WEB, skip=["luck"])


def test_an_older_agent_that_does_not_name_its_controllers_is_believed_to_have_them() -> None:
    assert [] == list(examine(HERE, THERE, WEB))


def test_controllers_of_every_layout_are_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io pids\n")
    first = Hierarchy(1, frozenset({"memory"}), "/sys/fs/cgroup/memory", "/")
    second = Hierarchy(2, frozenset(), str(tmp_path), "/")
    assert {"controller:memory", "controller:cpu", "controller:io", "controller:pids"} == (
        controllers(Layout((first, second)))
    )
    assert {"controller:memory"} == controllers(Layout((first,)))


APPARMOR = HERE.features | {"lsm:apparmor"}


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (APPARMOR | {"profile:docker-default"}, []),
        (APPARMOR | {"profile:man"}, ["lsm"]),
        (APPARMOR, []),  # its agent may not list them
        (HERE.features | {"lsm:selinux"}, ["lsm"]),
        (HERE.features, []),  # an older agent, which does not say
    ],
)
def test_a_profile_has_to_be_loaded_at_the_target(there: frozenset[str], found: list[str]) -> None:
    source = replace(HERE, features=APPARMOR | {"profile:docker-default"})
    target = replace(THERE, features=there)
    seen = examine(source, target, CONTAINERS["lsm"])
    assert found == [each.check for each in seen]
    assert [] == examine(source, target, WEB)


@pytest.mark.parametrize(
    ("recorded", "label"),
    [
        ("docker-default (enforce)\n", "docker-default"),
        ("unconfined\n", ""),
        ("system_u:system_r:container_t:s0:c1,c2\0", "system_u:system_r:container_t:s0:c1,c2"),
        ("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0", ""),
        ("", ""),
    ],
)
def test_labels_of_processes_are_read(tmp_path: Path, recorded: str, label: str) -> None:
    (tmp_path / "attr").mkdir()
    (tmp_path / "attr/current").write_text(recorded)
    assert label == label_of(tmp_path)
    assert "" == label_of(tmp_path / "gone")


def test_security_modules_are_named_with_their_profiles(tmp_path: Path) -> None:
    assert {"lsm:none"} == security_module(tmp_path)
    (tmp_path / "fs/selinux").mkdir(parents=True)
    assert {"lsm:selinux"} == security_module(tmp_path)
    (tmp_path / "kernel/security/apparmor").mkdir(parents=True)
    assert {"lsm:apparmor"} == security_module(tmp_path)  # it may not be listed
    listed = "docker-default (enforce)\n/usr/bin/man (complain)\n"
    (tmp_path / "kernel/security/apparmor/profiles").write_text(listed)
    known = {"lsm:apparmor", "profile:docker-default", "profile:/usr/bin/man"}
    assert known == security_module(tmp_path)


def test_clocks_that_differ_a_little_are_no_matter() -> None:
    assert [] == list(examine(HERE, replace(THERE, clock_ahead=4.9), WEB))
