"""glibc keeps to a baseline: what its loader says that it uses, and what the kernel saw in use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pymigrate.migrate import cpu, facts

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64's levels")

# The loader of this system, and that of the newer Debian which came with its CRIU (provision).
LOADERS = [
    path
    for path in (
        Path("/lib64/ld-linux-x86-64.so.2"),
        Path("/opt/pymigrate/criu/lib/ld-linux-x86-64.so.2"),
    )
    if path.exists()
]
# Bits of CPUID by glibc's index and register, of what its functions choose by.
BITS = {
    (0, 2): {9: "ssse3", 12: "fma", 19: "sse4_1", 20: "sse4_2", 22: "movbe", 23: "popcnt",
             26: "xsave", 28: "avx", 29: "f16c"},
    (1, 1): {3: "bmi1", 5: "avx2", 8: "bmi2", 11: "rtm", 16: "avx512f", 17: "avx512dq",
             28: "avx512cd", 30: "avx512bw", 31: "avx512vl"},
    (2, 2): {5: "abm", 16: "fma4"},
    (3, 0): {1: "xsavec"},
}  # fmt: skip
HERE = facts.cpu_features(Path("/proc/cpuinfo").read_text())
ACTIVE = re.compile(r"cpu_features\.features\[0x(\w+)\]\.active\[0x(\w+)\]=0x(\w+)")


def active(loader: Path, variables: Mapping[str, str]) -> set[str]:
    """Ask a loader what it takes the CPU to have."""
    said = subprocess.run(
        [loader, "--list-diagnostics"], env=variables, capture_output=True, text=True, check=True
    ).stdout
    found = set()
    for numbers in ACTIVE.findall(said):
        index, register, value = (int(number, 16) for number in numbers)
        bits = BITS.get((index, register), {})
        found |= {name for bit, name in bits.items() if value >> bit & 1}
    return found


@pytest.mark.parametrize("loader", LOADERS, ids=str)
@pytest.mark.parametrize("name", cpu.BASELINES)
def test_loader_uses_the_baseline_and_nothing_else(loader: Path, name: str) -> None:
    baseline = cpu.BASELINES[name]
    known = {feature for names in BITS.values() for feature in names.values()}
    free = active(loader, {})
    assert {"ssse3", "popcnt"} <= free & HERE, "its diagnostics are read"

    held = active(loader, baseline.variables)

    assert held == free & baseline.features
    assert held == known & baseline.features & HERE


@pytest.mark.parametrize("loader", LOADERS, ids=str)
@pytest.mark.parametrize("name", cpu.BASELINES)
def test_memcpy_is_not_told_to_prefer_avx_where_there_is_none(loader: Path, name: str) -> None:
    """Seen: a Redis with AVX off died in memcpy on a CPU without, by this preference alone."""
    baseline = cpu.BASELINES[name]
    said = subprocess.run(
        [loader, "--list-diagnostics"],
        env=baseline.variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    [preferred] = re.findall(r"preferred\.AVX_Fast_Unaligned_Load=0x(\d)", said)

    assert "avx" in baseline.features or "0" == preferred


@pytest.mark.parametrize("loader", LOADERS, ids=str)
def test_loader_looks_for_no_libraries_above_the_baseline(loader: Path) -> None:
    for name, baseline in cpu.BASELINES.items():
        said = subprocess.run(
            [loader, "--help"], env=baseline.variables, capture_output=True, text=True, check=True
        ).stdout
        searched = re.findall(r"(x86-64-v\d) \(supported, searched\)", said)
        assert searched[:1] == [cpu.highest(baseline.features & HERE).name], name  # type: ignore[union-attr]


# Says whether the kernel saw AVX-512 in its use since it began: what it says is inherited.
COPIES = """
import time
began = time.monotonic()
def elapsed():
    word = open("/proc/self/arch_status").read().split()[1]
    return int(word) / 1000, time.monotonic() - began
data = bytes(range(256)) * 40000
while True:
    copy = data[1:]
    copy.find(b"zzz")
    ago, age = elapsed()
    if 0 <= ago < age - 0.1 or age > 1.5:
        break
print("used" if 0 <= ago < age - 0.1 else "unused")
"""


@pytest.mark.skipif("avx512vl" not in HERE, reason="this CPU has no AVX-512")
@pytest.mark.parametrize(("name", "expected"), [("", "used"), ("x86-64-v3", "unused")])
def test_kernel_sees_no_avx512_in_use_below_a_baseline(name: str, expected: str) -> None:
    variables = cpu.BASELINES[name].variables if name else {}
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", COPIES],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert f"{expected}\n" == said
