"""Lines of /proc about sockets and mounts, read as plain values."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class TcpSocket:
    """A line of /proc/net/tcp (kernel: networking/proc_net_tcp.rst); `inode` is 0 for no owner."""

    inode: int
    state: int
    waiting: int  # bytes to read; of a listening socket, connections to accept
    local: str
    remote: str
    outside: bool  # the other end is not on the loopback


@dataclass(frozen=True)
class NetlinkSocket:
    """A line of /proc/net/netlink: its port, the groups it hears, and bytes that wait in it."""

    inode: int
    port: int
    groups: int
    waiting: int


@dataclass(frozen=True)
class Mounted:
    """A line of /proc/PID/mountinfo, proc_pid_mountinfo(5)."""

    number: int
    parent: int
    device: int
    root: str
    path: str
    filesystem: str
    source: str = ""
    read_only: bool = False


def parse_tcp(line: str) -> TcpSocket | None:
    """Read a line of /proc/net/tcp or tcp6."""
    words = line.split()
    if len(words) < 10:
        return None
    remote = words[2].partition(":")[0]
    return TcpSocket(
        inode=int(words[9]),
        state=int(words[3], 16),
        waiting=int(words[4].partition(":")[2], 16),
        local=_address(words[1]),
        remote=_address(words[2]),
        outside=not _is_loopback(remote) and int(remote, 16) != 0,
    )


def parse_netlink(line: str) -> NetlinkSocket | None:
    """Read a line of /proc/net/netlink."""
    words = line.split()
    if len(words) < 10:
        return None
    return NetlinkSocket(int(words[9]), int(words[2]), int(words[3], 16), int(words[4]))


def parse_mount(line: str) -> Mounted:
    """Read a line of /proc/PID/mountinfo; blanks in names stay escaped."""
    before, _, after = line.partition(" - ")
    words, kind = before.split(" "), after.split(" ")
    major, _, minor = words[2].partition(":")
    return Mounted(
        number=int(words[0]),
        parent=int(words[1]),
        device=os.makedev(int(major), int(minor)),
        root=words[3],
        path=words[4],
        filesystem=kind[0],
        source=kind[1] if len(kind) > 1 else "",
        read_only="ro" in words[5].split(",") or "ro" in kind[-1].split(","),
    )


def _is_loopback(word: str) -> bool:
    """Tell whether an address is the loopback's; words of 32 bits in the host's order."""
    if len(word) == 8:
        return bytes.fromhex(word)[::-1][0] == 127
    mapped = word[:24] == "0000000000000000FFFF0000"
    return word == "0" * 24 + "01000000" or (mapped and _is_loopback(word[24:]))


def _address(word: str) -> str:
    from ipaddress import ip_address

    address, _, port = word.partition(":")
    packed = b"".join(
        bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8)
    )
    found = ip_address(packed)
    return f"[{found}]:{int(port, 16)}" if found.version == 6 else f"{found}:{int(port, 16)}"
