"""Where to: [USER@]HOST[:PORT] as a person types it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pymigrate.runtime.errors import UsageError

_FORM = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?"
    r"(?:\[(?P<bracketed>[0-9A-Za-z:.%_-]+)\]|(?P<bare>[^\s@\[\]/:]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True)
class Destination:
    """A host to reach by SSH; what is None comes from the SSH configuration, or is usual."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read [USER@]HOST[:PORT]; an IPv6 address with a port goes in brackets."""
        hint = "write [USER@]HOST[:PORT]; an IPv6 address as [::1]:22"
        colons = text.rpartition("@")[2].count(":")
        if colons > 1 and "[" not in text:
            user, at, host = text.rpartition("@")
            text = f"{user}{at}[{host}]"
        match = _FORM.fullmatch(text)
        # A leading dash would be an option for a ProxyCommand's ssh.
        if match is None or text.startswith("-") or "@-" in text:
            message = f"{text!r} is not a host"
            raise UsageError(message, hint=hint)
        host = match["bracketed"] or match["bare"]
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 0 < port < 65536:
            message = f"{text!r}: there is no port {port}"
            raise UsageError(message, hint=hint)
        return cls(host, match["user"], port)

    def __str__(self) -> str:
        """Write it as it is typed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.user}@{host}{port}" if self.user else f"{host}{port}"
