"""What of a CPU a container may use: all of the one it started on, or a baseline that others have.

A program asks its CPU once, at its start, and goes on to use what it found; moved to a lesser CPU,
it dies by SIGILL. The C library of most programs, glibc, can be told to see less of a CPU than
there is; so a container that was started with a baseline can go wherever the baseline is.

The baselines are the levels of the x86-64 psABI (its section "Microarchitecture levels"), in the
names of /proc/cpuinfo. What glibc takes in GLIBC_TUNABLES, and what it then leaves off, was looked
at in 2.36, 2.41 and 2.43: see docs/measured.md. Others that ask the CPU themselves (OpenSSL, Go,
numpy, Java) have settings of their own, and are not bound by this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime.errors import HostError, UsageError

TUNABLES = "GLIBC_TUNABLES"
HWCAPS = "glibc.cpu.hwcaps"
BIND_NOW = "LD_BIND_NOW"
_NOTHING = "nothing was made"


@dataclass(frozen=True)
class Baseline:
    """A level of CPUs: what programs may use, as in /proc/cpuinfo, and what glibc must not."""

    name: str
    features: frozenset[str]
    masked: tuple[str, ...]

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment that holds glibc to it.

        Without lazy binding, since that saves the CPU's registers in a size and by an instruction
        (XSAVE, XSAVEC) that were chosen when the program began: on a CPU with larger registers
        XSAVE would write over the program's stack.
        """
        words = ",".join(f"-{name}" for name in self.masked)
        return {TUNABLES: f"{HWCAPS}={words}", BIND_NOW: "1"}


_V2 = frozenset({"mmx", "sse", "sse2", "cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_ABOVE_V3 = (
    *("AVX512F", "AVX512VL", "AVX512BW", "AVX512DQ", "AVX512CD", "AVX512ER", "AVX512PF"),
    *("XSAVEC", "RTM", "FMA4"),
)
_ABOVE_V2 = (
    *_ABOVE_V3,
    *("AVX", "AVX2", "BMI1", "BMI2", "FMA", "LZCNT", "MOVBE", "XSAVE", "OSXSAVE"),
    "AVX_Fast_Unaligned_Load",  # a preference, by which memcpy takes AVX even where that is off
)

BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline("x86-64-v2", _V2, _ABOVE_V2),
        Baseline("x86-64-v3", _V3, _ABOVE_V3),
    )
}
"""By name, the least first."""


@dataclass(frozen=True)
class Tie:
    """What ties a container to its CPU: what was seen, and what to do."""

    seen: str
    remedy: str


def highest(features: Collection[str]) -> Baseline | None:
    """Return the highest baseline that a CPU with these features has."""
    fitting = [each for each in BASELINES.values() if each.features <= set(features)]
    return fitting[-1] if fitting else None


def check(name: str, features: Collection[str], machine: str) -> Baseline:
    """Return the baseline of this name, for a container that is to start here.

    Raises:
        UsageError: there is none of this name.
        HostError: this CPU has less than that.

    """
    baseline = BASELINES.get(name)
    if baseline is None or machine != "x86_64":
        raise UsageError(
            f"--cpu-baseline {name}: unknown on {machine}; {_NOTHING}",
            hint="on x86_64 there are: " + ", ".join(BASELINES),
        )
    lacking = sorted(baseline.features - set(features))
    if lacking:
        raise HostError(
            f"--cpu-baseline {name}: this CPU lacks {', '.join(lacking)}; {_NOTHING}",
            hint="choose a lower baseline, or none",
        )
    return baseline


def bound(environment: Mapping[str, str], baseline: Baseline) -> dict[str, str]:
    """Return a container's environment with what holds glibc to the baseline.

    Raises UsageError if it already says what glibc is to see of the CPU.
    """
    ours = baseline.variables
    given = environment.get(TUNABLES, "")
    if f"{HWCAPS}=" in given:
        raise UsageError(
            f"{TUNABLES} sets {HWCAPS}, and so does --cpu-baseline; {_NOTHING}",
            hint="leave one of them out",
        )
    if given:
        ours[TUNABLES] = f"{given}:{ours[TUNABLES]}"
    return {**environment, **ours}


def ties(name: str | None, features: Collection[str], pids: Collection[int]) -> list[Tie]:
    """Say what ties a running container to this CPU; `name` is its baseline's."""
    if os.uname().machine != "x86_64":
        return []
    baseline = BASELINES.get(name or "")
    if baseline is None:
        high = highest(features)
        more = sorted(set(features) - (high.features if high else set()))
        if not more:
            return []
        rest = f" and {len(more) - 6} more" if len(more) > 6 else ""
        level = high.name if high else "x86-64-v2"
        return [
            Tie(
                "its programs may use all that this CPU has, so that it can only go to one with "
                f"{', '.join(more[:6])}{rest}",
                f"run it with --cpu-baseline {level} if it may have to go to a lesser one",
            )
        ]
    return [
        Tie(
            f"process {pid} has used AVX-512 in spite of --cpu-baseline {baseline.name}",
            "it does not choose by glibc: see whether it has a setting of its own",
        )
        for pid in pids
        if used_avx512(pid)
    ]


def used_avx512(pid: int) -> bool:
    """Say whether the kernel has seen AVX-512 in use by a process; see /proc/PID/arch_status.

    What it says is inherited by fork and exec, so the first second of a process does not count.
    """
    try:
        status = Path(f"/proc/{pid}/arch_status").read_text(encoding="ascii")
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended, or the kernel is older than 5.3
    words = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    elapsed = int(words.get("AVX512_elapsed_ms", "-1"))
    ticks = int(stat.rpartition(")")[2].split()[19])  # field 22 of proc_pid_stat(5)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return 0 <= elapsed < (age - 1) * 1000
