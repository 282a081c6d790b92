"""All that is needed to reach one host: what was typed, then ssh_config(5), then what is usual."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime.errors import UsageError
from pymigrate.transport.destination import Destination
from pymigrate.transport.known_hosts import host_name


@dataclass(frozen=True)
class Timeouts:
    """Seconds allowed for each part of getting a connection."""

    connect: float = 10.0
    banner: float = 15.0
    authentication: float = 30.0
    start: float = 15.0  # opening the session in which the agent runs


@dataclass(frozen=True)
class Settings:
    """How to reach one host."""

    name: str  # as the person wrote it
    host: str
    port: int
    user: str
    identities: tuple[Path, ...]  # named by the person or the configuration
    identities_only: bool
    known_hosts: tuple[Path, ...]
    host_key_name: str  # under which known_hosts has its key
    proxy_command: str | None = None
    jumps: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Name the host and, if it is not the usual one, the port."""
        return host_name(self.host, self.port)


def config_text(destination: Destination, ssh_config: Path | None) -> str:
    """Give the SSH configuration, with what was typed in front: the first value wins.

    Without ``ssh_config`` it is ~/.ssh/config, if there is one. Raises UsageError.
    """
    first = ["Host *"]
    if destination.port is not None:
        first.append(f"Port {destination.port}")
    if destination.user is not None:
        first.append(f"User {destination.user}")
    file = ssh_config or Path("~/.ssh/config").expanduser()
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError as error:
        if ssh_config is not None:
            message = f"there is no SSH configuration {ssh_config}"
            raise UsageError(message) from error
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        message = f"the SSH configuration {file} cannot be read: {error}"
        raise UsageError(message) from error
    return "\n".join([*first, text])


def settle(
    destination: Destination,
    options: Mapping[str, str | list[str]],
    *,
    identity: Path | None = None,
    known_hosts: Path | None = None,
) -> Settings:
    """Make settings of the configuration's options for this host; raises UsageError."""

    def option(name: str, usual: str) -> str:
        value = options.get(name, usual)
        return value if isinstance(value, str) else usual

    port_text = option("port", "22")
    if not port_text.isdecimal() or not 0 < int(port_text) < 65536:
        message = f"the SSH configuration gives {destination} the port {port_text!r}"
        raise UsageError(message)
    port = int(port_text)
    identities = [Path(name).expanduser() for name in options.get("identityfile", [])]
    if identity is not None:
        if not identity.is_file():
            message = f"there is no key {identity}"
            raise UsageError(message, hint="--identity names a private key's file")
        identities.insert(0, identity)
    files = [known_hosts] if known_hosts is not None else []
    if not files:
        names = option("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2").split()
        names += option("globalknownhostsfile", "/etc/ssh/ssh_known_hosts").split()
        files = [Path(name).expanduser() for name in names if name != "none"]
    host = option("hostname", destination.host)
    proxy = option("proxycommand", "none")
    jumps = option("proxyjump", "none")
    return Settings(
        name=str(destination),
        host=host,
        port=port,
        user=option("user", "") or getpass.getuser(),
        identities=tuple(identities),
        identities_only=option("identitiesonly", "no").lower() == "yes",
        known_hosts=tuple(files),
        host_key_name=option("hostkeyalias", host_name(host, port)),
        proxy_command=None if proxy == "none" else proxy,
        jumps=() if proxy != "none" or jumps == "none" else tuple(jumps.split(",")),
    )
