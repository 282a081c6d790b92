"""One thing that is done in a thread while its caller does another.

As a future of ``concurrent.futures``, which costs a command 6 ms to load, for it loads ``logging``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """It begins at once. Whoever began it waits for its end, by `result` or `wait`."""

    def __init__(self, act: Callable[[], T], name: str) -> None:
        """Begin."""
        self._act = act
        self._done: list[T] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done.append(self._act())
        except BaseException as error:
            self._failure = error

    def result(self) -> T:
        """Wait for what it returns, or raise what it raised; may be repeated."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._done[0]

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end, for so long at most; return whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
