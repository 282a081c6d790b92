"""Which host keys we know: known_hosts files as in sshd(8), which are read and never written.

Understands hashed names, wildcards, negation, [host]:port, several keys of one type, and @revoked.
A line of @cert-authority is passed over: certificates of hosts are not accepted.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pymigrate.runtime.errors import HostKeyMismatch


class Verdict(Enum):
    """What the files say about a key."""

    KNOWN = "known"
    UNKNOWN = "unknown"  # no line names this host
    CHANGED = "changed"  # lines name this host, with other keys
    REVOKED = "revoked"


@dataclass(frozen=True)
class Entry:
    """One line."""

    where: str  # "FILE:LINE"
    marker: str
    patterns: tuple[str, ...]
    key_type: str
    blob: bytes

    def names(self, host: str) -> bool:
        """Say whether the line is about ``host``."""
        found = False
        for pattern in self.patterns:
            negated = pattern.startswith("!")
            if _matches(pattern.removeprefix("!"), host):
                if negated:
                    return False
                found = True
        return found


def _matches(pattern: str, host: str) -> bool:
    if not pattern.startswith("|1|"):
        # Brackets stand for themselves here, "[host]:port"; only * and ? are wild.
        escaped = pattern.lower().replace("[", "[[]")
        return fnmatch.fnmatchcase(host.lower(), escaped)
    try:
        salt, digest = (base64.b64decode(part) for part in pattern[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    # The file format prescribes HMAC-SHA1; it only hides the names of the hosts.
    return hmac.compare_digest(hmac.new(salt, host.lower().encode(), hashlib.sha1).digest(), digest)


def host_name(host: str, port: int) -> str:
    """Write a host as known_hosts does."""
    return host if port == 22 else f"[{host}]:{port}"


def fingerprint(blob: bytes) -> str:
    """Give what ``ssh-keygen -l`` shows for a public key."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


class KnownHosts:
    """The lines of all files, in order."""

    def __init__(self, entries: Iterable[Entry], file: str = "~/.ssh/known_hosts") -> None:
        """Keep the entries; ``file`` is where a person would add one."""
        self.entries = tuple(entries)
        self.file = file

    @classmethod
    def load(cls, files: Sequence[Path]) -> KnownHosts:
        """Read the files that exist; OSError for one that exists and cannot be read."""
        entries: list[Entry] = []
        for file in files:
            try:
                text = file.read_text("utf-8", errors="replace")
            except FileNotFoundError:
                continue
            entries += parse(text, str(file))
        return cls(entries, str(files[0]) if files else "~/.ssh/known_hosts")

    def about(self, host: str) -> list[Entry]:
        """Give the keys that ``host`` may have."""
        return [e for e in self.entries if not e.marker and e.names(host)]

    def key_types(self, host: str) -> list[str]:
        """Give the types of the keys we know, so that the host is asked for one of these."""
        return list(dict.fromkeys(entry.key_type for entry in self.about(host)))

    def verdict(self, host: str, blob: bytes) -> Verdict:
        """Judge the key that a host presents (its public half, as on the wire)."""
        if any(e.marker == "@revoked" and e.blob == blob and e.names(host) for e in self.entries):
            return Verdict.REVOKED
        known = self.about(host)
        if any(entry.blob == blob for entry in known):
            return Verdict.KNOWN
        return Verdict.CHANGED if known else Verdict.UNKNOWN


def parse(text: str, file: str) -> list[Entry]:
    """Read the lines of one file; what is no entry is passed over, as ssh does."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if len(fields) < 3:
            continue
        try:
            blob = base64.b64decode(fields[2], validate=True)
        except (ValueError, binascii.Error):
            continue
        patterns = tuple(fields[0].split(","))
        entries.append(Entry(f"{file}:{number}", marker, patterns, fields[1], blob))
    return entries


def check(known: KnownHosts, host: str, port: int, name: str, key_type: str, blob: bytes) -> None:
    """Accept the key that a host shows, or raise HostKeyMismatch saying what to do.

    ``name`` is what known_hosts calls the host: see ``host_name``.
    """
    verdict = known.verdict(name, blob)
    shown = f"{key_type} {fingerprint(blob)}"
    if verdict is Verdict.KNOWN:
        return
    if verdict is Verdict.REVOKED:
        message = f"the host key of {name} is marked as revoked: it shows {shown}"
        raise HostKeyMismatch(message)
    if verdict is Verdict.UNKNOWN:
        message = f"the host key of {name} is not known: it shows {shown}"
        hint = (
            "compare it with `ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub` on that host,"
            f" then: ssh-keyscan -p {port} {host} >> {known.file}"
        )
        raise HostKeyMismatch(message, hint=hint)
    expected = ", ".join(
        f"{entry.key_type} {fingerprint(entry.blob)} ({entry.where})" for entry in known.about(name)
    )
    message = (
        f"the host key of {name} has changed, somebody may be in between:"
        f" it shows {shown}, known is {expected}"
    )
    hint = f"only if you know why: ssh-keygen -R '{name}' -f {known.file}, then add the new key"
    raise HostKeyMismatch(message, hint=hint)
