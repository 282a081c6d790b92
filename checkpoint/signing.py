"""Signatures of checkpoints: Ed25519 (RFC 8032), with keys as ssh-keygen(1) makes them.

What is signed is the list of the SHA-256 of all members, so everything. The signature comes with
the public key, which proves nothing alone: whoever restores says whose signatures count.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.runtime import digests
from pymigrate.runtime.errors import BadArchive, UsageError
from pymigrate.runtime.values import dataclass

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIZE = 256
"""Bytes of a signature with its key, as it lies in an archive: padded, to be known beforehand."""

_CONTEXT = b"pymigrate checkpoint 1: sums\n"
_KIND = "ssh-ed25519"
_MAX_KEYS = 1 << 20  # bytes of a file of keys
_RAW = 32  # bytes of a public key


@dataclass(frozen=True)
class Signer:
    """A private key."""

    key: Ed25519PrivateKey

    @classmethod
    def read(cls, path: Path) -> Signer:
        """Read a private key without passphrase, in OpenSSH's or PEM format; raises UsageError."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        data = _content(path)
        is_openssh = data.startswith(b"-----BEGIN OPENSSH")
        load = serialization.load_ssh_private_key if is_openssh else None
        try:
            key = (load or serialization.load_pem_private_key)(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _unusable(path, f"cannot be read as a private key ({error})") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise _unusable(path, "is no Ed25519 key")
        return cls(key)

    def sign(self, text: bytes) -> bytes:
        """Return the signature of a text, with the public key."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        document = {"key": public.hex(), "signature": self.key.sign(_CONTEXT + text).hex()}
        return json.dumps(document).encode().ljust(SIZE)


def signer_of(text: bytes, signature: bytes) -> bytes:
    """Return the public key whose signature of a text this is; raises BadArchive."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        document = json.loads(signature)
        public, signed = (bytes.fromhex(str(document[name])) for name in ("key", "signature"))
        Ed25519PublicKey.from_public_bytes(public).verify(signed, _CONTEXT + text)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadArchive(f"its signature is damaged: {error!r}") from error
    except InvalidSignature as error:
        raise BadArchive("its signature is not of what it holds") from error
    return public


def read_public(path: Path) -> frozenset[bytes]:
    """Read whose signatures count: lines as in id_ed25519.pub; raises UsageError."""
    found = set()
    for line in _content(path).decode("utf-8", "replace").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            blob = base64.b64decode(words[words.index(_KIND) + 1], validate=True)
        except (ValueError, IndexError) as error:
            raise _unusable(path, f"has a line that is no {_KIND} key: {line[:60]!r}") from error
        if blob[:-_RAW] != _prefix():
            raise _unusable(path, f"has a key that is no {_KIND} key")
        found.add(blob[-_RAW:])
    if not found:
        raise _unusable(path, "has no key in it")
    return frozenset(found)


def fingerprint(public: bytes) -> str:
    """Name a public key as ssh-keygen -l does."""
    digest = digests.sha256(_prefix() + public).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _prefix() -> bytes:
    """Return what comes before the 32 bytes of a public key (RFC 8709 section 4)."""
    kind = _KIND.encode()
    return len(kind).to_bytes(4, "big") + kind + _RAW.to_bytes(4, "big")


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_KEYS)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error


def _unusable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} {why}; nothing was changed", hint="ssh-keygen -t ed25519 -N '' -f FILE makes a key"
    )
