"""What earlier builds made of the same: layers by all that decides what they become.

It can be lost at any time, and a layer that it names may have gone: then the step is done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime import errors, state

_MOST = 5000


@dataclass(frozen=True)
class Made:
    """A layer by its digest, None where the step changed nothing; ``size`` in bytes of content."""

    layer: str | None
    size: int


@dataclass(frozen=True)
class Cache:
    """A file; of two builds that write at once one may lose what it learned."""

    path: Path

    def find(self, key: str) -> Made | None:
        """Return what a step was known to make."""
        entry = self._read().get(key)
        match entry:
            case [str() | None as layer, int() as size]:
                return Made(layer, size)
        return None

    def keep(self, key: str, made: Made) -> None:
        """Remember what a step made; the oldest is forgotten when there are too many."""
        entries = self._read()
        entries.pop(key, None)
        entries[key] = [made.layer, made.size]
        kept = dict(list(entries.items())[-_MOST:])
        state.write_document(self.path, kept, durable=False)

    def _read(self) -> dict[str, object]:
        try:
            found = state.read_document(self.path)
        except (FileNotFoundError, errors.ContainerError):
            return {}
        return found if isinstance(found, dict) else {}


def key(layers: Sequence[str], *what: object) -> str:
    """Return the name of a step: what it works on, and all that it is told."""
    text = json.dumps([list(layers), *what], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
