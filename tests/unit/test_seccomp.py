"""Seccomp profiles: what they say for a machine and capabilities, and the BPF that comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pymigrate.runtime import capabilities, defaults, seccomp
from pymigrate.runtime.errors import MissingFeature, UsageError

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50001, 0x50026


def verdicts(granted: frozenset[str], machine: str = "x86_64") -> dict[str, set[int]]:
    decision = seccomp.decide(defaults.seccomp_profile(), granted, machine)
    found: dict[str, set[int]] = {}
    for rule in decision.rules:
        found.setdefault(rule.name, set()).add(rule.action)
    return found


def profile(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules), **more}


def rule(name: str, **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", **more}


def names(decision: seccomp.Decision) -> list[str]:
    return [each.name for each in decision.rules]


@pytest.mark.parametrize(
    ("more", "granted", "machine", "applies"),
    [
        ({}, set(), "x86_64", True),
        ({"includes": {"caps": ["CAP_BPF"]}}, set(), "x86_64", False),
        ({"includes": {"caps": ["CAP_BPF"]}}, {"CAP_BPF"}, "x86_64", True),
        ({"includes": {"caps": ["CAP_BPF", "CAP_KILL"]}}, {"CAP_BPF"}, "x86_64", False),
        ({"excludes": {"caps": ["CAP_BPF", "CAP_KILL"]}}, {"CAP_BPF"}, "x86_64", False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, {"CAP_KILL"}, "x86_64", True),
        ({"includes": {"arches": ["arm64"]}}, set(), "x86_64", False),
        ({"includes": {"arches": ["arm64"]}}, set(), "aarch64", True),
        ({"excludes": {"arches": ["s390x"]}}, set(), "s390x", False),
        ({"includes": {"minKernel": "4.8"}}, set(), "x86_64", True),
    ],
)
def test_a_rule_applies_by_capabilities_and_architecture(
    more: dict[str, Any], granted: set[str], machine: str, applies: bool
) -> None:
    decision = seccomp.decide(profile(rule("bpf", **more)), frozenset(granted), machine)
    assert (["bpf"] if applies else []) == names(decision)


def test_a_rule_that_repeats_the_default_is_left_out() -> None:
    decision = seccomp.decide(profile({"name": "bpf", "action": "SCMP_ACT_ERRNO"}), frozenset())
    assert () == decision.rules


def test_two_conditions_on_one_argument_mean_either() -> None:
    condition = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}
    decision = seccomp.decide(
        profile(rule("socket", args=[condition, condition | {"value": 2}])), frozenset()
    )
    assert [1, 2] == [each.comparisons[0].value for each in decision.rules]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "not a seccomp profile"),
        ({"defaultAction": "NO"}, "linux.seccomp.defaultAction: NO is not supported"),
        (profile(rule("bpf", action="SCMP_ACT_NOTIFY")), r"syscalls\[0\]: SCMP_ACT_NOTIFY"),
        (profile(rule("bpf", args=[{"index": 0}])), "not a seccomp profile"),
        (profile(flags=["X"]), "linux.seccomp.flags: X is not supported"),
        (profile("bpf"), "not a seccomp profile"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_profile_is_a_usage_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        seccomp.decide(given, frozenset())


def test_an_unknown_machine_is_said() -> None:
    with pytest.raises(MissingFeature, match="vax"):
        seccomp.decide(profile(), frozenset(), "vax")


def test_the_default_profile_never_says_two_things_of_one_call() -> None:
    everything = frozenset(capabilities.NAMES)
    for machine in ("x86_64", "aarch64", "s390x", "ppc64le", "riscv64"):
        for granted in (frozenset(), capabilities.DEFAULT, everything):
            for name, actions in verdicts(granted, machine).items():
                # socket is told apart by its arguments
                assert 1 == len(actions) or name == "socket", (machine, name)


def test_the_default_profile_denies_what_leads_out() -> None:
    found = verdicts(capabilities.DEFAULT)
    for name in ("mount", "setns", "unshare", "bpf", "kexec_load", "keyctl", "init_module",
                 "open_by_handle_at", "perf_event_open", "userfaultfd", "pivot_root"):  # fmt: skip
        assert {EPERM} == found[name], name
    assert {ENOSYS} == found.get("clone3", {ENOSYS})
    for name in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
        assert name not in found, name


def test_capabilities_open_what_belongs_to_them() -> None:
    found = verdicts(frozenset({"CAP_SYS_ADMIN", "CAP_SYS_TIME"}))
    for name in ("mount", "setns", "clone3", "bpf", "clock_settime", "syslog"):
        assert {ALLOW} == found[name], name
    assert {EPERM} == found["init_module"]


def test_the_default_profile_compiles_and_is_cached(tmp_path: Path) -> None:
    given = defaults.seccomp_profile()
    made = seccomp.program(given, capabilities.DEFAULT, tmp_path)
    assert made is not None
    assert 0 == len(made.code) % 8
    assert 100 < len(made.code) // 8 <= 4096
    (stored,) = tmp_path.iterdir()

    assert made == seccomp.program(given, capabilities.DEFAULT, tmp_path)
    assert made == seccomp.program(given, capabilities.DEFAULT)
    assert [stored] == list(tmp_path.iterdir())
    assert made != seccomp.program(given, frozenset({"CAP_SYS_ADMIN"}), tmp_path)


@pytest.mark.parametrize("damage", [b"", b"x" * 40, None])
def test_a_damaged_cache_is_compiled_anew(tmp_path: Path, damage: bytes | None) -> None:
    given = defaults.seccomp_profile()
    made = seccomp.program(given, frozenset(), tmp_path)
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:-1] if damage is None else damage)

    assert made == seccomp.program(given, frozenset(), tmp_path)


def test_no_profile_is_no_program() -> None:
    assert seccomp.program(None, frozenset()) is None
