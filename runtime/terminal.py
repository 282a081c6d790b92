"""Terminals: the container's own pty, raw mode for the person's, window sizes; see pty(7)."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from pymigrate.runtime import mounting, syscalls
from pymigrate.runtime.errors import HostError

# include/uapi/asm/ioctls.h; powerpc numbers the direction bits differently.
_POWERPC = syscalls.MACHINE.startswith("ppc")
TIOCGPTN = 0x40045430 if _POWERPC else 0x80045430
TIOCGPTPEER = 0x20005441 if _POWERPC else 0x5441
TIOCSPTLCK = 0x80045431 if _POWERPC else 0x40045431


def open_pair() -> tuple[int, int]:
    """Open a terminal of the caller's mount namespace; returns (master, slave).

    To be called inside the container. The slave comes from the master by an ioctl, not by a path
    that the container could have replaced. HostError if /dev/ptmx is not what it should be.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open("/dev/ptmx", flags)
    try:
        if os.fstat(master).st_rdev != os.makedev(5, 2):
            raise HostError("/dev/ptmx in the container is not a terminal multiplexer")
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, TIOCGPTPEER, flags)
    except (OSError, HostError):
        os.close(master)
        raise
    return master, slave


def number(master: int) -> int:
    """Return N of the slave /dev/pts/N."""
    packed = fcntl.ioctl(master, TIOCGPTN, struct.pack("i", 0))
    return int(struct.unpack("i", packed)[0])


def bind_console(master: int, root: int, kernel: mounting.Kernel = syscalls) -> None:
    """Mount the slave on /dev/console, as programs that write there expect."""
    path = f"/dev/pts/{number(master)}"
    slave = kernel.openat2(
        root, path.lstrip("/"), os.O_PATH | os.O_CLOEXEC, resolve=syscalls.RESOLVE_IN_ROOT
    )
    try:
        clone = syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        tree = kernel.open_tree(slave, "", clone)
        try:
            mounting.attach(tree, root, "/dev/console", kernel)
        finally:
            os.close(tree)
    finally:
        os.close(slave)


def make_controlling(slave: int) -> None:
    """Make it the controlling terminal of the caller, who must lead a session without one."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def window_size(fd: int) -> tuple[int, int]:
    """Return (rows, columns)."""
    packed = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
    rows, columns, _, _ = struct.unpack("4H", packed)
    return rows, columns


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Set it; the foreground process group gets SIGWINCH when it changes."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Pass every key on unaltered, as cfmakeraw(3) does; the old settings come back at the end."""
    before = termios.tcgetattr(fd)
    after = termios.tcgetattr(fd)
    after[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    after[1] &= ~termios.OPOST
    after[2] = after[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    after[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    # Not TCSAFLUSH: what was typed ahead is meant for the container.
    termios.tcsetattr(fd, termios.TCSADRAIN, after)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
