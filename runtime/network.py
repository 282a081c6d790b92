"""The cable of a container: a veth pair from its network namespace to a bridge of the host.

Unplugged, the host's end is down: the container keeps addresses, routes and connections, packets
in either direction are dropped without an answer, and nobody gets a reset. Plugged, it is up and
forwards at once (a bridge without spanning tree has no learning phase). IPv4; filters such as
rp_filter are left as the host has them. Only where we make the bridge, and give it an address, do
we translate what leaves it (publishing.py): in another one somebody has put a network card.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Protocol

from pymigrate.runtime import addresses, arp, publishing, rtnetlink
from pymigrate.runtime.addresses import SUBNET, choose_address, interface_name
from pymigrate.runtime.deadline import Deadline
from pymigrate.runtime.errors import HostError, UsageError
from pymigrate.runtime.netns import inside, new_namespace
from pymigrate.runtime.rtnetlink import Link, Links

__all__ = [
    "SUBNET",
    "address_holders",
    "address_in_use",
    "attach",
    "choose_address",
    "close_soon",
    "detach",
    "ensure_bridge",
    "interface_name",
    "mac_of",
    "new_namespace",
    "packet_socket",
    "plug",
    "unplug",
]

# The alias (ip link show) of bridges that we made, and so may remove.
ALIAS = "pymigrate"
_FRESH = "pymnew-"  # how they are called until they are ready
_PACKET_BYTES = 2048
ANSWER_SECONDS = 0.12
"""For three probes to be answered; a neighbour that is awake needs a millisecond."""
_FORWARDING_SECONDS = 2.0
_LARGEST_SEGMENT = 66 * 1024  # GSO_LEGACY_MAX_SIZE of the kernel, with headers


class Settings(Protocol):
    """What is asked of a network; state.NetworkSettings has it."""

    @property
    def mode(self) -> str:
        """Return "bridge", "none", "host" or "ns:PATH"."""

    @property
    def bridge(self) -> str:
        """Return the bridge's name on the host."""

    @property
    def interface(self) -> str:
        """Return the interface's name in the container."""

    @property
    def address(self) -> str | None:
        """Return the address with its prefix length."""

    @property
    def gateway(self) -> str | None:
        """Return the address of the default route's gateway."""

    @property
    def address6(self) -> str | None:
        """Return the IPv6 address that it has beside the other one."""

    @property
    def gateway6(self) -> str | None:
        """Return the address of the default route's gateway for IPv6."""

    @property
    def ports(self) -> Sequence[object]:
        """Return the ports of the host that lead in."""

    @property
    def bandwidth(self) -> int | None:
        """Return the bits a second that may pass in each direction; None: all."""

    @property
    def mac(self) -> str | None:
        """Return the MAC address; None: it follows from the address."""


def mac_of(settings: Settings) -> str | None:
    """Return the MAC address that the container has; None if the kernel chooses."""
    if settings.mac:
        return addresses.check_mac(settings.mac)
    return addresses.mac_for(settings.address) if settings.address else None


def ensure_bridge(name: str, subnet: str = SUBNET) -> None:
    """Make a bridge with the subnet's address unless there is one of this name.

    An existing bridge is used as it is, with or without an address: someone has put the network
    card or a lab into it.
    """
    with _told(f"cannot make bridge {name}"), _one_at_a_time(), Links() as links:
        _bridge(links, name, addresses.parse(subnet))


def attach(settings: Settings, netns_fd: int, host_interface: str, *, plugged: bool) -> None:
    """Give a network namespace of ours its loopback and, in mode "bridge", its cable.

    Makes the bridge if there is none. May be repeated; on failure nothing is left but the
    loopback, which is up. In modes "host" and "ns:PATH" the namespace is not ours: nothing is done.
    """
    if settings.mode not in ("bridge", "none"):
        return
    address = addresses.parse(settings.address) if settings.address else None
    gateway = addresses.parse_gateway(settings.gateway) if settings.gateway else None
    second = addresses.parse_second(settings.address6) if settings.address6 else None
    gateway6 = addresses.parse_gateway(settings.gateway6) if settings.gateway6 else None
    mac = mac_of(settings)
    name = settings.interface
    with contextlib.ExitStack() as undo:
        undo.enter_context(_told(f"cannot connect {host_interface} to {settings.bridge}"))
        inner = undo.enter_context(Links(inside(netns_fd, rtnetlink.open_socket)))
        inner.set_up("lo", up=True)
        if settings.mode == "none":
            return
        outer = undo.enter_context(Links())
        with contextlib.ExitStack() as failed:
            with _one_at_a_time():
                bridge = _bridge(outer, settings.bridge, _bridge_address(settings))
                if second and gateway6:
                    _add_gateway(outer, bridge, f"{gateway6}/{second.network.prefixlen}")
                failed.callback(detach, host_interface)
                _pair(outer, inner, host_interface, settings, bridge, netns_fd)
            inside(netns_fd, lambda: _without_waiting(name))
            end = inner.find(name)
            if end is None:
                raise HostError(f"{name} has disappeared from the container")
            if mac and end.mac != mac:
                inner.set_mac(name, mac)
            _set_ways(inner, end, ((address, gateway), (second, gateway6)))
            if settings.ports:
                # Where bridges ask the rules (br_netfilter), what the container sends to its own
                # published port is turned round inside the bridge.
                outer.set_hairpin(end.peer_index)
            if settings.bandwidth:
                for links, index in ((inner, end.index), (outer, end.peer_index)):
                    _shape(links, index, settings.bandwidth)
            if plugged:
                _plug(outer, host_interface)
            else:
                outer.set_up(host_interface, up=False)
            failed.pop_all()


def _add_gateway(links: Links, bridge: Link, address: str) -> None:
    """Give a bridge of ours an address more: it need not have been made for who comes now."""
    if bridge.alias == ALIAS:
        links.set_address(bridge.index, addresses.parse(address))


def _set_ways(
    links: Links,
    end: Link,
    ways: Sequence[tuple[IPv4Interface | IPv6Interface | None, IPv4Address | IPv6Address | None]],
) -> None:
    """Give the container's end its addresses, then (it must be up for those) their gateways."""
    for address, _ in ways:
        if address:
            links.set_address(end.index, address)
    links.set_up(end.name, up=True)
    for _, gateway in ways:
        if gateway:
            links.set_default_route(end.index, gateway)


def _shape(links: Links, index: int, bandwidth: int) -> None:
    """Limit one end's sending; both ends send, so both directions are limited.

    The bucket holds 20 ms, and at least one segment as large as offloading makes them; up to
    100 ms wait in the queue, which is as much as TCP needs to fill the rate.
    """
    rate = bandwidth // 8
    burst = max(rate // 50, _LARGEST_SEGMENT)
    links.shape(index, rate=rate, burst=burst, limit=burst + rate // 10)


def _bridge_address(settings: Settings) -> IPv4Interface | IPv6Interface | None:
    """Return what a bridge that we must make for a container is to be reached by."""
    if settings.address is None:
        return None
    network = addresses.parse(settings.address).network
    if settings.gateway:
        return addresses.parse(f"{settings.gateway}/{network.prefixlen}")
    default = addresses.parse(SUBNET)
    return default if network == default.network else None


def _bridge(links: Links, name: str, address: IPv4Interface | IPv6Interface | None) -> Link:
    found = links.find(name) or _make_bridge(links, name, address)
    if found.kind != "bridge":
        raise UsageError(f"interface {name} is there and is not a bridge")
    if found.alias == ALIAS and not found.up:  # new, or its maker was killed before this
        if address:
            publishing.open_way_out(name, address)
        links.set_up(name, up=True)
    return found


def _make_bridge(links: Links, name: str, address: IPv4Interface | IPv6Interface | None) -> Link:
    """Make a bridge that is down, under a name that `detach` knows, and then give it its own.

    The kernel takes no alias with the order to make it: who died in between would leave a bridge
    that is nobody's, or is used without its address.
    """
    fresh = f"{_FRESH}{os.urandom(4).hex()}"
    links.add(rtnetlink.bridge_body(fresh, bytes([2, *os.urandom(5)]).hex(":")))
    try:
        links.set_alias(fresh, ALIAS)
        _without_waiting(fresh)
        made = links.find(fresh)
        if made is None:
            raise HostError(f"bridge {name} has disappeared")
        if address:
            links.set_address(made.index, address)
        links.set_name(made.index, name)
    except OSError:
        links.delete(fresh)
        raise
    return links.find(name) or made


def _pair(
    outer: Links, inner: Links, host_interface: str, settings: Settings, bridge: Link, fd: int
) -> None:
    """Make the two ends, unless they are there from an earlier attempt."""
    ours, theirs = outer.find(host_interface), inner.find(settings.interface)
    if ours and theirs and theirs.peer_index == ours.index:
        if ours.master != bridge.index:
            outer.set_master(host_interface, bridge.index)
        return
    if ours:
        outer.delete(host_interface)  # its other end is in a namespace that is given up
    outer.add(
        rtnetlink.veth_body(
            host_interface,
            master=bridge.index,
            mtu=bridge.mtu,
            peer=settings.interface,
            peer_mac=mac_of(settings),
            peer_netns_fd=fd,
        )
    )


def _without_waiting(interface: str) -> None:
    """Use IPv6 addresses at once: the address moves with the container, nobody else has it."""
    # Called inside the namespace: /proc/sys/net shows that of the thread that opens a file.
    try:
        with open(f"/proc/sys/net/ipv6/conf/{interface}/accept_dad", "w") as stream:  # noqa: PTH123
            stream.write("0")
    except OSError as error:
        # No IPv6, or /proc/sys is not ours to write: then the first second is without IPv6.
        if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES):
            raise


def set_parameters(netns_fd: int, parameters: Mapping[str, str]) -> None:
    """Set sysctls of a network namespace, by name (``net.core.somaxconn``).

    Raises:
        HostError: this kernel has none of this name, or refuses the value.

    """

    def write() -> None:
        for name, value in parameters.items():
            # Without its dots a name cannot lead out of /proc/sys.
            path = Path("/proc/sys", name.replace(".", "/"))
            with _told(f"cannot set the sysctl {name} to {value!r}"):
                path.write_text(value, encoding="ascii")

    if parameters:
        inside(netns_fd, write)


def plug(host_interface: str) -> None:
    """Connect the container to the bridge; it can be reached when this returns."""
    with _told(f"cannot plug {host_interface} in"), Links() as links:
        _plug(links, host_interface)


def _plug(links: Links, host_interface: str) -> None:
    """Switch the host's end on and wait until both ends and the bridge forward packets.

    The carrier is there at once, but until a work queue of the kernel (net/core/link_watch.c) has
    got to each of the three, the container's end throws packets away and the bridge's port is
    disabled. On a busy host that is long enough to lose an ARP request, which is repeated after a
    second, or the first segment of a connection. From Linux 6.8 on, asking for an interface makes
    the work be done first; before, one has to ask again.
    """
    links.set_up(host_interface, up=True)
    deadline, attempt = Deadline(_FORWARDING_SECONDS), 0
    # At the deadline it is plugged in all the same: a bridge with spanning tree takes longer.
    while not _forwards(links, host_interface) and not deadline.passed:
        deadline.back_off(attempt)
        attempt += 1


def _forwards(links: Links, host_interface: str) -> bool:
    end = links.find(host_interface)
    if end is None:
        raise HostError(f"{host_interface} has disappeared")
    if not end.up:
        return True  # unplugged again meanwhile, by someone else
    peer = links.get(end.peer_index, end.peer_netns)
    # An end that the container itself has switched off forwards nothing, as it wants.
    if peer and peer.up and not (end.forwards and peer.forwards):
        return False
    bridge = links.get(end.master) if end.master else None
    return not (bridge and bridge.up and peer and peer.up) or bridge.forwards


def unplug(host_interface: str) -> None:
    """Cut the container off; nothing is dropped but packets."""
    with _told(f"cannot unplug {host_interface}"), Links() as links:
        links.set_up(host_interface, up=False)


def detach(host_interface: str) -> None:
    """Remove the cable, and a bridge of ours that has none left; none of them need be there."""
    with _told(f"cannot remove {host_interface}"), _one_at_a_time(), Links() as links:
        try:
            links.delete(host_interface)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        everything = links.all()
        in_use = {each.master for each in everything}
        for each in everything:
            ours = each.alias == ALIAS or each.name.startswith(_FRESH)
            if each.kind == "bridge" and ours and each.index not in in_use:
                links.delete(each.name)
                publishing.close_way_out(each.name)


def address_in_use(
    settings: Settings, *, except_mac: str | None = None, timeout: float = ANSWER_SECONDS
) -> bool:
    """Tell whether someone on the host's bridge, or the host itself, has the address.

    ``except_mac``: a holder that does not count, namely the container itself while it still runs
    on another host of the same network.
    """
    return bool(address_holders(settings, timeout) - {except_mac})


def address_holders(settings: Settings, timeout: float = ANSWER_SECONDS) -> frozenset[str]:
    """Return the MAC addresses that answer for the address; waits ``timeout`` seconds if none.

    No bridge means no network and so nobody. An interface of this host counts with its own.
    """
    if settings.mode != "bridge" or not settings.address:
        return frozenset()
    ip = addresses.parse(settings.address).ip
    with _told(f"cannot ask who has {ip}"), Links() as links:
        here = {each.index: each for each in links.all()}
        bridge = next((each for each in here.values() if each.name == settings.bridge), None)
        own = {here[index].mac for index, each in links.addresses() if each.ip == ip}
        if own or bridge is None or not bridge.up or ip.version != 4:
            return frozenset(own)
        packets = packet_socket()
        try:
            packets.bind((bridge.name, arp.ETHERTYPE))
            return _ask(packets, bridge.mac, str(ip), timeout)
        finally:
            close_soon(packets)


def _ask(packets: socket.socket, mac: str, address: str, timeout: float) -> frozenset[str]:
    """Send three probes and return who says, or already keeps saying, that it has the address."""
    poll = select.poll()
    poll.register(packets, select.POLLIN)
    question = arp.probe(mac, address).frame()
    for _ in range(3):
        packets.send(question)
        end = time.monotonic() + timeout / 3
        while (left := end - time.monotonic()) > 0 and poll.poll(left * 1000):
            answer = arp.decode(packets.recv(_PACKET_BYTES))
            if answer and answer.sender_address == address and answer.sender_mac != mac:
                return frozenset({answer.sender_mac})
    return frozenset()


def packet_socket() -> socket.socket:
    """Make a socket that sends frames as they are, by any interface of its namespace."""
    # Protocol 0: nothing is received before bind() has named the interface and the protocol.
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


def close_soon(packets: socket.socket) -> None:
    """Close one of these in a thread: it waits for an RCU grace period, 10 ms nobody need wait."""
    threading.Thread(target=packets.close, name="close", daemon=True).start()


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an OSError of the kernel into a sentence."""
    try:
        yield
    except OSError as error:
        raise HostError(f"{what}: {error.strerror}") from error


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep others who change bridges in this network namespace waiting.

    The lock is on the namespace's own inode, so it is as wide as it must be, and leaves no file.
    """
    with open("/proc/thread-self/ns/net", "rb") as namespace:  # noqa: PTH123
        fcntl.flock(namespace, fcntl.LOCK_EX)
        yield
