"""Device rules as a BPF program: it decides as the rules read from top to bottom do."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime import cgroups_devices as devices
from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import HostError, MissingFeature
from pymigrate.runtime.settings import DeviceRule

LETTERS = {"m": 1, "r": 2, "w": 4}
NUMBERS = st.none() | st.integers(-1, 3)
RULES = st.builds(
    DeviceRule,
    st.booleans(),
    st.sampled_from("abc"),
    NUMBERS,
    NUMBERS,
    st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
)


def allowed(rules: Sequence[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    """Read the rules from top to bottom, letter by letter: the last that fits decides."""
    for letter in access:
        decision = False
        for rule in rules:
            fits = rule.type in ("a", kind) and letter in rule.access
            for number, wanted in ((rule.major, major), (rule.minor, minor)):
                fits = fits and (number is None or number < 0 or number == wanted)
            if fits:
                decision = rule.allow
        if not decision:
            return False
    return True


def run(code: bytes, context: bytes) -> int:
    """Interpret a program as the kernel does: see Documentation/bpf/standardization."""
    registers = [0] * 11
    instructions = list(struct.iter_unpack("=BBhi", code))
    at = 0
    while True:
        operation, both, offset, value = instructions[at]
        to, source = both & 15, both >> 4
        at += 1
        match operation:
            case 0x61:
                assert source == 1
                (registers[to],) = struct.unpack_from("=I", context, offset)
            case 0x57:
                registers[to] &= value
            case 0x77:
                registers[to] >>= value
            case 0xB7:
                registers[to] = value
            case 0x05:
                at += offset
            case 0x15:
                at += offset if registers[to] == value else 0
            case 0x45:
                at += offset if registers[to] & value else 0
            case 0x55:
                at += offset if registers[to] != value else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(operation)


def decides(rules: Sequence[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    bits = sum(LETTERS[letter] for letter in access)
    context = struct.pack("=3I", bits << 16 | {"b": 1, "c": 2}[kind], major, minor)
    return run(devices.program(rules), context) == 1


@given(
    st.lists(RULES, max_size=6),
    st.sampled_from("bc"),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["r", "w", "m", "rw", "rwm"]),
)
def test_the_program_decides_as_the_rules_do(
    rules: list[DeviceRule], kind: str, major: int, minor: int, access: str
) -> None:
    expected = allowed(rules, kind, major, minor, access)
    assert expected == decides(rules, kind, major, minor, access)


@pytest.mark.parametrize(
    ("device", "access", "answer"),
    [
        (("c", 1, 3), "rw", True),  # null
        (("c", 136, 7), "rw", True),  # a pseudo terminal
        (("c", 1, 11), "r", False),  # kmsg
        (("b", 8, 0), "m", True),
        (("b", 8, 0), "r", False),
        (("b", 1, 3), "r", False),
    ],
)
def test_the_usual_rules(device: tuple[str, int, int], access: str, answer: bool) -> None:
    assert answer == decides(devices.DEFAULT, *device, access)


def test_a_program_that_is_given_nothing_denies() -> None:
    assert not decides((), "c", 1, 3, "r")
    # Loads of the three words, then the end: two jumps' worth of answers.
    assert 11 * 8 == len(devices.program(()))


def test_an_old_program_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[int, bool]] = []

    def attach(cgroup: int, loaded: int, kind: int, flags: int, old: int | None) -> None:
        asked.append((flags, old is None))

    def some_fd(*_: object) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(syscalls, "bpf_prog_load", some_fd)
    monkeypatch.setattr(syscalls, "bpf_prog_get_fd_by_id", some_fd)
    monkeypatch.setattr(syscalls, "bpf_prog_attach", attach)
    for present in ([], [7]):
        monkeypatch.setattr(syscalls, "bpf_prog_query", lambda *_, ids=present: ids)
        devices.confine(str(tmp_path), b"")

    multi, replace = syscalls.BPF_F_ALLOW_MULTI, syscalls.BPF_F_REPLACE
    assert [(multi, True), (multi | replace, False)] == asked


@pytest.mark.parametrize(
    ("number", "kind"), [(38, MissingFeature), (1, MissingFeature), (7, HostError)]
)
def test_a_kernel_without_such_programs_is_told_from_one_that_refuses_this(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[HostError]
) -> None:
    def load(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, "bpf_prog_load", load)
    with pytest.raises(HostError) as raised:
        devices.confine("/", b"")
    assert kind is type(raised.value)
