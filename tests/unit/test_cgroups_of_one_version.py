"""Limits that not every version of cgroups has, or that must be written in a certain order."""

from __future__ import annotations

import errno
import io
from collections.abc import Sequence

import pytest

from pymigrate.runtime import cgroups_files, cgroups_v1, cgroups_v2
from pymigrate.runtime.cgroups import Cgroup, Member
from pymigrate.runtime.cgroups_files import Limit
from pymigrate.runtime.errors import MissingFeature
from pymigrate.runtime.settings import Resources
from pymigrate.runtime.values import replace

TIMES = Resources(cpu_quota_us=50_000, cpu_burst_us=20_000, cpu_weight=200)


@pytest.mark.parametrize(
    ("idle", "v1", "v2"),
    [
        (None, ["cpu.shares 2048"], ["cpu.weight 200"]),
        (True, ["cpu.shares 2048", "cpu.idle 1"], ["cpu.weight 200", "cpu.idle 1"]),
        (False, ["cpu.idle 0", "cpu.shares 2048"], ["cpu.idle 0", "cpu.weight 200"]),
    ],
)
def test_burst_and_idleness_are_written_in_an_order_that_the_kernel_takes(
    idle: bool | None, v1: list[str], v2: list[str]
) -> None:
    asked = replace(TIMES, cpu_idle=idle)

    def written(plan: Sequence[Limit]) -> list[str]:
        return [f"{each.file} {each.value}" for each in plan if each.controller == "cpu"]

    burst = "cpu.cfs_burst_us"
    assert written(cgroups_v1.limits(asked, memory_and_swap_now=None)) == [
        *(f"{burst} 0", "cpu.cfs_quota_us 50000", f"{burst} 20000", *v1)
    ]
    burst = "cpu.max.burst"
    assert written(cgroups_v2.limits(asked)) == [
        *(f"{burst} 0", "cpu.max 50000", f"{burst} 20000", *v2)
    ]


HYBRID = Cgroup("x", (Member(1, frozenset({"memory", "cpu"}), "/m"), Member(2, frozenset(), "/u")))
V2_ALONE = Cgroup("x", (Member(2, frozenset(), "/u"),))
V1_ALONE = Cgroup("x", (Member(1, frozenset({"memory", "cpu", "devices"}), "/m"),))


@pytest.mark.parametrize(
    ("asked", "file", "value"),
    [
        (Resources(memory_swappiness=0), "memory.swappiness", "0"),
        (Resources(oom_kill_disabled=True), "memory.oom_control", "1"),
        (Resources(cpu_rt_runtime_us=9), "cpu.rt_runtime_us", "9"),
        (Resources(cpu_rt_period_us=99), "cpu.rt_period_us", "99"),
    ],
)
def test_what_v1_alone_has_is_refused_where_its_controller_is_of_v2(
    asked: Resources, file: str, value: str
) -> None:
    for each in (HYBRID, V1_ALONE):
        assert (file, value) in [(limit.file, limit.value) for limit in each._limits(asked)]
    with pytest.raises(MissingFeature, match="cgroup v2 has none"):
        V2_ALONE._limits(asked)


def test_what_v2_is_anyhow_can_be_asked_of_it() -> None:
    assert [] == V2_ALONE._limits(Resources(oom_kill_disabled=False, cpu_rt_runtime_us=0))


def test_limits_by_the_names_of_v2s_files_are_written_line_by_line_and_refused_by_v1() -> None:
    asked = Resources(unified=(("memory.high", "max"), ("io.max", "8:0 rbps=1\n8:16 rbps=2")))

    assert [(each.controller, each.file, each.value) for each in V2_ALONE._limits(asked)] == [
        ("memory", "memory.high", "max"),
        ("io", "io.max", "8:0 rbps=1"),
        ("io", "io.max", "8:16 rbps=2"),
    ]
    for each in (HYBRID, V1_ALONE):
        with pytest.raises(MissingFeature, match="its memory controller is of cgroup v1"):
            each._limits(asked)


class _Removed(io.StringIO):
    """A file of a cgroup that is removed once it is open."""

    def read(self, size: int | None = -1, /) -> str:
        raise OSError(errno.ENODEV, "No such device")


def test_a_cgroup_that_is_removed_while_it_is_read_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builtins.open", lambda *_, **__: _Removed())

    with pytest.raises(FileNotFoundError, match="was removed"):
        cgroups_files.read("/sys/fs/cgroup/gone", "memory.current")
