"""Work for several threads whose results come in the order of the work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

AHEAD = 8
"""Results that wait at most: what is not taken costs memory."""


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], given: Iterable[Given]
) -> Iterator[Made]:
    """Yield what the work makes of each, begun a few ahead; Executor.map begins all at once."""
    waiting: deque[Future[Made]] = deque()
    for each in given:
        waiting.append(pool.submit(work, each))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
