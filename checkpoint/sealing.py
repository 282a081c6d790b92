"""The keys of a repository: names of chunks, and authenticated encryption of what is stored.

One random master key; everything else is derived from it by HKDF-SHA256 (RFC 5869). What is stored
is always sealed by AES-256-GCM (NIST SP 800-38D), whose tag finds every altered bit. Where the
repository has no secret, the master key lies in its configuration, so that whoever may read the
directory may read the snapshots; with one it lies there wrapped by a key that scrypt (RFC 7914)
makes of the secret.

Each file has a random name and, derived from it, a key of its own: so a plain counter is a nonce
that is never used twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pymigrate.runtime import digests
from pymigrate.runtime.errors import BadArchive, UsageError
from pymigrate.runtime.values import dataclass

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ID_BYTES = 16
"""Length of a chunk's name: HMAC-SHA256, truncated (RFC 2104 section 5)."""

NAME_BYTES = 16
"""Length of the random name of a pack or snapshot."""

MASTER_BYTES = 32
TAG_BYTES = 16
MAX_SECRET = 1 << 16  # bytes of a key file
_BLOCK = 64  # of SHA-256
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}  # 32 MiB and 0.1 s
_MAX_SCRYPT = 256 << 20  # bytes of memory that a key may cost whoever unwraps it
_HEX_CONFIG = ("salt", "wrapped")


class Damaged(BadArchive):
    """Sealed bytes are not those that were written, or were written under another key or name."""


class Sealer:
    """Seals the numbered parts of one file."""

    def __init__(self, cipher: AESGCM, context: bytes) -> None:
        """Take the cipher of this file and what is bound to each of its parts."""
        self._cipher = cipher
        self._context = context

    def seal(self, number: int, plain: bytes) -> bytes:
        """Seal a part; the same number must never be given to two different parts."""
        return self._cipher.encrypt(number.to_bytes(12, "big"), plain, self._context)

    def open(self, number: int, sealed: bytes) -> bytes:
        """Return what was sealed as this part; raises Damaged."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(number.to_bytes(12, "big"), sealed, self._context)
        except (InvalidTag, ValueError) as error:
            raise Damaged(f"part {number} is not what was written") from error


@dataclass(frozen=True)
class Keys:
    """What a repository's master key gives."""

    master: bytes

    @classmethod
    def make(cls) -> Keys:
        """Make new ones."""
        return cls(os.urandom(MASTER_BYTES))

    def derive(self, purpose: str, salt: bytes = b"") -> bytes:
        """Return 32 bytes for one purpose."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        info = b"pymigrate repository 1: " + purpose.encode()
        return HKDF(SHA256(), 32, salt or None, info).derive(self.master)

    def sealer(self, purpose: str, name: bytes, context: bytes = b"") -> Sealer:
        """Return the sealer of the file with this random name; the context is authenticated."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return Sealer(AESGCM(self.derive(purpose, name)), context)

    def naming(self, purpose: str = "chunk names") -> Callable[[bytes | memoryview], bytes]:
        """Return the function that names a chunk by its content: HMAC-SHA256, 16 bytes.

        HMAC's two first blocks are hashed once, not for every chunk: for pages of 4 KiB that is
        half as fast again as `hmac.digest`.
        """
        key = self.derive(purpose).ljust(_BLOCK, b"\0")
        inner = digests.large(bytes(byte ^ 0x36 for byte in key))
        outer = digests.large(bytes(byte ^ 0x5C for byte in key))

        def name(content: bytes | memoryview) -> bytes:
            inside = inner.copy()
            inside.update(content)
            outside = outer.copy()
            outside.update(inside.digest())
            return outside.digest()[:ID_BYTES]

        return name

    def to_document(self, secret: bytes | None) -> dict[str, object]:
        """Return them as they lie in the configuration, wrapped if there is a secret."""
        if secret is None:
            return {"kind": "plain", "key": self.master.hex()}
        salt = os.urandom(16)
        wrapped = _wrapping(secret, salt, _SCRYPT).seal(0, self.master)
        return {"kind": "scrypt", **_SCRYPT, "salt": salt.hex(), "wrapped": wrapped.hex()}

    @classmethod
    def from_document(cls, document: Mapping[str, object], secret: bytes | None) -> Keys:
        """Read them.

        Raises:
            UsageError: the secret is missing, wrong, or given where none is wanted.
            BadArchive: the document is damaged.

        """
        try:
            if document["kind"] == "plain":
                return cls._plain(document, secret)
            if document["kind"] != "scrypt":
                raise ValueError(f"a key of kind {document['kind']!r}")
            cost = {name: int(str(document[name])) for name in _SCRYPT}
            if min(cost.values()) < 1 or cost["n"] < 2 or cost["n"] & (cost["n"] - 1):  # RFC 7914
                raise ValueError("its key has an impossible cost")
            if 128 * cost["n"] * cost["r"] > _MAX_SCRYPT or cost["p"] > 4:
                raise ValueError("its key would take too much to unwrap")
            salt, wrapped = (bytes.fromhex(str(document[name])) for name in _HEX_CONFIG)
        except (KeyError, ValueError) as error:
            raise BadArchive(f"the key is damaged: {error}") from error
        if secret is None:
            raise UsageError(
                "the repository is encrypted and no secret was given",
                hint="--key-file FILE, or PYMIGRATE_PASSPHRASE_FILE=FILE",
            )
        try:
            return cls(_wrapping(secret, salt, cost).open(0, wrapped))
        except Damaged as error:
            raise UsageError(
                "the secret does not open this repository", hint="is it the right --key-file?"
            ) from error

    @classmethod
    def _plain(cls, document: Mapping[str, object], secret: bytes | None) -> Keys:
        if secret is not None:
            raise UsageError(
                "a secret was given, but the repository is not encrypted",
                hint="leave --key-file and PYMIGRATE_PASSPHRASE_FILE out, or use another --repo",
            )
        master = bytes.fromhex(str(document["key"]))
        if len(master) != MASTER_BYTES:
            raise ValueError(f"{len(master)} bytes")
        return cls(master)


def _wrapping(secret: bytes, salt: bytes, cost: Mapping[str, int]) -> Sealer:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    key = Scrypt(salt=salt, length=32, n=cost["n"], r=cost["r"], p=cost["p"]).derive(secret)
    return Sealer(AESGCM(key), b"pymigrate repository 1: master key")
