"""Which moves are tried: by every run, and by a full one.

A mode of `migrate --mode` that is added to MODES is tried everywhere from then on: in one pair by
each run, in every pair by `./test --kernels=full`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

MODES = ("stop", "pre", "post", "hybrid")
KERNELS = ("old", "middle", "new")
PAIRS = tuple((source, target) for source in KERNELS for target in KERNELS if source != target)
CGROUPS = (("old-v1", "new"), ("new", "old-v1"))
FULL = os.environ.get("PYMIGRATE_CLUSTER") == "full"
Pairs = Sequence[tuple[str, str]]


def moves(pairs: Pairs, modes: Sequence[str] = MODES[:1]) -> pytest.MarkDecorator:
    """Parametrize a test by `source`, `target` and `mode`; a full run takes all there are."""
    if FULL:
        pairs, modes = (*PAIRS, *CGROUPS), MODES
    cases = [(source, target, mode) for mode in modes for source, target in pairs]
    return pytest.mark.parametrize(("source", "target", "mode"), cases)
