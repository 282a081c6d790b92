"""The border to ptrace(2): stop a thread, read and change its registers, let it go.

A tracer is a thread, not a process: all calls about one tracee come from the thread that seized it,
and when that thread ends, the kernel lets go of all that it traces.

Kernel: include/uapi/linux/ptrace.h, ptrace(2); arch/x86/include/asm/user_64.h for the registers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import time

_SYSCALL, _CONT, _DETACH = 24, 7, 17
_GETREGSET, _SETREGSET = 0x4204, 0x4205
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_GET_RSEQ_CONFIGURATION = 0x420F
_TRACESYSGOOD, _SUSPEND_SECCOMP = 1, 1 << 21
_EVENT_STOP = 128
_NT_PRSTATUS = 1
_WALL = 0x40000000  # include/uapi/linux/wait.h

_REGISTERS = struct.Struct("=27Q")  # struct user_regs_struct
_RSEQ = struct.Struct("=Q3I4x")  # struct ptrace_rseq_configuration: pointer size signature flags
_NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
)
_POLL = 0.0001  # seconds between looks whether a thread has stopped

STOPPED = signal.SIGTRAP | _EVENT_STOP << 8
"""What `wait` returns for a thread that `interrupt` stopped."""
AT_SYSCALL = signal.SIGTRAP | 0x80
"""What `wait` returns for one that enters a system call, or comes out of it."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long

Registers = dict[str, int]


class _IoVec(ctypes.Structure):
    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


def _ptrace(request: int, tid: int, address: int | None, data: int | None) -> None:
    if _libc.ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace({request:#x}, {tid}): {os.strerror(number)}")


def seize(tid: int, *, unfiltered: bool) -> None:
    """Begin to trace a thread; it runs on. ``unfiltered`` suspends its seccomp filters meanwhile.

    Raises OSError: EPERM if it may not be traced, or not so; ESRCH if it is gone.
    """
    options = _TRACESYSGOOD | (_SUSPEND_SECCOMP if unfiltered else 0)
    _ptrace(_SEIZE, tid, None, options)


def interrupt(tid: int) -> None:
    """Have it stop, wherever it is; it has when `wait` says so."""
    _ptrace(_INTERRUPT, tid, None, None)


def go_on(tid: int, *, to_syscall: bool = False) -> None:
    """Let a stopped thread run; with ``to_syscall`` until it enters or leaves a system call."""
    _ptrace(_SYSCALL if to_syscall else _CONT, tid, None, 0)


def detach(tid: int) -> None:
    """Let a stopped thread go, as its registers are."""
    _ptrace(_DETACH, tid, None, 0)


def wait(tid: int, deadline: float) -> int | None:
    """Wait until a thread stops and say why: its signal, and above that the event.

    None if it has not by then (time.monotonic()). Raises ProcessLookupError if it has ended.
    """
    while True:
        try:
            found, status = os.waitpid(tid, os.WNOHANG | _WALL)
        except ChildProcessError as error:
            raise ProcessLookupError(errno.ESRCH, f"thread {tid} is not traced") from error
        if found:
            if not os.WIFSTOPPED(status):
                raise ProcessLookupError(errno.ESRCH, f"thread {tid} has ended")
            return status >> 8
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL)


def registers(tid: int) -> Registers:
    """Read the registers of a stopped thread. Raises OSError EINVAL if it runs 32-bit code."""
    buffer = ctypes.create_string_buffer(_REGISTERS.size)
    piece = _IoVec(ctypes.addressof(buffer), _REGISTERS.size)
    _ptrace(_GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(piece))
    if piece.iov_len != _REGISTERS.size:
        raise OSError(errno.EINVAL, f"thread {tid} has registers of another kind")
    return dict(zip(_NAMES, _REGISTERS.unpack(buffer.raw), strict=True))


def set_registers(tid: int, values: Registers) -> None:
    """Change the registers of a stopped thread."""
    buffer = ctypes.create_string_buffer(_REGISTERS.pack(*(values[name] for name in _NAMES)))
    piece = _IoVec(ctypes.addressof(buffer), _REGISTERS.size)
    _ptrace(_SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(piece))


def signal_mask(tid: int) -> int:
    """Read which signals a stopped thread blocks, a bit each."""
    mask = ctypes.c_uint64()
    _ptrace(_GETSIGMASK, tid, ctypes.sizeof(mask), ctypes.addressof(mask))
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Change which signals a stopped thread blocks."""
    value = ctypes.c_uint64(mask)
    _ptrace(_SETSIGMASK, tid, ctypes.sizeof(value), ctypes.addressof(value))


def rseq_pointer(tid: int) -> int:
    """Return where a stopped thread has its struct rseq; 0 if it has registered none."""
    buffer = ctypes.create_string_buffer(_RSEQ.size)
    try:
        _ptrace(_GET_RSEQ_CONFIGURATION, tid, _RSEQ.size, ctypes.addressof(buffer))
    except OSError as error:
        if error.errno == errno.EIO:  # a kernel without restartable sequences
            return 0
        raise
    pointer: int = _RSEQ.unpack(buffer.raw)[0]
    return pointer
