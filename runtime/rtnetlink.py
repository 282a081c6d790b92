"""rtnetlink messages for links, addresses and routes, and a socket that sends them.

Sources: rtnetlink(7), netlink(7), linux/if_link.h, linux/rtnetlink.h and the kernel's
Documentation/userspace-api/netlink/intro.rst. pyroute2 is the library for this; importing it
costs 100 ms and asyncio (measured with 0.9.7), as much as all the rest of a container's start and
of a migration's blackout. Of its size we need the messages below; a test has pyroute2 decode
what is encoded here.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from pymigrate.runtime.values import dataclass

# linux/netlink.h
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ACK_TLVS = 0x200
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
RTM_NEWQDISC = 36
TC_H_ROOT = 0xFFFFFFFF
TC_LINKLAYER_ETHERNET = 1
TCA_KIND = 1
TCA_OPTIONS = 2
TCA_TBF_PARMS = 1
TCA_TBF_RATE64 = 4
TCA_TBF_BURST = 6
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

# linux/rtnetlink.h
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTEXT_FILTER_SKIP_STATS = 1 << 3

# linux/if.h, linux/if_link.h, linux/if_addr.h, linux/veth.h
IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_PROTINFO = 12
IFLA_OPERSTATE = 16
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_LINK_NETNSID = 37
IFLA_TARGET_NETNSID = 46
IFLA_BRPORT_MODE = 4
IF_OPER_UNKNOWN = 0
IF_OPER_UP = 6
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
VETH_INFO_PEER = 1
IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4

# linux/neighbour.h
NDA_DST = 1
NUD_INCOMPLETE = 0x01
NUD_FAILED = 0x20

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_QDISC = struct.Struct("=BxxxiIII")  # tcmsg: family, index, handle, parent, info
# tc_tbf_qopt of linux/pkt_sched.h: two tc_ratespec (cell_log, link layer, overhead, cell_align,
# mpu, bytes a second), then limit in bytes, buffer and mtu in ticks.
_TBF = struct.Struct("=BBHhHI BBHhHI III")
_INT = struct.Struct("=i")
_BUFFER = 1 << 16


@dataclass(frozen=True)
class Message:
    """One netlink message: its type, flags, sequence number, and what follows the header."""

    kind: int
    flags: int
    sequence: int
    body: bytes


@dataclass(frozen=True)
class Link:
    """A network interface.

    ``peer_index`` is the other end of a veth, 0 where there is none, and ``peer_netns`` the number
    by which the caller's namespace knows that of the other end, None if they are in the same.
    ``carrier`` says that the cable is whole, ``forwards`` that the kernel has taken notice.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    carrier: bool
    forwards: bool
    master: int
    peer_index: int
    peer_netns: int | None
    alias: str


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute, padded to four bytes."""
    padding = bytes(-len(payload) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + padding


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Encode a string, which netlink wants with a zero at its end."""
    return attribute(kind, os.fsencode(value) + b"\0")


def number(kind: int, value: int) -> bytes:
    """Encode a 32 bit integer in the machine's order."""
    return attribute(kind, _INT.pack(value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a row of attributes; the last of a kind counts; what is cut off is left out."""
    found, start = {}, 0
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > len(data):
            break
        found[kind & NLA_TYPE_MASK] = data[start + _ATTRIBUTE.size : start + length]
        start += length + (-length % 4)
    return found


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Encode one message."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[Message]:
    """Decode all messages of one datagram."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, start)
        if length < _HEADER.size or start + length > len(data):
            return
        yield Message(kind, flags, sequence, data[start + _HEADER.size : start + length])
        start += length + (-length % 4)


def failure(reply: Message) -> OSError | None:
    """Return the error in an NLMSG_ERROR message with the kernel's own words, None if it is 0."""
    (code,) = _INT.unpack_from(reply.body)
    if code == 0:
        return None
    words = os.strerror(-code)
    if reply.flags & NLM_F_ACK_TLVS:  # with NETLINK_CAP_ACK, only the request's header is echoed
        details = attributes(reply.body[_INT.size + _HEADER.size :])
        explanation = details.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
        words = f"{words}: {explanation}" if explanation else words
    return OSError(-code, words)


def link_body(index: int = 0, *, flags: int = 0, change: int = 0) -> bytes:
    """Encode the fixed part of a message about a link."""
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, change)


def bridge_body(name: str, mac: str) -> bytes:
    """Encode a new bridge, down. Without a MAC of its own it would take its ports'."""
    return (
        link_body()
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, mac_bytes(mac))
        + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"))
    )


def veth_body(
    name: str, *, master: int, mtu: int, peer: str, peer_mac: str | None, peer_netns_fd: int
) -> bytes:
    """Encode a veth pair: one end here, down, in a bridge; the other in another namespace."""
    other = [text(IFLA_IFNAME, peer), number(IFLA_MTU, mtu), number(IFLA_NET_NS_FD, peer_netns_fd)]
    if peer_mac:
        other.append(attribute(IFLA_ADDRESS, mac_bytes(peer_mac)))
    # VETH_INFO_PEER holds a whole link message: the fixed part, then attributes.
    second_end = attribute(VETH_INFO_PEER | NLA_F_NESTED, link_body() + b"".join(other))
    return (
        link_body()
        + text(IFLA_IFNAME, name)
        + number(IFLA_MTU, mtu)
        + number(IFLA_MASTER, master)
        + nested(
            IFLA_LINKINFO,
            text(IFLA_INFO_KIND, "veth"),
            nested(IFLA_INFO_DATA, second_end),
        )
    )


def address_body(index: int, address: IPv4Interface | IPv6Interface) -> bytes:
    """Encode an address of an interface."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _ADDRESS.pack(family, address.network.prefixlen, 0, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, address.packed) + attribute(IFA_ADDRESS, address.packed)
    if address.version == 4 and address.network.prefixlen < 31:
        body += attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    return body


def default_route_body(index: int, gateway: IPv4Address | IPv6Address) -> bytes:
    """Encode the default route through a gateway."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    fixed = _ROUTE.pack(
        family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    )
    return fixed + attribute(RTA_GATEWAY, gateway.packed) + number(RTA_OIF, index)


def tbf_body(index: int, *, rate: int, burst: int, limit: int) -> bytes:
    """Encode a token bucket at an interface's way out: bytes a second, bytes at once, and waiting.

    See tc-tbf(8). The kernel takes the burst from its own attribute, and the rate from one of 64
    bits where it does not fit.
    """
    low = min(rate, (1 << 32) - 1)
    parameters = _TBF.pack(0, TC_LINKLAYER_ETHERNET, 0, -1, 0, low, 0, 0, 0, 0, 0, 0, limit, 0, 0)
    options = [attribute(TCA_TBF_PARMS, parameters), number(TCA_TBF_BURST, burst)]
    if rate > low:
        options.append(attribute(TCA_TBF_RATE64, struct.pack("=Q", rate)))
    fixed = _QDISC.pack(socket.AF_UNSPEC, index, 0, TC_H_ROOT, 0)
    return fixed + text(TCA_KIND, "tbf") + nested(TCA_OPTIONS, *options)


def parse_link(body: bytes) -> Link:
    """Decode the body of RTM_NEWLINK."""
    _family, _type, index, flags, _change = _LINK.unpack_from(body)
    found = attributes(body[_LINK.size :])
    details = attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=_word(found, IFLA_IFNAME),
        kind=_word(details, IFLA_INFO_KIND),
        mac=":".join(f"{byte:02x}" for byte in found.get(IFLA_ADDRESS, b"")),
        mtu=_number(found, IFLA_MTU),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        forwards=found.get(IFLA_OPERSTATE, b"\0")[0] in (IF_OPER_UNKNOWN, IF_OPER_UP),
        master=_number(found, IFLA_MASTER),
        peer_index=_number(found, IFLA_LINK),
        peer_netns=_number(found, IFLA_LINK_NETNSID) if IFLA_LINK_NETNSID in found else None,
        alias=_word(found, IFLA_IFALIAS),
    )


def parse_address(body: bytes) -> tuple[int, IPv4Interface | IPv6Interface]:
    """Decode the body of RTM_NEWADDR: interface index and address."""
    family, length, _flags, _scope, index = _ADDRESS.unpack_from(body)
    found = attributes(body[_ADDRESS.size :])
    packed = found.get(IFA_LOCAL, found.get(IFA_ADDRESS, b""))
    if family == socket.AF_INET:
        return index, IPv4Interface((packed, length))
    return index, IPv6Interface((packed, length))


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of a MAC address written with colons."""
    return bytes.fromhex(mac.replace(":", ""))


def _word(found: dict[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode(errors="surrogateescape")


def _number(found: dict[int, bytes], kind: int) -> int:
    return int(_INT.unpack(found[kind])[0]) if kind in found else 0


def open_socket() -> socket.socket:
    """Return a socket to the network namespace of the calling thread, where it stays for good."""
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        route.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        route.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        route.bind((0, 0))
    except OSError:
        route.close()
        raise
    return route


class Links:
    """The interfaces of one network namespace; raises OSError with the kernel's explanation."""

    def __init__(self, route: socket.socket | None = None) -> None:
        """Own ``route``, or a new socket to the caller's namespace."""
        self._socket = route or open_socket()
        self._sequence = 0

    def __enter__(self) -> Links:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the socket."""
        self._socket.close()

    def _request(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        self._sequence += 1
        flags |= NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(message(kind, flags, self._sequence, body))
        answers: list[Message] = []
        while True:
            for reply in messages(self._socket.recv(_BUFFER)):
                if reply.sequence != self._sequence:
                    continue  # what is left of a request that was interrupted by a signal
                if reply.kind == NLMSG_ERROR:
                    if error := failure(reply):
                        raise error
                    return answers
                if reply.kind == NLMSG_DONE:
                    return answers
                answers.append(reply)

    def find(self, name: str) -> Link | None:
        """Return the interface of this name, or None."""
        return self._find(link_body() + text(IFLA_IFNAME, name))

    def get(self, index: int, netns: int | None = None) -> Link | None:
        """Return the interface of this index, here or in a namespace known by a number."""
        other = b"" if netns is None else number(IFLA_TARGET_NETNSID, netns)
        return self._find(link_body(index) + other)

    def _find(self, body: bytes) -> Link | None:
        mask = number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        try:
            (answer,) = self._request(RTM_GETLINK, body + mask)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
        return parse_link(answer.body)

    def all(self) -> list[Link]:
        """Return all interfaces."""
        mask = number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        answers = self._request(RTM_GETLINK, link_body() + mask, NLM_F_DUMP)
        return [parse_link(answer.body) for answer in answers]

    def addresses(self) -> list[tuple[int, IPv4Interface | IPv6Interface]]:
        """Return all addresses, each with the index of its interface."""
        answers = self._request(RTM_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0), NLM_F_DUMP)
        return [parse_address(answer.body) for answer in answers]

    def forget_unreached(self) -> None:
        """Forget neighbours that are being asked for in vain, so that the next packet asks anew."""
        for answer in self._request(RTM_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0), NLM_F_DUMP):
            family, index, state, _flags, _type = _NEIGHBOUR.unpack_from(answer.body)
            address = attributes(answer.body[_NEIGHBOUR.size :]).get(NDA_DST)
            if address is None or not state & (NUD_INCOMPLETE | NUD_FAILED):
                continue
            body = _NEIGHBOUR.pack(family, index, 0, 0, 0) + attribute(NDA_DST, address)
            try:
                self._request(RTM_DELNEIGH, body)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise  # it went by itself

    def add(self, body: bytes) -> None:
        """Make a link from :func:`bridge_body` or :func:`veth_body`."""
        self._request(RTM_NEWLINK, body, NLM_F_CREATE | NLM_F_EXCL)

    def delete(self, name: str) -> None:
        """Remove an interface; both ends of a veth."""
        self._request(RTM_DELLINK, link_body() + text(IFLA_IFNAME, name))

    def set_up(self, name: str, *, up: bool) -> None:
        """Switch an interface on or off."""
        flags = link_body(flags=IFF_UP if up else 0, change=IFF_UP)
        self._request(RTM_SETLINK, flags + text(IFLA_IFNAME, name))

    def set_master(self, name: str, master: int) -> None:
        """Put an interface into a bridge, by the bridge's index."""
        body = link_body() + text(IFLA_IFNAME, name) + number(IFLA_MASTER, master)
        self._request(RTM_SETLINK, body)

    def set_name(self, index: int, name: str) -> None:
        """Give an interface that is down another name."""
        self._request(RTM_SETLINK, link_body(index) + text(IFLA_IFNAME, name))

    def set_alias(self, name: str, alias: str) -> None:
        """Put a note on an interface, which the kernel ignores while it makes one."""
        body = link_body() + text(IFLA_IFNAME, name) + text(IFLA_IFALIAS, alias)
        self._request(RTM_SETLINK, body)

    def set_mac(self, name: str, mac: str) -> None:
        """Give an interface a MAC address."""
        body = link_body() + text(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, mac_bytes(mac))
        self._request(RTM_SETLINK, body)

    def set_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """Give an interface an address, or leave it if it has it."""
        body = address_body(index, address)
        self._request(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_REPLACE)

    def set_hairpin(self, index: int) -> None:
        """Let a bridge send a packet back through the port, by its index, that it came from."""
        fixed = _LINK.pack(socket.AF_BRIDGE, 0, index, 0, 0)
        body = fixed + nested(IFLA_PROTINFO, attribute(IFLA_BRPORT_MODE, b"\1"))
        self._request(RTM_SETLINK, body)

    def shape(self, index: int, *, rate: int, burst: int, limit: int) -> None:
        """Let no more than so many bytes a second out of an interface; see `tbf_body`."""
        body = tbf_body(index, rate=rate, burst=burst, limit=limit)
        self._request(RTM_NEWQDISC, body, NLM_F_CREATE | NLM_F_REPLACE)

    def set_default_route(self, index: int, gateway: IPv4Address | IPv6Address) -> None:
        """Set the default route, or replace it."""
        body = default_route_body(index, gateway)
        self._request(RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_REPLACE)
