"""Where cgroups are found, and what is written for which limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.runtime import cgroups_disks, cgroups_v1, cgroups_v2
from pymigrate.runtime.cgroups import Cgroup, CpuQuota, Member
from pymigrate.runtime.cgroups_disks import Sharing
from pymigrate.runtime.cgroups_files import Limit, as_it_is, describe
from pymigrate.runtime.cgroups_layout import Layout, detect
from pymigrate.runtime.deadline import Deadline
from pymigrate.runtime.errors import MissingFeature, UsageError
from pymigrate.runtime.settings import HugepageLimit
from pymigrate.runtime.spec import DeviceRule, IoRate, Resources
from tests.fakes.cgroupfs import Cgroupfs

V1 = """\
23 22 0:20 / / rw - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
V2 = "41 23 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
SELF_V1 = "9:name=systemd:/init.scope\n4:memory:/job/7\n1:cpu,cpuacct:/\n"


def places(layout: Layout) -> dict[str, str]:
    return {",".join(sorted(each.controllers)): each.own for each in layout.hierarchies}


def test_v1_controllers_are_found_where_they_are_mounted_and_named_hierarchies_are_not() -> None:
    layout = detect(V1, SELF_V1)

    assert layout.kind == "v1"
    assert layout.unified is None
    assert places(layout) == {
        "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory/job/7",
    }


def test_hybrid_has_both_and_the_unified_one_comes_last() -> None:
    layout = detect(V1 + UNIFIED, SELF_V1 + "0::/user.slice\n")

    assert layout.kind == "hybrid"
    assert [each.version for each in layout.hierarchies] == [1, 1, 2]
    assert layout.unified is not None
    assert layout.unified.own == "/sys/fs/cgroup/unified/user.slice"


def test_v2_alone() -> None:
    layout = detect(V2, "0::/user.slice/user-0.slice/session-3.scope\n")

    assert layout.kind == "v2"
    assert places(layout) == {"": "/sys/fs/cgroup/user.slice/user-0.slice/session-3.scope"}


def test_a_host_without_cgroups_is_refused_with_the_remedy() -> None:
    layout = detect("23 22 0:20 / / rw - ext4 /dev/vda rw\n", "0::/\n")

    assert layout.kind == "none"
    with pytest.raises(MissingFeature) as caught:
        Cgroup.named("host/web1", layout)
    assert "cgroup2" in caught.value.hint


@pytest.mark.parametrize(
    ("root", "path", "own"),
    [
        ("/docker/c1", "/docker/c1", "/cg"),  # bind mount of our own cgroup
        ("/docker/c1", "/docker/c1/x", "/cg/x"),
        ("/docker/c1", "/docker/c10", "/cg"),  # a neighbour whose name begins alike
        ("/docker/c1", "/", "/cg"),  # we are outside of what is mounted
        ("/..", "/", "/cg"),  # cgroup namespace made after the mount
        ("/", "/../other", "/cg"),  # we are outside of our cgroup namespace's root
        ("/", "/", "/cg"),
        ("/", "/a b", "/cg/a b"),
    ],
)
def test_mount_root_and_path_make_the_directory(root: str, path: str, own: str) -> None:
    layout = detect(f"41 23 0:38 {root} /cg rw - cgroup2 cgroup2 rw\n", f"0::{path}\n")

    assert layout.unified is not None
    assert layout.unified.own == own


def test_of_several_mounts_the_one_that_shows_us_and_is_writable_is_taken() -> None:
    mounts = (
        "40 23 0:38 /other /one rw - cgroup2 cgroup2 rw\n"
        "41 23 0:38 / /two ro,nosuid - cgroup2 cgroup2 rw\n"
        "42 23 0:38 / /three rw - cgroup2 cgroup2 rw\n"
    )

    assert places(detect(mounts, "0::/us\n")) == {"": "/three/us"}


def test_a_mount_that_another_one_hides_is_not_taken() -> None:
    hidden = V1 + "50 31 0:40 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"  # over what 31 holds
    assert detect(hidden, SELF_V1).kind == "none"

    again = hidden + "51 50 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert detect(again, SELF_V1 + "0::/\n").kind == "v2"

    over_all = V1 + "50 23 0:40 / /sys rw - sysfs sysfs rw\n"
    assert detect(over_all, SELF_V1).kind == "none"


def test_a_tree_that_was_moved_onto_a_younger_mount_is_seen() -> None:
    moved = V1.replace("31 23", "31 60") + "60 23 0:41 / /sys rw - sysfs sysfs rw\n"

    assert detect(moved, SELF_V1).kind == "v1"


def test_escapes_in_paths_are_undone() -> None:
    layout = detect(r"41 23 0:38 / /my\040cg rw - cgroup2 cgroup2 rw", "0::/\n")

    assert places(layout) == {"": "/my cg"}


@pytest.mark.parametrize("text", ["", "rubbish", "1 2 3 - \n", "41 23 0:38 / /cg rw cgroup2 rw\n"])
def test_nonsense_is_no_layout(text: str) -> None:
    assert detect(text, text).kind == "none"


ALL = Resources(
    memory_limit=64 << 20,
    memory_swap=96 << 20,
    memory_reservation=32 << 20,
    cpu_quota_us=50_000,
    cpu_period_us=100_000,
    cpu_weight=200,
    cpuset_cpus="0-1",
    pids_limit=30,
)


def test_v1_plan() -> None:
    plan = cgroups_v1.limits(ALL, memory_and_swap_now=1 << 62)

    assert [(each.file, each.value) for each in plan if each.controller != "devices"] == [
        ("memory.limit_in_bytes", str(64 << 20)),
        ("memory.memsw.limit_in_bytes", str(96 << 20)),
        ("memory.soft_limit_in_bytes", str(32 << 20)),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.shares", "2048"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "30"),
    ]


def test_v2_plan_has_swap_alone() -> None:
    plan = cgroups_v2.limits(ALL)

    assert [(each.file, each.value) for each in plan] == [
        ("memory.max", str(64 << 20)),
        ("memory.swap.max", str(32 << 20)),
        ("memory.low", str(32 << 20)),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "200"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "30"),
    ]


IO = Resources(
    io_weight=505,
    io_read_bps=(IoRate(8, 0, 1 << 20), IoRate(8, 16, 0)),
    io_write_bps=(IoRate(8, 0, 2 << 20),),
    io_read_iops=(IoRate(8, 0, 100),),
    io_write_iops=(IoRate(8, 0, 200),),
)


def test_v1_plan_of_block_io() -> None:
    plan = cgroups_v1.limits(IO, memory_and_swap_now=None)

    assert [(each.file, each.value) for each in plan if each.controller == "blkio"] == [
        ("blkio.weight", "505"),
        ("blkio.throttle.read_bps_device", "8:0 1048576"),
        ("blkio.throttle.read_bps_device", "8:16 0"),
        ("blkio.throttle.write_bps_device", "8:0 2097152"),
        ("blkio.throttle.read_iops_device", "8:0 100"),
        ("blkio.throttle.write_iops_device", "8:0 200"),
    ]
    assert plan[0].instead == ("blkio.bfq.weight", "505")


def test_v2_plan_of_block_io() -> None:
    plan = cgroups_v2.limits(IO)

    assert [(each.file, each.value) for each in plan] == [
        ("io.weight", "5000"),
        ("io.max", "8:0 rbps=1048576"),
        ("io.max", "8:16 rbps=max"),
        ("io.max", "8:0 wbps=2097152"),
        ("io.max", "8:0 riops=100"),
        ("io.max", "8:0 wiops=200"),
    ]
    assert plan[0].instead == ("io.bfq.weight", "505")
    assert {each.controller for each in plan} == {"io"}


def test_huge_pages_are_limited_in_use_and_reserved_in_both_versions() -> None:
    asked = Resources(hugepages=(HugepageLimit("2MB", 4 << 20), HugepageLimit("1GB", -1)))
    v1 = [
        (each.file, each.value)
        for each in cgroups_v1.limits(asked, memory_and_swap_now=None)
        if each.controller == "hugetlb"
    ]
    assert v1 == [
        ("hugetlb.2MB.limit_in_bytes", "4194304"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
        ("hugetlb.1GB.limit_in_bytes", "-1"),
        ("hugetlb.1GB.rsvd.limit_in_bytes", "-1"),
    ]
    assert [(each.file, each.value) for each in cgroups_v2.limits(asked)] == [
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
        ("hugetlb.1GB.max", "max"),
        ("hugetlb.1GB.rsvd.max", "max"),
    ]


@pytest.mark.parametrize(
    ("file", "there", "value", "before"),
    [
        ("hugetlb.2MB.max", "max\n", "4096", "max"),
        ("cpuset.cpus", "\n", "0", "\n"),
        ("io.max", "8:0 rbps=1 wbps=max\n8:16 rbps=2\n", "8:16 rbps=9", "8:16 rbps=2"),
        ("io.max", "8:160 rbps=1\n", "8:16 rbps=9", "8:16 rbps=max"),
        ("blkio.throttle.read_bps_device", "8:0 5\n", "8:0 9", "8:0 5"),
        ("blkio.throttle.read_bps_device", "", "8:0 9", "8:0 0"),
    ],
)
def test_what_would_put_a_limit_back_is_of_one_disk(
    tmp_path: Path, file: str, there: str, value: str, before: str
) -> None:
    (tmp_path / file).write_text(there)

    assert before == as_it_is(str(tmp_path), Limit("limit", "", file, value))


def test_of_the_two_names_of_one_controller_that_is_written_which_is_mounted() -> None:
    hybrid = Cgroup("x", (Member(1, frozenset({"blkio"}), "/b"), Member(2, frozenset(), "/u")))
    unified = Cgroup("x", (Member(2, frozenset(), "/u"),))

    assert {each.controller for each in hybrid._limits(IO)} == {"blkio"}
    assert {each.controller for each in unified._limits(IO)} == {"io"}


@pytest.mark.parametrize(("weight", "converted"), [(10, 1), (100, 910), (1000, 10000)])
def test_the_weight_of_block_io_becomes_that_of_v2(weight: int, converted: int) -> None:
    assert cgroups_v2.io_weight(weight) == converted


@pytest.mark.parametrize(
    ("there", "bfq", "cost", "written"),
    [
        (("io.weight",), False, True, ("io.weight", "5000")),
        (("io.bfq.weight",), True, False, ("io.bfq.weight", "505")),
        (("io.weight", "io.bfq.weight"), True, True, ("io.weight", "5000")),
        (("io.weight", "io.bfq.weight"), True, False, ("io.bfq.weight", "505")),
        ((), False, False, ("io.weight", "5000")),  # which is then said to be missing
    ],
)
def test_the_weight_of_block_io_goes_where_somebody_looks_at_it(
    tmp_path: Path, there: tuple[str, ...], bfq: bool, cost: bool, written: tuple[str, str]
) -> None:
    [limit] = cgroups_v2.limits(Resources(io_weight=505))
    for name in there:
        (tmp_path / name).touch()

    found = cgroups_disks.chosen(str(tmp_path), limit, Sharing(bfq, cost))

    assert (found.file, found.value) == written


@pytest.mark.parametrize("there", ["io.weight", "io.bfq.weight"])
def test_a_weight_that_nobody_would_look_at_is_refused(tmp_path: Path, there: str) -> None:
    [limit] = cgroups_v2.limits(Resources(io_weight=505))
    (tmp_path / there).touch()

    with pytest.raises(MissingFeature, match="none of its disks is scheduled by weight"):
        cgroups_disks.chosen(str(tmp_path), limit, Sharing(bfq=False, cost=False))


def test_the_cost_model_is_looked_for_above_the_cgroup(tmp_path: Path) -> None:
    inner = tmp_path / "pymigrate/host/web"
    inner.mkdir(parents=True)
    (tmp_path / "io.cost.qos").write_text("254:0 enable=1 ctrl=auto\n")

    assert Sharing.here(str(inner)).cost
    (tmp_path / "io.cost.qos").write_text("254:0 enable=0 ctrl=auto\n")
    assert not Sharing.here(str(inner)).cost


def test_no_limits_are_no_writes_but_the_usual_devices() -> None:
    assert cgroups_v2.limits(Resources()) == ()
    plan = cgroups_v1.limits(Resources(), memory_and_swap_now=None)
    assert {each.controller for each in plan} == {"devices"}
    assert (plan[0].file, plan[0].value) == ("devices.deny", "a")
    assert "c 1:3 rwm" in [each.value for each in plan]


def test_unlimited_is_said_in_each_version_own_way() -> None:
    free = Resources(memory_limit=-1, memory_swap=-1, cpu_quota_us=-1, pids_limit=-1)

    v1 = [
        each.value
        for each in cgroups_v1.limits(free, memory_and_swap_now=5)
        if each.controller != "devices"
    ]
    v2 = [each.value for each in cgroups_v2.limits(free)]
    assert v1 == ["-1", "-1", "-1", "max"]
    assert v2 == ["max", "max", "max", "max"]


@pytest.mark.parametrize(
    ("now", "first"),
    [
        (1 << 62, "memory.limit_in_bytes"),  # lowered: memory may not exceed both together
        (1 << 20, "memory.memsw.limit_in_bytes"),  # raised
    ],
)
def test_v1_sets_memory_and_swap_in_the_order_that_the_kernel_takes(now: int, first: str) -> None:
    plan = cgroups_v1.limits(
        Resources(memory_limit=8 << 20, memory_swap=9 << 20), memory_and_swap_now=now
    )

    assert plan[0].file == first


@pytest.mark.parametrize(("weight", "shares"), [(1, 10), (39, 399), (100, 1024), (10_000, 102_400)])
def test_weights_become_shares_in_the_scheduler_own_proportion(weight: int, shares: int) -> None:
    assert cgroups_v1.shares(weight) == shares


def test_device_rules_are_written_as_v1_reads_them() -> None:
    rules = (DeviceRule(False), DeviceRule(True, "c", 10, None, "rw"), DeviceRule(True, "b", 8, 1))
    plan = cgroups_v1.limits(Resources(devices=rules), memory_and_swap_now=None)

    assert [(each.file, each.value) for each in plan] == [
        ("devices.deny", "a"),
        ("devices.allow", "c 10:* rw"),
        ("devices.allow", "b 8:1 rwm"),
    ]


@pytest.mark.parametrize("name", ["", "/web1", "../x", "a/../b", "a//b", "web1\n", "-x", ".hidden"])
def test_names_that_could_leave_the_tree_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a name"):
        Cgroup(name, (Member(2, frozenset(), "/cg"),))


def test_a_document_brings_the_same_paths_back() -> None:
    cgroup = Cgroup.named("0123456789ab/web1", detect(V1 + UNIFIED, SELF_V1 + "0::/\n"))
    again = Cgroup.from_document(cgroup.to_document())

    assert again.members == cgroup.members
    assert again.name == cgroup.name
    assert again.freezer_path == "/sys/fs/cgroup/unified/pymigrate/0123456789ab/web1"
    assert again.freezer_version == 2


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": "x", "members": "no"},
        {"name": "x", "members": [{"version": 3, "controllers": [], "base": "/cg"}]},
        {"name": "x", "members": [{"version": 2, "controllers": [], "base": "cg"}]},
        {"name": "x", "members": [{"version": 2, "controllers": [], "base": "/cg/../etc"}]},
    ],
)
def test_a_wrong_document_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Cgroup.from_document(document)


def test_the_freezer_is_joined_last() -> None:
    member = Cgroup.named(
        "h/n",
        detect(
            V1 + "36 31 0:33 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n",
            "5:freezer:/\n" + SELF_V1,
        ),
    ).members[-1]

    assert member.controllers == {"freezer"}


def test_a_list_of_processes_survives_one_that_is_gone() -> None:
    assert describe(frozenset({2**22 - 1})).startswith("4194303 (")
    assert describe(frozenset()) == "nothing"


def test_a_deadline_passes_and_never_goes_below_nothing() -> None:
    deadline = Deadline(0)

    assert deadline.passed
    assert deadline.left == 0
    deadline.back_off(50)


@pytest.mark.parametrize("version", [1, 2])
def test_a_cpu_quota_is_changed_and_put_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    fs = Cgroupfs(tmp_path, monkeypatch)
    cgroup = Cgroup.named(
        "h/c", fs.mount_v1("cpu", "freezer") if version == 1 else fs.mount_v2("cpu")
    )
    cgroup.create()
    before = CpuQuota(50_000, 100_000)
    cgroup.set_cpu_quota(before)
    assert before == cgroup.cpu_quota()
    cgroup.set_cpu_quota(CpuQuota(1000, 100_000))
    assert CpuQuota(1000, 100_000) == cgroup.cpu_quota()
    again = CpuQuota.from_document(before.to_document())
    assert again is not None
    cgroup.set_cpu_quota(again)
    assert before == cgroup.cpu_quota()

    cgroup.set_cpu_quota(CpuQuota(-1, 100_000))
    assert CpuQuota(-1, 100_000) == cgroup.cpu_quota()
    cgroup.remove()
    cgroup.set_cpu_quota(again)  # nothing is there any more


def test_without_a_cpu_controller_there_is_no_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = Cgroup.named("h/c", Cgroupfs(tmp_path, monkeypatch).mount_v2())
    cgroup.create()

    assert cgroup.cpu_quota() is None
    assert CpuQuota.from_document(None) is None
