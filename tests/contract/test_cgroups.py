"""What a cgroup promises, on v1, v2 and both, on a directory with the kernel's rules."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pymigrate.runtime import cgroups_devices, cgroups_v2
from pymigrate.runtime.cgroups import TOP, Cgroup
from pymigrate.runtime.cgroups_layout import Layout
from pymigrate.runtime.errors import ContainerError, HostError, MissingFeature
from pymigrate.runtime.spec import Resources
from tests.fakes.cgroupfs import Cgroupfs

V1 = ("cpu", "cpuset", "devices", "freezer", "memory", "pids")
V2 = ("cpu", "cpuset", "memory", "pids")
KINDS = ("v1", "v2", "hybrid")


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroupfs:
    return Cgroupfs(tmp_path, monkeypatch)


@pytest.fixture(params=KINDS)
def layout(request: pytest.FixtureRequest, fs: Cgroupfs) -> Layout:
    return {
        "v1": lambda: fs.mount_v1(*V1),
        "v2": lambda: fs.mount_v2(*V2),
        "hybrid": lambda: Layout(fs.mount_v1(*V1).hierarchies + fs.mount_v2().hierarchies),
    }[request.param]()


@pytest.fixture(autouse=True)
def confined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect where device programs would be attached: these are no cgroups."""
    directories: list[str] = []

    def confine(directory: str, code: bytes) -> None:
        directories.append(directory)

    monkeypatch.setattr(cgroups_devices, "confine", confine)
    return directories


@pytest.fixture
def cgroup(layout: Layout) -> Cgroup:
    return Cgroup.named("0123456789ab/web1", layout)


def tops(fs: Cgroupfs) -> list[Path]:
    return sorted(fs.root.glob(f"*/{TOP}"))


def test_create_twice_is_create_once(fs: Cgroupfs, cgroup: Cgroup) -> None:
    cgroup.create()
    cgroup.create()

    assert cgroup.exists()
    assert all(Path(cgroup.path(each)).is_dir() for each in cgroup.members)


def test_remove_leaves_nothing_and_may_be_repeated(fs: Cgroupfs, cgroup: Cgroup) -> None:
    cgroup.create()
    cgroup.remove()
    cgroup.remove()

    assert not cgroup.exists()
    assert tops(fs) == []


def test_remove_leaves_other_containers_alone(fs: Cgroupfs, layout: Layout) -> None:
    one, other = Cgroup.named("h/one", layout), Cgroup.named("h/other", layout)
    one.create()
    other.create()
    one.remove()

    assert other.exists()
    assert len(tops(fs)) == len(other.members)


def test_remove_takes_cgroups_that_the_container_made(fs: Cgroupfs, cgroup: Cgroup) -> None:
    cgroup.create()
    for member in cgroup.members:
        fs.mkdir(f"{cgroup.path(member)}/system.slice")
        fs.mkdir(f"{cgroup.path(member)}/system.slice/cron.service")
    cgroup.remove()

    assert tops(fs) == []


def test_remove_with_processes_names_them_and_kills_none(fs: Cgroupfs, cgroup: Cgroup) -> None:
    cgroup.create()
    fs.pid = 2**22 - 1  # no such process
    cgroup.join()

    with pytest.raises(ContainerError, match="4194303"):
        cgroup.remove(timeout=0.01)
    assert fs.processes(cgroup.freezer_path) == [fs.pid]


def test_join_puts_the_caller_into_every_hierarchy(fs: Cgroupfs, cgroup: Cgroup) -> None:
    cgroup.create()
    cgroup.join()

    assert [fs.processes(cgroup.path(each)) for each in cgroup.members] == [[fs.pid]] * len(
        cgroup.members
    )
    assert cgroup.pids() == (fs.pid,)


def test_limits_are_set_and_can_be_lowered_and_raised(fs: Cgroupfs, cgroup: Cgroup) -> None:
    cgroup.create()
    for size in (64 << 20, 16 << 20, 128 << 20):
        cgroup.apply(
            Resources(memory_limit=size, memory_swap=size + 4096, cpu_weight=50, pids_limit=9)
        )
        file = next(fs.root.glob(f"*/{TOP}/*/web1/memory.limit_in_bytes"), None) or next(
            fs.root.glob(f"*/{TOP}/*/web1/memory.max")
        )
        assert file.read_text() == str(size)


def test_devices_are_left_to_version_1_where_it_has_them(
    cgroup: Cgroup, confined: list[str]
) -> None:
    cgroup.create()
    cgroup.apply(Resources())
    has_version_1 = any("devices" in each.controllers for each in cgroup.members)
    assert ([] if has_version_1 else [cgroup.freezer_path]) == confined


def test_swap_that_is_not_accounted_is_an_error_and_changes_nothing(
    fs: Cgroupfs, cgroup: Cgroup
) -> None:
    cgroup.create()
    for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        for file in fs.root.glob(f"*/{TOP}/*/web1/{name}"):
            file.unlink()
    fs.written.clear()

    with pytest.raises(MissingFeature, match="swap") as caught:
        cgroup.apply(Resources(memory_limit=1 << 20, memory_swap=2 << 20, pids_limit=5))
    assert "swap" in caught.value.hint
    assert fs.written == []


def test_a_value_that_the_kernel_refuses_is_named(fs: Cgroupfs, cgroup: Cgroup) -> None:
    cgroup.create()
    fs.fail_on = "pids.max"

    with pytest.raises(HostError, match="limit of processes 5"):
        cgroup.apply(Resources(pids_limit=5))


def test_freeze_and_thaw(cgroup: Cgroup) -> None:
    cgroup.create()
    cgroup.freeze(timeout=1)
    cgroup.freeze(timeout=1)
    assert cgroup.frozen()

    cgroup.thaw()
    cgroup.thaw()
    assert not cgroup.frozen()


def test_a_freeze_that_does_not_come_about_names_who_runs_and_goes_on(
    fs: Cgroupfs, cgroup: Cgroup
) -> None:
    cgroup.create()
    fs.pid = os.getpid()
    cgroup.join()
    fs.stuck = True
    begin = time.monotonic()

    with pytest.raises(ContainerError, match=f"{fs.pid} .*, state R") as caught:
        cgroup.freeze(timeout=0.05)
    assert 0.05 <= time.monotonic() - begin < 1
    assert "thaw" in caught.value.hint
    assert not cgroup.frozen()
    fs.stuck = False
    cgroup.freeze(timeout=1)


def test_thaw_without_a_cgroup_is_nothing(cgroup: Cgroup) -> None:
    cgroup.thaw()
    cgroup.kill()


def test_a_failure_in_the_middle_of_create_leaves_nothing(fs: Cgroupfs, cgroup: Cgroup) -> None:
    real, last = fs.mkdir, len(cgroup.members) - 1

    def last_one_fails(path: str, mode: int = 0o777) -> None:
        if path.endswith("web1") and len(list(fs.root.glob("*/pymigrate/*/web1"))) == last:
            raise OSError(28, "No space left on device", path)
        real(path, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.mkdir", last_one_fails)
        with pytest.raises(HostError, match="No space left"):
            cgroup.create()
    assert tops(fs) == []


def test_a_parent_that_is_removed_meanwhile_is_made_again(fs: Cgroupfs, cgroup: Cgroup) -> None:
    real, calls = fs.mkdir, []

    def once_too_late(path: str, mode: int = 0o777) -> None:
        calls.append(path)
        if path.endswith("web1") and len(calls) == 3:
            fs.rmdir(str(Path(path).parent))
            raise FileNotFoundError(2, "No such file or directory", path)
        real(path, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.mkdir", once_too_late)
        cgroup.create()
    assert cgroup.exists()


def test_stats_and_oom_kills(cgroup: Cgroup) -> None:
    cgroup.create()

    assert cgroup.stats().memory_bytes == 4096
    assert cgroup.stats().processes == 0
    assert cgroup.oom_kills() == 0


def test_without_a_controller_the_limit_is_named(fs: Cgroupfs) -> None:
    cgroup = Cgroup.named("h/n", fs.mount_v1("freezer", "pids"))
    cgroup.create()
    cgroup.apply(Resources(pids_limit=5))

    with pytest.raises(MissingFeature, match="memory limit"):
        cgroup.apply(Resources(memory_limit=1 << 20))


class TestPlaceInV2:
    """Controllers cannot be enabled in a cgroup that has processes, the root excepted."""

    def test_a_caller_in_the_root_has_containers_there(self, fs: Cgroupfs) -> None:
        layout = fs.mount_v2(*V2)
        fs.write(layout.hierarchies[0].own, "cgroup.procs", "1")

        cgroup = Cgroup.named("h/n", layout)
        assert cgroup.members[0].base == str(fs.root / "unified")

    def test_a_caller_in_a_session_has_containers_above_it(self, fs: Cgroupfs) -> None:
        root = fs.mount_v2(*V2).hierarchies[0].mount_point
        fs.write(root, "cgroup.subtree_control", "+memory")
        own = f"{root}/user.slice"
        fs.mkdir(own)
        fs.mkdir(f"{own}/session")
        fs.write(f"{own}/session", "cgroup.procs", "1")

        # user.slice has no processes but got only memory: the root can give all.
        assert cgroups_v2.nearest_parent(f"{own}/session", root) == root

    def test_a_delegated_subtree_is_used_when_it_can_give_as_much(self, fs: Cgroupfs) -> None:
        root = fs.mount_v2("memory").hierarchies[0].mount_point
        fs.write(root, "cgroup.subtree_control", "+memory")
        fs.mkdir(f"{root}/delegated")
        fs.mkdir(f"{root}/delegated/us")
        fs.write(f"{root}/delegated/us", "cgroup.procs", "1")

        assert cgroups_v2.nearest_parent(f"{root}/delegated/us", root) == f"{root}/delegated"

    @pytest.mark.parametrize(
        ("others", "place"), [(("memory",), "delegated"), ((), "")], ids=["with others", "alone"]
    )
    def test_huge_pages_are_no_reason_to_leave_what_was_delegated(
        self, fs: Cgroupfs, others: tuple[str, ...], place: str
    ) -> None:
        root = fs.mount_v2(*others, "hugetlb").hierarchies[0].mount_point
        for each in others:
            fs.write(root, "cgroup.subtree_control", f"+{each}")
        fs.mkdir(f"{root}/delegated")
        fs.mkdir(f"{root}/delegated/us")
        fs.write(f"{root}/delegated/us", "cgroup.procs", "1")

        found = cgroups_v2.nearest_parent(f"{root}/delegated/us", root)
        assert Path(found) == Path(root, place)

    def test_where_all_is_full_of_processes_limits_are_refused_and_the_rest_works(
        self, fs: Cgroupfs
    ) -> None:
        layout = fs.mount_v2(*V2)
        root = layout.hierarchies[0].own
        Path(root, "cgroup.type").write_text("domain")  # the root of a cgroup namespace
        fs.write(root, "cgroup.procs", "1")

        cgroup = Cgroup.named("h/n", layout)
        cgroup.create()
        cgroup.freeze(timeout=1)
        with pytest.raises(MissingFeature, match="memory limit"):
            cgroup.apply(Resources(memory_limit=1 << 20))
