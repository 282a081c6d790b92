"""The options of ``run`` and ``create`` that say how a container is connected."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from ipaddress import ip_address

from pymigrate.migrate.amounts import NOTHING, bandwidth
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.names import HOST_GATEWAY
from pymigrate.runtime.state import BRIDGE, Names, NetworkSettings, Port

_WORD = re.compile(r"[!-~]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def port(text: str) -> Port:
    """Read ``[IP:]HOST:CTR[/tcp|udp]``."""
    numbers, _, protocol = text.partition("/")
    host_ip, _, rest = numbers.rpartition(":")[0].rpartition(":")
    words = (rest, numbers.rpartition(":")[2])
    found = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 6]
    host_ip = host_ip.removeprefix("[").removesuffix("]")
    try:
        address = str(ip_address(host_ip)) if host_ip else None
    except ValueError:
        found = []
    if (
        len(found) != 2
        or not all(0 < number < 65536 for number in found)
        or protocol not in ("", "tcp", "udp")
    ):
        raise UsageError(
            f"-p {text}: not [IP:]HOST:CTR[/tcp|udp]; {NOTHING}",
            hint="such as 8080:80 or 127.0.0.1:5353:53/udp",
        )
    return Port(found[0], found[1], protocol or "tcp", address)


def ports(texts: Sequence[str]) -> tuple[Port, ...]:
    """Read every ``-p``."""
    found = tuple(port(text) for text in texts)
    places = [(each.host_ip, each.host, each.protocol) for each in found]
    if len(set(places)) < len(places):
        raise UsageError(f"-p: one port of the host is given twice; {NOTHING}")
    return found


def network(
    mode: str,
    bridge: str | None,
    ip: str | None,
    mac: str | None,
    *,
    ip6: str | None = None,
    published: Sequence[str] = (),
    rate: str | None = None,
    found_by: Names | None = None,
) -> NetworkSettings:
    """Read how it is connected; the address is still without what the bridge gives."""
    if mode not in ("bridge", "none", "host") and not (mode.startswith("ns:/")):
        raise UsageError(
            f"--net {mode}: unknown; {NOTHING}",
            hint="bridge, none, host, or ns:PATH with an absolute path",
        )
    if mode != "bridge" and (ip or ip6 or mac):
        raise UsageError(f"--ip, --ip6 and --mac go with --net bridge only; {NOTHING}")
    if mode != "bridge" and (published or rate):
        raise UsageError(f"-p and --bandwidth go with --net bridge only; {NOTHING}")
    if mac is not None:
        from pymigrate.runtime.addresses import check_mac

        mac = check_mac(mac)
    return NetworkSettings(
        mode=mode,
        bridge=bridge or BRIDGE,
        address=ip,
        address6=ip6,
        mac=mac,
        ports=ports(published),
        bandwidth=bandwidth(rate) if rate is not None else None,
        names=found_by or Names(),
    )


def names(arguments: argparse.Namespace) -> Names:
    """Read ``--dns``, ``--dns-search``, ``--dns-option`` and ``--add-host``."""
    for text in arguments.dns:
        _check_address(text, f"--dns {text}")
    for option, texts in (("search", arguments.dns_search), ("option", arguments.dns_option)):
        for text in texts:
            if not _WORD.fullmatch(text):
                raise UsageError(f"--dns-{option} {text}: not one word; {NOTHING}")
    lines = []
    for text in arguments.add_host:
        name, colon, address = text.partition(":")
        if not colon or not _HOST.fullmatch(name):
            raise UsageError(
                f"--add-host {text}: not NAME:ADDRESS; {NOTHING}", hint="such as db:10.88.0.7"
            )
        if address != HOST_GATEWAY:
            _check_address(address, f"--add-host {text}")
        lines.append(f"{address} {name}")
    given = (arguments.dns, arguments.dns_search, arguments.dns_option, lines)
    return Names(*map(tuple, given))


def _check_address(text: str, said: str) -> None:
    try:
        ip_address(text)
    except ValueError as error:
        raise UsageError(f"{said}: {text!r} is not an address; {NOTHING}") from error


def network_asked(arguments: argparse.Namespace, mode: str) -> NetworkSettings:
    """Read how it is connected from run's options, but for ``--net``, which is `mode`."""
    return network(
        mode,
        arguments.bridge,
        arguments.ip,
        arguments.mac,
        ip6=arguments.ip6,
        published=arguments.publish,
        rate=arguments.bandwidth,
        found_by=names(arguments),
    )
