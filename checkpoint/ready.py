"""What a page is that can be put in place, wherever its content lies; costs nothing to load."""

from __future__ import annotations

import enum
from typing import NamedTuple

PAGE = 4096


class Content(enum.IntEnum):
    """Where the content of a page is."""

    ASIDE = 1
    ZERO = 2


class Ready(NamedTuple):
    """Pages of one process that follow one another; both numbers in bytes."""

    inner: int
    address: int
    length: int
    content: Content
