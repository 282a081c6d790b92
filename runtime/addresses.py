"""Which address, MAC address and interface name a container gets; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from ipaddress import ip_interface as _ip_interface

from pymigrate.runtime.digests import sha256
from pymigrate.runtime.errors import HostError, UsageError

SUBNET = "10.88.0.1/16"  # podman's network; the address is the bridge's own, the gateway
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def parse(address: str) -> IPv4Interface | IPv6Interface:
    """Read an address with its prefix length, such as "10.88.0.5/16"."""
    try:
        if "/" not in address:
            raise ValueError("no prefix length")
        return _ip_interface(address)
    except ValueError as error:
        raise UsageError(
            f"{address!r} is not an address with its prefix length", hint="such as 10.88.0.5/16"
        ) from error


def parse_for_container(address: str) -> IPv4Interface | IPv6Interface:
    """Read an address as `parse` does; UsageError also for one that no container can have."""
    found = parse(address)
    ip, network = found.ip, found.network
    first_and_last = {network.network_address, network.broadcast_address}
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        reason = "is no address of a single machine on a network"
    elif network.num_addresses > 2 and ip in first_and_last:
        reason = f"is the network {network} itself or its broadcast address"
    elif ip == parse(SUBNET).ip:
        reason = "is the bridge's own"
    else:
        return found
    raise UsageError(f"{ip} {reason}", hint="such as 10.88.0.5/16")


def parse_second(address: str) -> IPv6Interface:
    """Read the IPv6 address that a container has beside its first one; /64 unless it says so."""
    found = parse_for_container(address if "/" in address else f"{address}/64")
    if not isinstance(found, IPv6Interface):
        raise UsageError(f"{address} is no IPv6 address", hint="such as fd00:88::5/64")
    return found


def second_gateway(address: IPv6Interface) -> str | None:
    """Return where our bridge is on the network of such an address; None if it has no room."""
    first = address.network.network_address + 1
    return str(first) if address.network.num_addresses > 2 and first != address.ip else None


def parse_gateway(gateway: str) -> IPv4Address | IPv6Address:
    """Read the address of a gateway."""
    try:
        return ip_address(gateway)
    except ValueError as error:
        raise UsageError(f"{gateway!r} is not the address of a gateway") from error


def mac_for(address: str) -> str:
    """Return a MAC address that follows from the IP address, so that neighbours' caches stay true.

    02 is a locally administered address of one interface (IEEE 802c); six bytes with colons.
    """
    packed = parse(address).ip.packed
    if len(packed) != 4:
        packed = sha256(packed).digest()[:4]
    return ":".join(f"{byte:02x}" for byte in b"\x02\x70" + packed)


def check_mac(mac: str) -> str:
    """Return the MAC address in lower case; UsageError if it cannot be an interface's."""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac.strip("0:") == "":
        raise UsageError(
            f"{mac!r} is not the MAC address of one interface", hint="such as 02:70:0a:58:00:05"
        )
    return mac.lower()


def interface_name(host_id: str, name: str) -> str:
    """Return the name of the host's end of a container's cable: 14 characters of at most 15.

    Hashed, since names are longer, and since two roots on one machine may use the same ones.
    """
    return "pm" + sha256(f"{host_id}/{name}".encode()).hexdigest()[:12]


def choose_address(taken: Iterable[str | None], subnet: str = SUBNET) -> str:
    """Return the lowest address of the subnet that is neither the gateway's nor taken.

    ``taken`` are addresses with or without prefix length; None is skipped.
    """
    gateway = parse(subnet)
    used = {gateway.ip} | {ip_address(each.partition("/")[0]) for each in taken if each}
    for candidate in gateway.network.hosts():
        if candidate not in used:
            return f"{candidate}/{gateway.network.prefixlen}"
    raise HostError(f"all addresses of {gateway.network} are taken")
