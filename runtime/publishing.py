"""Ports of the host that lead into a container, and the way out of a bridge of ours.

Each container with ports has a table of its own, so that its removal touches nobody else's rules.
The ports are also held by sockets of the supervisor: the kernel then refuses them to others, us
among them, and gives them back when the supervisor ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path

from pymigrate.runtime import addresses, nftables
from pymigrate.runtime.errors import HostError, MissingFeature
from pymigrate.runtime.rtnetlink import Links
from pymigrate.runtime.state import NetworkSettings, Port

_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - nothing listens
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def rules(settings: NetworkSettings, gateways_here: Collection[str]) -> str:
    """Return the table of a container's ports, for each of its addresses.

    A client's own address reaches the container where the container's way back leads through this
    host (its gateway is in ``gateways_here``); else the host asks in its own name.
    """
    bridge = nftables.checked_name(settings.bridge)
    lead: list[str] = []
    answer: list[str] = []
    guard = ""
    for address, gateway in _ways(settings):
        first, second = _rules_of(settings, address, gateway_here=gateway in gateways_here)
        lead += first
        answer += second
        if address.version == 4:
            # For the host's own clients of 127.0.0.1 the bridge routes loopback addresses
            # (route_localnet); who sits on the bridge must not reach the host's loopback by that.
            guard = (
                " chain guard {\n  type filter hook prerouting priority -300;\n"
                f'  iifname "{bridge}" ip daddr 127.0.0.0/8 drop\n }}\n'
            )
    body = "\n".join(lead)
    return (
        guard + " chain arriving {\n  type nat hook prerouting priority -100;\n" + body + "\n }\n"
        " chain local {\n  type nat hook output priority -100;\n" + body + "\n }\n"
        " chain leaving {\n  type nat hook postrouting priority 100;\n"
        + "\n".join(answer)
        + "\n }\n"
    )


def _rules_of(
    settings: NetworkSettings, address: IPv4Address | IPv6Address, *, gateway_here: bool
) -> tuple[list[str], list[str]]:
    """Return the rules by which one address is reached, and those for the answers."""
    family, target, loopback = "ip", str(address), "127.0.0.0/8"
    if address.version == 6:
        family, target, loopback = "ip6", f"[{address}]", "::1"
    lead, answer = [], []
    for port in settings.ports:
        if not _leads_by(port, address.version):
            continue
        where = f"{family} daddr {port.host_ip}" if port.host_ip else "fib daddr type local"
        lead.append(
            f"  meta nfproto ipv{address.version} {where} "
            f"{port.protocol} dport {port.host} dnat {family} to {target}:{port.container}"
        )
        from_itself = "" if not gateway_here else f"{family} saddr {{ {loopback}, {address} }} "
        answer.append(
            f"  {family} daddr {address} {port.protocol} dport {port.container} ct status dnat "
            f"{from_itself}masquerade"
        )
    return lead, answer


def _ways(settings: NetworkSettings) -> list[tuple[IPv4Address | IPv6Address, str | None]]:
    """Return the container's addresses, each with its gateway."""
    both = ((settings.address, settings.gateway), (settings.address6, settings.gateway6))
    return [(addresses.parse(text).ip, gateway) for text, gateway in both if text]


def _leads_by(port: Port, version: int) -> bool:
    return port.host_ip is None or ip_address(port.host_ip).version == version


def hold(settings: NetworkSettings, name: str) -> list[socket.socket]:
    """Hold the host's ports for as long as the sockets are open, which the caller owns.

    Raises:
        HostError: one is in use, or of a kind of address that the container has none of; none is
            held then.

    """
    versions = {address.version for address, _ in _ways(settings)}
    with contextlib.ExitStack() as failed:
        held = []
        for port, version in itertools.product(settings.ports, sorted(versions)):
            if not any(_leads_by(port, each) for each in versions):
                raise HostError(
                    f"port {port.host} of {port.host_ip} cannot lead to {name}: it has no address "
                    "of that kind",
                    hint="--ip6 gives it an IPv6 address",
                )
            if not _leads_by(port, version):
                continue
            family = socket.AF_INET6 if version == 6 else socket.AF_INET
            one = failed.enter_context(socket.socket(family, _KINDS[port.protocol]))
            if version == 6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((port.host_ip or _ANY[version], port.host))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                    raise
                raise HostError(
                    f"port {port.host}/{port.protocol} of this host cannot be given to {name}: "
                    f"{error.strerror}",
                    hint="another container or program has it; ss -lntup shows the programs",
                ) from error
            held.append(one)
        failed.pop_all()
        return held


def publish(settings: NetworkSettings, table: str) -> None:
    """Let the ports lead to the container; a second time does nothing new."""
    if not settings.ports:
        return
    with Links() as links:
        here = {str(each.ip) for _, each in links.addresses()}
    nftables.replace_table(table, rules(settings, here))
    for address, _ in _ways(settings):
        if address.version == 4:
            _set(f"net/ipv4/conf/{settings.bridge}/route_localnet", "1")
        _forward(address.version)


def unpublish(table: str) -> None:
    """Remove the rules; they need not be there."""
    nftables.remove_table(table)


def open_way_out(bridge: str, address: IPv4Interface | IPv6Interface) -> None:
    """Let what is on a bridge of ours reach the world in the host's name.

    Without nft it reaches what the host's own rules allow: that is no reason not to start.
    """
    family = "ip" if address.version == 4 else "ip6"
    name = nftables.checked_name(bridge)
    with contextlib.suppress(MissingFeature):
        nftables.replace_table(
            _way_out(name),
            " chain leaving {\n  type nat hook postrouting priority 100;\n"
            f'  {family} saddr {address.network} oifname != "{name}" '
            f"{family} daddr != {address.network} masquerade\n }}\n",
        )
        _forward(address.version)


def close_way_out(bridge: str) -> None:
    """Undo ``open_way_out``, but for forwarding, which others may need by now."""
    nftables.remove_table(_way_out(bridge))


def _way_out(bridge: str) -> str:
    return f"pymigrate-{bridge}"


def _forward(version: int) -> None:
    _set(_FORWARDING[version], "1")


def _set(name: str, value: str) -> None:
    """Set a sysctl of the caller's network namespace unless it is so."""
    path = Path("/proc/sys") / name
    with _told(name):
        if path.read_text(encoding="ascii").strip() != value:
            path.write_text(value, encoding="ascii")


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"cannot set {name.replace('/', '.')}: {error.strerror}",
            hint="published ports and the way out need it",
        ) from error
