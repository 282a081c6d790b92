"""Who is connected to whom by unix sockets, sock_diag(7): /proc/net/unix does not tell it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pymigrate.runtime import rtnetlink, syscalls

# linux/sock_diag.h, linux/unix_diag.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
UDIAG_SHOW_NAME = 0x01
UDIAG_SHOW_PEER = 0x04
UDIAG_SHOW_ICONS = 0x08
UNIX_DIAG_NAME = 0
UNIX_DIAG_PEER = 2
UNIX_DIAG_ICONS = 3
UNIX_DIAG_SHUTDOWN = 6

_REQUEST = struct.Struct("=BBxxIIIII")  # unix_diag_req
_REPLY = struct.Struct("=BBBxIII")  # unix_diag_msg
_NUMBER = struct.Struct("=I")
_SHOW = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS
_ESTABLISHED = 1  # linux/tcp_states.h
_BOTH = 3  # RCV_SHUTDOWN | SEND_SHUTDOWN
_ALL_STATES = 0xFFFFFFFF
_BUFFER = 1 << 16


@dataclass(frozen=True)
class UnixSocket:
    """A unix socket: the inode of its other end, 0 where there is none, and its own name.

    ``waiting`` are the inodes that have connected to it and were not yet accepted; ``dangling`` is
    one that is connected, not shut, and has no other end: it was not yet accepted somewhere.
    """

    inode: int
    peer: int
    path: str = ""
    waiting: tuple[int, ...] = ()
    dangling: bool = False


def unix_sockets(pid: int) -> tuple[UnixSocket, ...]:
    """List the unix sockets of the network namespace of a process.

    Raises OSError: the kernel has no CONFIG_UNIX_DIAG (ENOENT), or the process is gone.
    """

    def ask() -> tuple[UnixSocket, ...]:
        # This thread alone enters the namespace, and ends there.
        namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(namespace, syscalls.CLONE_NEWNET)
        finally:
            os.close(namespace)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
            diag.send(request())
            return tuple(_answers(diag))

    with ThreadPoolExecutor(1) as one:
        return one.submit(ask).result()


def request() -> bytes:
    """Return the question for all of them."""
    body = _REQUEST.pack(socket.AF_UNIX, 0, _ALL_STATES, 0, _SHOW, 0, 0)
    flags = rtnetlink.NLM_F_REQUEST | rtnetlink.NLM_F_DUMP
    return rtnetlink.message(SOCK_DIAG_BY_FAMILY, flags, 1, body)


def parse(body: bytes) -> UnixSocket:
    """Read one answer."""
    _, kind, state, inode, _, _ = _REPLY.unpack_from(body)
    found = rtnetlink.attributes(body[_REPLY.size :])
    peer = _NUMBER.unpack(found[UNIX_DIAG_PEER])[0] if UNIX_DIAG_PEER in found else 0
    is_connected = state == _ESTABLISHED and kind != socket.SOCK_DGRAM
    return UnixSocket(
        inode,
        peer,
        os.fsdecode(found.get(UNIX_DIAG_NAME, b"").rstrip(b"\0")),
        tuple(number for (number,) in _NUMBER.iter_unpack(found.get(UNIX_DIAG_ICONS, b""))),
        dangling=is_connected and not peer and found.get(UNIX_DIAG_SHUTDOWN, b"\0")[0] != _BOTH,
    )


def _answers(diag: socket.socket) -> Iterator[UnixSocket]:
    while True:
        for reply in rtnetlink.messages(diag.recv(_BUFFER)):
            if reply.kind == rtnetlink.NLMSG_DONE:
                return
            if reply.kind == rtnetlink.NLMSG_ERROR:
                if error := rtnetlink.failure(reply):
                    raise error
                return
            yield parse(reply.body)
