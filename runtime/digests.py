"""SHA-256 for what a start needs hashed: a name, a filter of some hundred bytes.

hashlib takes 3 ms to load, of a start's 90, since it brings OpenSSL's. Python has one of its own,
as its module `random` uses it.
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


def _find() -> Callable[[bytes], Digest]:
    for name in ("_sha2", "_sha256"):  # since Python 3.12, and before
        try:
            module = import_module(name)
        except ModuleNotFoundError:
            continue
        return module.sha256  # type: ignore[no-any-return]
    return import_module("hashlib").sha256  # type: ignore[no-any-return]


sha256 = _find()
