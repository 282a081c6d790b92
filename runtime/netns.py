"""Network namespaces: making one, and doing something inside one without leaving one's own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pymigrate.runtime import syscalls

T = TypeVar("T")


class _Visit(threading.Thread, Generic[T]):
    """A thread that does one thing and keeps its result or its error."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(name="netns")
        self._work = work
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error  # raised again by result(), in the caller's thread

    def result(self) -> T:
        self.start()
        self.join()
        if self._error is not None:
            raise self._error
        return self._result[0]


def inside(netns_fd: int, work: Callable[[], T]) -> T:
    """Call ``work`` in a network namespace, and return or raise what it does.

    A thread has a network namespace of its own (setns(2)), so a short-lived one goes there:
    whatever happens, the caller and its other threads stay where they are. It takes 0.1 ms; a
    forked child would cost the copy of a big process's page tables. Sockets that ``work`` opens
    stay in that namespace wherever they are used.
    """

    def visit() -> T:
        syscalls.setns(netns_fd, syscalls.CLONE_NEWNET)
        return work()

    return _Visit(visit).result()


def new_namespace() -> int:
    """Make a network namespace and return a descriptor, which keeps it alive until closed."""

    def make() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _Visit(make).result()
