"""Which devices a container may use: the usual rules, and for cgroup v2 the program they become.

Version 1 takes rules as text; in version 2 a BPF program decides at each open and mknod. Kernel:
Documentation/admin-guide/cgroup-v2.rst, "Device controller"; include/uapi/linux/bpf.h, struct
bpf_cgroup_dev_ctx.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import HostError, MissingFeature
from pymigrate.runtime.settings import DeviceRule

# Without rules of its own a container may use what OCI's runtime-spec lists under "Default
# Devices", its pseudo terminals and tun devices, and may make nodes of anything (which its
# capabilities decide), not open them.
DEFAULT = (
    DeviceRule(False),
    DeviceRule(True, "c", access="m"),
    DeviceRule(True, "b", access="m"),
    DeviceRule(True, "c", 1, 3),  # null
    DeviceRule(True, "c", 1, 5),  # zero
    DeviceRule(True, "c", 1, 7),  # full
    DeviceRule(True, "c", 1, 8),  # random
    DeviceRule(True, "c", 1, 9),  # urandom
    DeviceRule(True, "c", 5, 0),  # tty
    DeviceRule(True, "c", 5, 1),  # console
    DeviceRule(True, "c", 5, 2),  # ptmx
    DeviceRule(True, "c", 10, 200),  # net/tun
    DeviceRule(True, "c", 136),  # pts
)

# include/uapi/linux/bpf.h and bpf_common.h: what our instructions are made of.
_LOAD_WORD, _AND, _SHIFT_RIGHT, _MOVE = 0x61, 0x57, 0x77, 0xB7
_JUMP, _IF_EQUAL, _IF_ANY_BIT, _IF_NOT_EQUAL, _EXIT = 0x05, 0x15, 0x45, 0x55, 0x95
_BITS = {"m": 1, "r": 2, "w": 4}
_ALL = 7
_TYPES = {"b": 1, "c": 2}
# Registers: what is returned; the context; the accesses that no rule has decided yet; the device.
_RESULT, _CONTEXT, _WANTED, _TYPE, _MAJOR, _MINOR = range(6)


def _instruction(
    code: int, to: int = 0, value: int = 0, *, source: int = 0, offset: int = 0
) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, offset, value)


def _answer(value: int) -> bytes:
    return _instruction(_MOVE, _RESULT, value) + _instruction(_EXIT)


def program(rules: Sequence[DeviceRule]) -> bytes:
    """Return the instructions that decide as the rules do; none of them: nothing is allowed.

    For each of reading, writing and making a node the last rule that fits decides. So it looks
    from the last one on, until one denies a wanted access or all are allowed.
    """
    # struct bpf_cgroup_dev_ctx { __u32 access << 16 | type, major, minor; }
    code = (
        _instruction(_LOAD_WORD, _WANTED, source=_CONTEXT)
        + _instruction(_LOAD_WORD, _TYPE, source=_CONTEXT)
        + _instruction(_AND, _TYPE, 0xFFFF)
        + _instruction(_SHIFT_RIGHT, _WANTED, 16)
        + _instruction(_LOAD_WORD, _MAJOR, source=_CONTEXT, offset=4)
        + _instruction(_LOAD_WORD, _MINOR, source=_CONTEXT, offset=8)
    )
    for rule in reversed(rules):
        code += _decide(rule)
    return code + _instruction(_IF_EQUAL, _WANTED, 0, offset=2) + _answer(0) + _answer(1)


def _decide(rule: DeviceRule) -> bytes:
    bits = sum(_BITS[letter] for letter in set(rule.access)) or _ALL
    if rule.allow:
        # What is left of the wanted accesses goes on to the rules before.
        act = _instruction(_AND, _WANTED, _ALL & ~bits)
        act += _instruction(_IF_NOT_EQUAL, _WANTED, 0, offset=2) + _answer(1)
    else:
        act = _instruction(_IF_ANY_BIT, _WANTED, bits, offset=1)
        act += _instruction(_JUMP, offset=2) + _answer(0)
    tests = [] if rule.type == "a" else [(_TYPE, _TYPES[rule.type])]
    tests += [
        (register, number)
        for register, number in ((_MAJOR, rule.major), (_MINOR, rule.minor))
        if number is not None and number >= 0
    ]
    code = act
    for register, number in reversed(tests):
        offset = len(code) // 8
        code = _instruction(_IF_NOT_EQUAL, register, number, offset=offset) + code
    return code


def confine(directory: str, code: bytes) -> None:
    """Let a program decide for a cgroup of version 2, in place of the one that did.

    MissingFeature where the kernel has no such programs, HostError if it refuses this one.
    """
    try:
        loaded = syscalls.bpf_prog_load(
            syscalls.BPF_PROG_TYPE_CGROUP_DEVICE, code, "Apache-2.0", "pymigrate"
        )
    except OSError as error:
        raise _refusal(error) from error
    try:
        _attach(directory, loaded)
    finally:
        os.close(loaded)


def _attach(directory: str, loaded: int) -> None:
    kind = syscalls.BPF_CGROUP_DEVICE
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Beside those of the cgroups above, of which each must agree.
        flags, old = syscalls.BPF_F_ALLOW_MULTI, None
        for identifier in syscalls.bpf_prog_query(cgroup, kind):
            old = syscalls.bpf_prog_get_fd_by_id(identifier)
            flags |= syscalls.BPF_F_REPLACE
            break
        try:
            syscalls.bpf_prog_attach(cgroup, loaded, kind, flags, old)
        finally:
            if old is not None:
                os.close(old)
    except OSError as error:
        raise _refusal(error) from error
    finally:
        os.close(cgroup)


def _refusal(error: OSError) -> HostError:
    if error.errno in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
        return MissingFeature(
            f"this host cannot enforce device rules on cgroup v2: {error.strerror}",
            hint="the kernel needs CONFIG_CGROUP_BPF, and root CAP_SYS_ADMIN or CAP_BPF",
        )
    return HostError(f"the kernel refuses the device rules: {error.strerror}")
