"""Which moves are tried: by every run, and by a full one.

A round goes over every ordered pair of kernels and both directions of cgroup v1 and v2 once, and
ends where it began: so what travels need not be begun anew for each move of it.
"""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

MODES = ("stop", "pre", "post", "hybrid")
KERNELS = ("old", "middle", "new")
PAIRS = {(source, target) for source in KERNELS for target in KERNELS if source != target}
CGROUPS = {("old-v1", "new"), ("new", "old-v1")}
ROUND = ("old", "middle", "old", "new", "old-v1", "new", "middle", "new", "old")
FULL = os.environ.get("PYMIGRATE_CLUSTER") == "full"
Leg = tuple[str, str, str]


def journey(*, full: bool) -> list[Leg]:
    """List the moves in the order of travel: source, target, and how memory goes.

    A full one is a round in each mode. The other is a round in the first mode, and then goes from
    the oldest kernel to the newest in every other; to begin anew there is quicker than to go back.
    """
    modes = MODES if full else MODES[:1]
    legs = [(*leg, mode) for mode in modes for leg in pairwise(ROUND)]
    if not full:
        legs += [("old", "new", mode) for mode in MODES[1:]]
    return legs


travels = pytest.mark.parametrize(("source", "target", "mode"), journey(full=FULL))
