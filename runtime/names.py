"""What a container finds in /etc/hosts and /etc/resolv.conf. Pure."""

from __future__ import annotations

from pymigrate.runtime.state import Names, NetworkSettings

HOST_GATEWAY = "host-gateway"  # docker's and podman's word for the host itself
_LOOPBACK = "127.0.1.1"


def hosts(network: NetworkSettings, hostname: str, name: str) -> str:
    """Return /etc/hosts: what everybody has, what was asked for, the container itself."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    for each in network.names.hosts:
        address, _, host = each.partition(" ")
        if address == HOST_GATEWAY:
            address = network.gateway or "127.0.0.1"  # without a bridge it is in the host's network
        lines.append(f"{address}\t{host}")
    own = (network.address or _LOOPBACK, network.address6)
    lines += [f"{each.partition('/')[0]}\t{hostname} {name}" for each in own if each is not None]
    return "\n".join(lines) + "\n"


def resolv_conf(of_host: str, names: Names) -> str:
    """Return the host's resolv.conf with what was asked for in place of what it says of that."""
    given = {
        ("nameserver",): [f"nameserver {each}" for each in names.servers],
        ("search", "domain"): [f"search {' '.join(names.search)}"] if names.search else [],
        ("options",): [f"options {' '.join(names.options)}"] if names.options else [],
    }
    replaced = {word for words, lines in given.items() if lines for word in words}
    if not replaced:
        return of_host
    kept = [line for line in of_host.splitlines() if not replaced & set(line.split()[:1])]
    return "\n".join([*(line for lines in given.values() for line in lines), *kept]) + "\n"
