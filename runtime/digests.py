"""SHA-256: `sha256` for what a start needs hashed, some kilobytes; `large` for whatever is more.

hashlib takes 3 ms to load, of a start's 90, since it brings OpenSSL's. Python has one of its own,
as its module `random` uses it: it needs up to ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol


class Digest(Protocol):
    """The part of a hash that is used."""

    def digest(self) -> bytes:
        """Return it as bytes."""

    def hexdigest(self) -> str:
        """Return it as text."""


class Hash(Digest, Protocol):
    """A hash that may be fed by and by."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""

    def copy(self) -> Hash:
        """Return another that has been fed with the same."""


def large(data: bytes | memoryview = b"") -> Hash:
    """Begin the SHA-256 of much; it is loaded with the first."""
    import hashlib

    return hashlib.sha256(data)


def _find() -> Callable[[bytes], Digest]:
    for name in ("_sha2", "_sha256"):  # since Python 3.12, and before
        try:
            module = import_module(name)
        except ModuleNotFoundError:
            continue
        return module.sha256  # type: ignore[no-any-return]
    return import_module("hashlib").sha256  # type: ignore[no-any-return]


sha256 = _find()
