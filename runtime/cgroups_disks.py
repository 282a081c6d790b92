"""Whether a weight of block io means anything: most disks are scheduled by nobody who looks at it.

The files are there as soon as the kernel was built with them, and take any weight in silence.
"""

from __future__ import annotations

import glob
import os

from pymigrate.runtime import cgroups_files as files
from pymigrate.runtime.cgroups_files import Limit
from pymigrate.runtime.errors import MissingFeature
from pymigrate.runtime.values import dataclass

_SCHEDULERS = "/sys/block/*/queue/scheduler"
_COSTS = "io.cost.qos"  # in the root of v2 alone
_HINT = (
    "echo bfq > /sys/block/DISK/queue/scheduler; limits such as --device-read-bps need no scheduler"
)


@dataclass(frozen=True)
class Sharing:
    """Who shares any of the disks by weight: a BFQ scheduler, v2's cost model."""

    bfq: bool
    cost: bool

    @classmethod
    def here(cls, directory: str) -> Sharing:
        """Look at this host's disks, and above a cgroup of v2 for the cost model."""
        schedulers = [files.read(*os.path.split(path)) for path in glob.glob(_SCHEDULERS)]  # noqa: PTH207
        costs = ""
        while directory not in ("", "/"):
            if files.exists(directory, _COSTS):
                costs = files.read(directory, _COSTS)
            directory = os.path.dirname(directory)  # noqa: PTH120
        return cls(any("[bfq]" in each for each in schedulers), "enable=1" in costs)

    def looks_at(self, file: str) -> bool:
        """Tell whether what is written to this file makes a difference."""
        if file == "io.weight":
            return self.cost
        return self.bfq if ".bfq." in file else True  # blkio.weight is there with CFQ alone


def chosen(directory: str, limit: Limit, sharing: Sharing) -> Limit:
    """Return the weight as it is written to the file that makes a difference.

    MissingFeature where none does; a limit without any file is returned as it is.
    """
    ways = [limit, limit.other()] if limit.instead else [limit]
    there = [way for way in ways if files.exists(directory, way.file)]
    for way in there:
        if sharing.looks_at(way.file):
            return way
    if not there:
        return limit
    raise MissingFeature(
        f"this host cannot enforce the {limit.what}: none of its disks is scheduled by weight",
        hint=_HINT,
    )
