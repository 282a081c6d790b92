"""Have running processes make userfaultfds of their own memory: the kernel gives none of another's.

A process is stopped for about a millisecond; one of its threads makes two system calls, of which
the program sees nothing but what it sees of any stop (signal(7): epoll_wait() and a few others may
then return EINTR, as they do after a freeze)::

    seize, interrupt    all threads stand: none forks or executes with the descriptor meanwhile
    amid a sequence?    rseq(2): the kernel would not see that it was interrupted; not now, then
    block signals       a handler would run on registers that are not its thread's
    userfaultfd()       by a system call instruction in the vDSO; seccomp filters are suspended
    pidfd_getfd()       the descriptor is ours
    close()             and not the process's any more
    interrupt           registers are put back in a stop of that kind, and the kernel itself sees
                        to a system call that is to be begun again (arch/x86/kernel/signal.c)

Were the tracer killed in between, the thread would run on with the wrong registers. So this runs
as a program of its own, in a session of its own, that does nothing else and ends: ``python -m
pymigrate.runtime.tracee SOCKET PATIENCE PID...``. For each PID it sends an errno, 0 with a
descriptor.

What cannot be stopped soon, runs 32-bit code or is of another architecture is left as it is.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from pymigrate.runtime import ptrace, syscalls

ANSWER = struct.Struct("=ii")
"""What is sent of each process: its PID and an errno; with 0 goes a descriptor."""

MACHINES = ("x86_64",)
"""Architectures whose registers and system calls are written here."""
PATIENCE = 0.05
"""Seconds for all of a process to stand still; who does not is let go, and not tracked."""
_CERTAIN = 10.0  # seconds for what cannot fail, but by a kill
_INSTRUCTION = b"\x0f\x05"  # syscall
_USERFAULTFD, _CLOSE = 323, 3  # arch/x86/entry/syscalls/syscall_64.tbl
_USER_MODE_ONLY = 1  # include/uapi/linux/userfaultfd.h: what processes without rights may have
_ALL = (1 << 64) - 1
_POINTER = struct.Struct("=Q")
_RSEQ_CS = 8  # where struct rseq has it: include/uapi/linux/rseq.h
_SEQUENCE = struct.Struct("=2I3Q")  # struct rseq_cs: version flags start_ip length abort_ip


class Stubborn(Exception):
    """The process did not do what it was asked; it runs on as before."""


def userfaultfd_of(pid: int) -> int:
    """Return a userfaultfd of a process's memory, which the process does not hold itself.

    Raises Stubborn, ProcessLookupError if it has ended, or the OSError of what failed.
    """
    if syscalls.MACHINE not in MACHINES:
        raise Stubborn(f"not written for {syscalls.MACHINE}")
    found: list[int | Exception] = []

    def trace() -> None:
        try:
            found.append(_userfaultfd_of(pid))
        except (Stubborn, OSError) as error:
            found.append(error)

    # By a thread of its own: what it still traces at its end, as a thread that did not stop in
    # time, and does later, the kernel lets go then.
    tracer = threading.Thread(target=trace)
    tracer.start()
    tracer.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _userfaultfd_of(pid: int) -> int:
    instruction = _find_instruction(pid)
    deadline = time.monotonic() + PATIENCE
    stopped: list[int] = []
    try:
        _stop_all(pid, stopped, deadline)
        return _borrow(pid, instruction)
    finally:
        for tid in stopped:
            _let_go(tid)


def _find_instruction(pid: int) -> int:
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^([0-9a-f]+)-([0-9a-f]+) r-xp .* \[vdso\]$", maps, re.MULTILINE)
    if found is None:
        raise Stubborn("it has no vDSO")
    start, end = int(found[1], 16), int(found[2], 16)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(start)
        at = memory.read(end - start).find(_INSTRUCTION)
    if at < 0:
        raise Stubborn("its vDSO has no system call")
    return start + at


def _stop_all(pid: int, stopped: list[int], deadline: float) -> None:
    """Stop every thread, also those that others start meanwhile."""
    filtered = "\nSeccomp:\t0\n" not in Path(f"/proc/{pid}/status").read_text(
        encoding="utf-8", errors="replace"
    )
    seen: set[int] = set()
    while fresh := _threads(pid) - seen:
        seen |= fresh
        # All are told before any is waited for: those that stand leave the CPUs to the others.
        for tid in [tid for tid in sorted(fresh) if _is_told_to_stop(tid, unfiltered=filtered)]:
            try:
                reason = ptrace.wait(tid, deadline)
            except ProcessLookupError:
                continue  # this thread has ended
            if reason is None:
                raise Stubborn(f"thread {tid} does not stop")
            stopped.append(tid)
            if reason != ptrace.STOPPED:
                raise Stubborn(f"thread {tid} stopped for another reason: {reason:#x}")


def _is_told_to_stop(tid: int, *, unfiltered: bool) -> bool:
    try:
        ptrace.seize(tid, unfiltered=unfiltered)
        ptrace.interrupt(tid)
    except ProcessLookupError:
        return False  # this thread has ended
    return True


def _threads(pid: int) -> set[int]:
    return {int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()}


def _let_go(tid: int) -> None:
    try:
        ptrace.detach(tid)
    except ProcessLookupError:
        return  # killed meanwhile


def _borrow(pid: int, instruction: int) -> int:
    """Have the first thread, which stands, make the descriptor; it stands again as it did."""
    thread = _Borrowed(pid, instruction)
    try:
        fd = thread.call(_USERFAULTFD, os.O_CLOEXEC | _USER_MODE_ONLY)
        try:
            pidfd = os.pidfd_open(pid)
            try:
                return syscalls.pidfd_getfd(pidfd, fd)
            finally:
                os.close(pidfd)
        finally:
            thread.call(_CLOSE, fd)
    finally:
        thread.put_back()


def is_amid_sequence(at: int, rseq: int, memory: BinaryIO) -> bool:
    """Say whether a thread stands within a restartable sequence.

    The kernel has it begin anew if it finds it there when it lets it run on, and forgets of the
    sequence if it runs anything else first, as ours (kernel: rseq_ip_fixup() in kernel/rseq.c).
    """
    if not rseq:
        return False
    memory.seek(rseq + _RSEQ_CS)
    (sequence,) = _POINTER.unpack(memory.read(_POINTER.size))
    if not sequence:
        return False
    memory.seek(sequence)
    _, _, start, length, _ = _SEQUENCE.unpack(memory.read(_SEQUENCE.size))
    return bool(start <= at < start + length)


class _Borrowed:
    """A stopped thread that makes system calls for us."""

    def __init__(self, tid: int, instruction: int) -> None:
        self._tid = tid
        self._instruction = instruction
        self._before = ptrace.registers(tid)
        with Path(f"/proc/{tid}/mem").open("rb", buffering=0) as memory:
            if is_amid_sequence(self._before["rip"], ptrace.rseq_pointer(tid), memory):
                raise Stubborn(f"thread {tid} is amid a restartable sequence")
        self._mask = ptrace.signal_mask(tid)
        self._was_stopped = False
        ptrace.set_signal_mask(tid, _ALL)

    def call(self, number: int, first: int) -> int:
        """Return what a system call with one argument gives; the thread stops as it comes out."""
        call = {"rip": self._instruction, "rax": number, "orig_rax": _ALL, "rdi": first}
        ptrace.set_registers(self._tid, self._before | call)
        for _ in ("into it", "out of it"):
            self._run_to(ptrace.AT_SYSCALL)
        result = ptrace.registers(self._tid)["rax"]
        if result > _ALL - 4095:
            number = _ALL + 1 - result
            raise OSError(number, os.strerror(number))
        return result

    def put_back(self) -> None:
        """Have it stop as it did at first, with everything as it was."""
        ptrace.interrupt(self._tid)
        self._run_to(ptrace.STOPPED)
        ptrace.set_registers(self._tid, self._before)
        ptrace.set_signal_mask(self._tid, self._mask)
        if self._was_stopped:
            os.kill(self._tid, signal.SIGSTOP)

    def _run_to(self, reason: int) -> None:
        found: int | None = signal.SIGSTOP
        while found == signal.SIGSTOP:  # it cannot be blocked, and is sent again in the end
            ptrace.go_on(self._tid, to_syscall=reason == ptrace.AT_SYSCALL)
            found = ptrace.wait(self._tid, time.monotonic() + _CERTAIN)
            self._was_stopped |= found == signal.SIGSTOP
        if found != reason:
            raise Stubborn(f"thread {self._tid} stopped for another reason: {found}")


def serve(channel: socket.socket, pids: list[int]) -> None:
    """Answer for each process in turn."""
    for pid in pids:
        try:
            fd = userfaultfd_of(pid)
        except Stubborn:
            channel.send(ANSWER.pack(pid, errno.EBUSY))
        except OSError as error:
            channel.send(ANSWER.pack(pid, error.errno or errno.EIO))
        else:
            socket.send_fds(channel, [ANSWER.pack(pid, 0)], [fd])
            os.close(fd)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as open_channel:
        PATIENCE = float(sys.argv[2])
        serve(open_channel, [int(each) for each in sys.argv[3:]])
