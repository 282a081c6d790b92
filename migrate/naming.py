"""Names for containers about whose names nobody cared."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pymigrate.runtime.host import Host

_HOW = (
    *("amber", "bold", "brisk", "calm", "clear", "crisp", "dusky", "early", "fleet", "gentle"),
    *("happy", "keen", "light", "lucid", "merry", "mild", "neat", "nimble", "plain", "quick"),
    *("quiet", "rapid", "sharp", "smooth", "snug", "steady", "sunny", "swift", "vivid", "warm"),
)
_WHAT = (
    *("badger", "crane", "curlew", "dunlin", "eider", "fieldfare", "gannet", "godwit", "goose"),
    *("hare", "heron", "ibis", "knot", "lapwing", "martin", "nightjar", "oriole", "osprey"),
    *("pipit", "plover", "quail", "redstart", "salmon", "snipe", "stork", "swallow", "swan"),
    *("tern", "turtle", "whimbrel"),
)


def suggest(host: Host) -> str:
    """Return a name that no container of the host has; two at once may get the same."""
    name = f"{_any(_HOW)}-{_any(_WHAT)}"
    while (host.containers / name).exists():
        name = f"{_any(_HOW)}-{_any(_WHAT)}-{os.urandom(2).hex()}"
    return name


def _any(words: Sequence[str]) -> str:
    return words[int.from_bytes(os.urandom(4)) % len(words)]
