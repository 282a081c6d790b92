"""Baselines: what they ask of a CPU, what they tell glibc, and what `check` says without one."""

from __future__ import annotations

import os

import pytest

from pymigrate.migrate import cpu
from pymigrate.migrate.facts import PROGRAM_VISIBLE
from pymigrate.runtime.errors import HostError, UsageError

V3 = cpu.BASELINES["x86-64-v3"]
NEHALEM = cpu.BASELINES["x86-64-v2"].features
x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64's levels")


def test_each_baseline_holds_all_of_the_lesser_ones_and_only_what_hosts_report() -> None:
    least, *higher = cpu.BASELINES.values()

    assert least.features <= PROGRAM_VISIBLE
    for each in higher:
        assert least.features < each.features <= PROGRAM_VISIBLE
        assert set(least.masked) > set(each.masked)
        least = each


def test_the_highest_that_a_cpu_has_is_found() -> None:
    assert cpu.highest(V3.features | {"avx512f"}) == V3
    assert cpu.highest(V3.features - {"bmi2"}) == cpu.BASELINES["x86-64-v2"]
    assert cpu.highest({"sse2"}) is None


def test_a_baseline_above_this_cpu_is_refused() -> None:
    with pytest.raises(HostError, match="lacks abm, avx"):
        cpu.check("x86-64-v3", NEHALEM, "x86_64")


@pytest.mark.parametrize(("name", "machine"), [("v3", "x86_64"), ("x86-64-v3", "aarch64")])
def test_an_unknown_baseline_is_refused(name: str, machine: str) -> None:
    with pytest.raises(UsageError, match="unknown on"):
        cpu.check(name, V3.features, machine)


def test_other_tunables_are_kept_and_a_second_mask_is_refused() -> None:
    given = {"GLIBC_TUNABLES": "glibc.malloc.check=1", "LANG": "C"}

    env = cpu.bound(given, V3)

    assert env["GLIBC_TUNABLES"].startswith("glibc.malloc.check=1:glibc.cpu.hwcaps=-AVX512F,")
    assert ("C", "1") == (env["LANG"], env["LD_BIND_NOW"])
    with pytest.raises(UsageError, match=r"sets glibc\.cpu\.hwcaps"):
        cpu.bound({"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"}, V3)


@x86
def test_a_container_without_a_baseline_is_tied_to_what_its_cpu_has_beyond_one() -> None:
    (tie,) = cpu.ties(None, V3.features | {"avx512f"}, [])

    assert "avx512f" in tie.seen
    assert "--cpu-baseline x86-64-v3" in tie.remedy
    assert [] == cpu.ties("x86-64-v3", V3.features | {"avx512f"}, [])
    assert [] == cpu.ties(None, V3.features, [])
