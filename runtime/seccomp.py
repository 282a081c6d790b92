"""Seccomp profiles in the OCI and docker JSON format, compiled to BPF by libseccomp.

Compiled in the parent, before the fork, to plain bytes that the child loads by seccomp(2). Source:
seccomp(2), seccomp_rule_add(3), the OCI runtime specification's config-linux.md, docker's profiles
(which add ``archMap``, ``includes`` and ``excludes``).
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymigrate.runtime.digests import sha256
from pymigrate.runtime.errors import MissingFeature, UsageError
from pymigrate.runtime.values import dataclass

MACHINE = os.uname().machine
_LIBRARY = "libseccomp.so.2"

# include/seccomp.h
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_ATTRIBUTE_OPTIMIZE = 8
_BINARY_TREE = 2
_ERROR = -1  # __NR_SCMP_ERROR: this library does not know the name
_EPERM = 1
# include/uapi/linux/seccomp.h
_FLAGS = {
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # asked for by old profiles; we load in the only thread
}

# uname's machine -> libseccomp's architecture, docker's name in includes and excludes.
_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
}


@dataclass(frozen=True)
class Program:
    """A seccomp filter: an array of struct sock_filter, and flags for seccomp(2)."""

    code: bytes
    flags: int = 0


@dataclass(frozen=True)
class Comparison:
    """One condition on an argument of the call."""

    index: int
    operator: int
    value: int
    value_two: int


@dataclass(frozen=True)
class Rule:
    """What to do about one system call, when all conditions hold."""

    name: str
    action: int
    comparisons: tuple[Comparison, ...] = ()


@dataclass(frozen=True)
class Decision:
    """A profile with all that depends on architecture and capabilities decided."""

    default: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]
    flags: int


def decide(profile: Mapping[str, Any], granted: frozenset[str], machine: str = MACHINE) -> Decision:
    """Read a profile for a machine and a bounding set; UsageError names what is wrong in it."""
    if machine not in _ARCHITECTURES:
        raise MissingFeature(f"no seccomp architecture is known for {machine}")
    try:
        return _decide(profile, granted, machine)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"linux.seccomp: not a seccomp profile: {error!r}") from error


def _decide(profile: Mapping[str, Any], granted: frozenset[str], machine: str) -> Decision:
    native, short = _ARCHITECTURES[machine]
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"), "defaultAction")
    architectures = list(profile.get("architectures", ()))
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            architectures += [native, *(entry.get("subArchitectures") or ())]
    rules: list[Rule] = []
    for index, entry in enumerate(profile.get("syscalls") or ()):
        if _applies(entry, granted, short):
            rules += _rules(entry, f"linux.seccomp.syscalls[{index}]", default)
    flags = 0
    for name in profile.get("flags") or ():
        if name not in _FLAGS:
            raise UsageError(f"linux.seccomp.flags: {name} is not supported")
        flags |= _FLAGS[name]
    return Decision(default, tuple(dict.fromkeys(architectures)), tuple(rules), flags)


def _action(name: str, errno: int | None, where: str) -> int:
    if name not in _ACTIONS:
        raise UsageError(f"linux.seccomp.{where}: {name} is not supported")
    if name not in _WITH_ERRNO:
        return _ACTIONS[name]
    return _ACTIONS[name] | (_EPERM if errno is None else errno) & 0xFFFF


def _applies(entry: Mapping[str, Any], granted: frozenset[str], short: str) -> bool:
    """Docker's rule: all of ``includes`` must hold, none of ``excludes`` may."""
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if not set(includes.get("caps") or ()) <= granted:
        return False
    if includes.get("arches") and short not in includes["arches"]:
        return False
    # minKernel is of no use here: what we run on (see README) is newer than all that name it.
    return not (
        granted & set(excludes.get("caps") or ()) or short in (excludes.get("arches") or ())
    )


def _rules(entry: Mapping[str, Any], where: str, default: int) -> list[Rule]:
    action = _action(entry["action"], entry.get("errnoRet"), where)
    if action == default:
        return []  # libseccomp refuses what says nothing
    comparisons = tuple(
        Comparison(
            int(each["index"]),
            _OPERATORS[each["op"]],
            int(each["value"]),
            int(each.get("valueTwo", 0)),
        )
        for each in entry.get("args") or ()
    )
    names = entry.get("names") or [entry["name"]]
    indexes = [each.index for each in comparisons]
    if len(set(indexes)) == len(indexes):
        return [Rule(name, action, comparisons) for name in names]
    # Two conditions on one argument mean "or", as runc reads it: libseccomp takes one at a time.
    return [Rule(name, action, (each,)) for name in names for each in comparisons]


def program(
    profile: Mapping[str, object] | None, granted: frozenset[str], cache: Path | None = None
) -> Program | None:
    """Compile a profile for a process whose bounding set is ``granted``; None is unconfined.

    With ``cache``, a directory of root's, a program that was compiled before is read from it.
    MissingFeature without libseccomp, UsageError for a bad profile.
    """
    if profile is None:
        return None
    if cache is None:
        return compile_decision(decide(profile, granted))
    # The name covers all that the code depends on.
    version = bytes(_library().seccomp_version().contents).hex()
    key = json.dumps([profile, sorted(granted), MACHINE, version], sort_keys=True)
    found = cache / f"seccomp-{sha256(key.encode()).hexdigest()[:32]}"
    return _read_cached(found) or _write_cached(found, compile_decision(decide(profile, granted)))


_HEADER = struct.Struct("<32sI")  # SHA-256 of the code, flags


def _read_cached(path: Path) -> Program | None:
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(stored) <= _HEADER.size:
        return None  # cut short by a crash
    digest, flags = _HEADER.unpack_from(stored)
    code = stored[_HEADER.size :]
    return Program(code, flags) if sha256(code).digest() == digest else None


def _write_cached(path: Path, made: Program) -> Program:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    header = _HEADER.pack(sha256(made.code).digest(), made.flags)
    beside.write_bytes(header + made.code)
    beside.replace(path)
    return made


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


class _ArgCmp(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MissingFeature(
            f"seccomp profiles need {_LIBRARY}: {error}", hint="apt-get install libseccomp2"
        ) from error
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_ArgCmp),
    )
    return library


def compile_decision(decision: Decision) -> Program:
    """Turn rules into BPF; names that this libseccomp does not know get the default action."""
    library = _library()
    context = library.seccomp_init(decision.default)
    if not context:
        raise UsageError("linux.seccomp.defaultAction: refused by libseccomp")
    try:
        # A search tree, for hundreds of calls in a row would cost every call of the container.
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _BINARY_TREE)
        for name in decision.architectures:
            _add_architecture(library, context, name)
        for rule in decision.rules:
            _add_rule(library, context, rule)
        return Program(_export(library, context), decision.flags)
    finally:
        library.seccomp_release(context)


def _add_architecture(library: ctypes.CDLL, context: int, name: str) -> None:
    bare = name.removeprefix("SCMP_ARCH_").lower()
    token = library.seccomp_arch_resolve_name(bare.encode())
    if token == 0:
        raise UsageError(f"linux.seccomp.architectures: {name} is not known")
    result = library.seccomp_arch_add(context, token)
    if result not in (0, -17):  # EEXIST: the native one is there from the start
        raise MissingFeature(f"libseccomp: cannot add {name}: {os.strerror(-result)}")


def _add_rule(library: ctypes.CDLL, context: int, rule: Rule) -> None:
    number = library.seccomp_syscall_resolve_name(rule.name.encode())
    if number == _ERROR:
        return
    conditions = (_ArgCmp * len(rule.comparisons))(
        *(
            _ArgCmp(each.index, each.operator, each.value, each.value_two)
            for each in rule.comparisons
        )
    )
    result = library.seccomp_rule_add_array(
        context, rule.action, number, len(rule.comparisons), conditions
    )
    if result not in (0, -17):  # EEXIST: said twice
        raise UsageError(f"linux.seccomp.syscalls: {rule.name}: {os.strerror(-result)}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        result = library.seccomp_export_bpf(context, fd)
        if result != 0:
            raise MissingFeature(f"libseccomp: cannot export: {os.strerror(-result)}")
        stream.seek(0)
        return stream.read()
