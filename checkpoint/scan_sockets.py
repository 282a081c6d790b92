"""The rules of the scan for sockets; see scan.py."""

from __future__ import annotations

from collections.abc import Iterator

from pymigrate.checkpoint.findings import Obstacle, Severity, held
from pymigrate.checkpoint.sight import Opened, Process, Sight

NONE = "none"  # the choice that there must be no connection, which is runc's own
_LISTEN, _SYN_RECV = 10, 3  # linux/tcp_states.h
# Protocols, as sockfs calls them, of the families that CRIU collects (CRIU: criu/sockets.c).
_PROTOCOLS = ("TCP", "UDP", "UNIX", "NETLINK", "PACKET", "RAW")


def of_process(process: Process, opened: Opened, seen: Sight) -> Iterator[Obstacle]:
    """Judge one socket."""
    protocol = opened.protocol
    if not protocol.startswith(_PROTOCOLS):
        remedy = "have the program close it"
        if protocol.startswith("MPTCP"):
            remedy = "start the program without MPTCP (Go: GODEBUG=multipathtcp=0)"
        elif protocol.startswith("PING"):  # CRIU has it, but not ping_group_range of the network
            remedy = "ping by a raw socket, which wants CAP_NET_RAW"
        what = f"has a socket of the kind {protocol}"
        yield held("socket", process, opened, what, remedy)
    elif protocol.startswith("NETLINK"):
        for socket in seen.netlink:
            if socket.inode == opened.inode and socket.waiting:
                what = f"has a netlink socket with {socket.waiting} bytes that it has not read"
                remedy = "try again; a program that never reads must close it"
                yield held("netlink", process, opened, what, remedy)
            elif socket.inode == opened.inode and socket.groups and not socket.port:
                what = "has a netlink socket with groups and no port"
                yield held("netlink", process, opened, what, "have it bind")
    elif protocol.startswith("UNIX"):
        yield from _unix(process, opened, seen)


def _unix(process: Process, opened: Opened, seen: Sight) -> Iterator[Obstacle]:
    known = {socket.inode: socket for socket in seen.unix}
    socket = known.get(opened.inode)
    if socket is None:
        return
    if socket.dangling:
        if any(socket.inode in each.waiting for each in seen.unix):
            return
        whom = "a process outside, which has not accepted it"
    elif socket.peer in seen.holders:
        whom = f"{seen.holders[socket.peer]}, outside"
    elif socket.peer and seen.own_network and socket.peer not in known:
        whom = "a process outside"
    else:
        return  # none, inside, or on its way from one process to another
    yield held(
        "unix-outside",
        process,
        opened,
        f"is connected by a unix socket to {whom}",
        "close that connection; a socket of the host in a volume (docker.sock, /dev/log) cannot "
        "travel",
    )


def connections(seen: Sight, tcp: str) -> Iterator[Obstacle]:
    """Judge all TCP connections, with what was chosen for them."""
    owners: dict[int, tuple[Process, Opened]] = {
        opened.inode: (process, opened)
        for process in seen.processes
        for opened in process.opened
        if opened.kind == "socket"
    }
    kept = open_ones = 0
    for socket in seen.tcp:
        owner = owners.get(socket.inode)
        if owner is None or not socket.inode:
            continue
        process, opened = owner
        if tcp == NONE and socket.state not in (_LISTEN, _SYN_RECV):
            open_ones += 1
        elif socket.state == _LISTEN and socket.waiting and tcp != "skip":
            yield Obstacle(
                "half-open",
                Severity.CHOICE,
                f"{process.name} has not yet accepted {socket.waiting} connections to "
                f"{socket.local} (descriptor {opened.number})",
                "try again, or --tcp skip drops them (runc's --tcp-skip-in-flight)",
                process.pid,
                opened.number,
                opened.link,
            )
        elif socket.outside and socket.state not in (_LISTEN, _SYN_RECV):
            kept += 1
    if open_ones:
        yield Obstacle(
            "tcp",
            Severity.CHOICE,
            f"it has {open_ones} TCP connection{'s' if open_ones > 1 else ''}, and none were to be "
            "kept",
            "--tcp-established keeps them",
        )
    if kept:
        end = "are closed" if tcp == "close" else "live on where the address is the same"
        yield Obstacle(
            "tcp",
            Severity.NOTE,
            f"{kept} TCP connection{'s' if kept > 1 else ''} to the outside {end}",
            "--tcp says what becomes of them",
        )
