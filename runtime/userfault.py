"""The border to userfaultfd(2): hear which absent pages a process waits for, and fill them.

CRIU makes the descriptor in the process that it restores and registers its private anonymous
memory (CRIU: criu/uffd.c); we get the descriptor and are the "monitor" of the manual page. The
features are those for monitors that the process does not know of, so the kernel also tells of
forks and of memory that is moved or given back, and waits until that was read.

Kernel: include/uapi/linux/userfaultfd.h, admin-guide/mm/userfaultfd.rst, ioctl_userfaultfd(2).
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from pymigrate.runtime import syscalls

PAGE = os.sysconf("SC_PAGE_SIZE")

_MESSAGE = struct.Struct("=BxHI3Q")  # struct uffd_msg: event, reserved, arguments
_COPY = struct.Struct("=4Qq")  # struct uffdio_copy: dst src len mode copy
_ZERO = struct.Struct("=3Qq")  # struct uffdio_zeropage: range mode zeropage
_REGISTER = struct.Struct("=4Q")  # struct uffdio_register: range mode ioctls
_RANGE = struct.Struct("=2Q")
_API = struct.Struct("=3Q")  # struct uffdio_api: api features ioctls
_API_VERSION = 0xAA
NEEDED = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
"""UFFD_FEATURE_EVENT_FORK, _REMAP, _REMOVE, _UNMAP."""
WP_ASYNC = 1 << 15
"""UFFD_FEATURE_WP_ASYNC, since Linux 6.7: the kernel itself lets a writer go on, and remembers."""
_MODE_WP = 1 << 1  # UFFDIO_REGISTER_MODE_WP
MESSAGES = 64
"""How many messages are read at once."""
READ = MESSAGES * _MESSAGE.size
"""So many bytes are these."""


class Event(enum.IntEnum):
    """What a message is about."""

    PAGEFAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


class Message(NamedTuple):
    """One message; what ``a``, ``b`` and ``c`` are depends on the event.

    PAGEFAULT: b the address. FORK: a the child's descriptor, which is the reader's to close.
    REMAP: from a, to b, length c. REMOVE and UNMAP: start a, end b.
    """

    event: int
    a: int
    b: int
    c: int


def _ioctl_number(direction: int, number: int, size: int) -> int:
    """Return _IOC(direction, 0xAA, number, size); 1 writes, 2 reads, 3 does both."""
    if os.uname().machine.startswith("ppc"):  # arch/powerpc/include/uapi/asm/ioctl.h
        return {1: 4, 2: 2, 3: 6}[direction] << 29 | size << 16 | 0xAA << 8 | number
    return direction << 30 | size << 16 | 0xAA << 8 | number


_UFFDIO_API = _ioctl_number(3, 0x3F, _API.size)
_UFFDIO_REGISTER = _ioctl_number(3, 0x00, _REGISTER.size)
_UFFDIO_WAKE = _ioctl_number(2, 0x02, _RANGE.size)
_UFFDIO_COPY = _ioctl_number(3, 0x03, _COPY.size)
_UFFDIO_ZEROPAGE = _ioctl_number(3, 0x04, _ZERO.size)


def is_here(features: int = NEEDED) -> bool:
    """Say whether the kernel has userfaultfd; by default with what monitors of others need."""
    try:
        fd = syscalls.userfaultfd(os.O_CLOEXEC)
    except OSError:
        return False
    try:
        agree(fd, features)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def agree(fd: int, features: int) -> None:
    """Begin to use a descriptor; before that it does nothing. Raises OSError EINVAL if it cannot.

    Kernels refuse what they do not know.
    """
    fcntl.ioctl(fd, _UFFDIO_API, bytearray(_API.pack(_API_VERSION, features, 0)))


def track(fd: int, start: int, length: int) -> None:
    """Have writes to a range remembered; a second time does nothing.

    Raises OSError: EBUSY if another userfaultfd has it, EINVAL if there is nothing that could be,
    ENOMEM or ESRCH if the memory of this descriptor is gone.
    """
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(_REGISTER.pack(start, length, _MODE_WP, 0)))


class Gone(Exception):
    """The process has ended, or is ending: there is no memory to fill any more."""


class Changing(Exception):
    """The memory is being changed: read the messages, then do it again (EAGAIN)."""


def read(fd: int, into: memoryview) -> list[Message]:
    """Read what there is to read of a descriptor that does not block, by ``into``, of READ bytes.

    What was read is there as soon as its process may go on, whatever becomes of the reader.
    """
    try:
        count = os.readv(fd, [into])
    except BlockingIOError:
        return []
    return parse(bytes(into[:count]))


def parse(data: bytes) -> list[Message]:
    """Return the messages in what was read, up to where there is none."""
    return [
        Message(event, first, second, third)
        for event, _, _, first, second, third in _MESSAGE.iter_unpack(data)
        if event
    ]


def copy(fd: int, address: int, source: int, length: int) -> None:
    """Fill absent pages from ``source``, an address of ours.

    Wakes who waits for them. Pages that are there already stay as they are, and memory that is
    not, or no longer, registered is passed over. Raises Gone and Changing.
    """

    def step(done: int, size: int) -> tuple[OSError | None, int]:
        arguments = bytearray(_COPY.pack(address + done, source + done, size, 0, 0))
        return _try(fd, _UFFDIO_COPY, arguments), _COPY.unpack(arguments)[4]

    _fill(step, length)


def zero(fd: int, address: int, length: int) -> None:
    """Fill absent pages with zeros, as `copy` does. Raises Gone and Changing."""

    def step(done: int, size: int) -> tuple[OSError | None, int]:
        arguments = bytearray(_ZERO.pack(address + done, size, 0, 0))
        return _try(fd, _UFFDIO_ZEROPAGE, arguments), _ZERO.unpack(arguments)[3]

    _fill(step, length)


def _try(fd: int, request: int, arguments: bytearray) -> OSError | None:
    try:
        fcntl.ioctl(fd, request, arguments)
    except OSError as error:
        return error
    return None


def _fill(step: Callable[[int, int], tuple[OSError | None, int]], length: int) -> None:
    """Repeat a call until a range is filled; ``step(done, size)`` gives its error and its result.

    A call is for one mapping. If the range may reach beyond it, halves are tried.
    """
    done, size = 0, length
    while done < length:
        error, filled = step(done, size)
        if error is None or (error.errno == errno.EAGAIN and filled > 0):
            done += size if error is None else filled  # EAGAIN also says "only a part of it"
        elif error.errno == errno.EAGAIN:
            raise Changing from error
        elif error.errno in (errno.ESRCH, errno.ENOSPC):
            raise Gone from error
        elif error.errno == errno.ENOENT and size > PAGE:
            size = max(size // 2 & -PAGE, PAGE)
            continue
        elif error.errno in (errno.EEXIST, errno.ENOENT):
            done += PAGE
        else:
            raise error
        size = length - done


def wake(fd: int, start: int, length: int) -> None:
    """Let those go on who wait for a page of a range."""
    fcntl.ioctl(fd, _UFFDIO_WAKE, bytearray(_RANGE.pack(start, length)))
