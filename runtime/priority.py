"""Whoever clients wait for runs before those who do what can wait, where both need the processors.

What CRIU restores gets its own priority back from CRIU, but not the processors that it may use: it
has those of whoever started the CRIU that restores it. So who has stepped aside starts other
programs `wholly`.

Stepping aside is by processors, for low priority does not help who is woken up: a kernel without
preemption, and the scheduler's slices, let a thread that is at work go on for one to four
milliseconds, ten times as long as a small answer takes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

_FAVOURED = -10  # nice(2)
_GIVING_WAY = 10

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""Variables for who may load numpy. Of its linear algebra we use nothing, but when it is loaded it
starts a thread for each processor, which looks for work for 50 ms; and who has threads cannot
fork."""


def favour(pid: int = 0) -> None:
    """Have a process run before others, or, by 0, the calling thread and threads that it makes.

    Nothing changes if it has ended, or for who may not do that.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, _FAVOURED)


def favour_no_more() -> None:
    """Have the calling thread run as others do."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def give_way() -> None:
    """Have all threads of this process that are not favoured run after others, for good.

    And those that they make. Beside them a container of a host whose containers are no farther from
    the root of cgroups than we are has one share of the processors where each of our threads has
    one, too; and of that, as its processes mostly sleep, the kernel gives it a part
    (calc_group_shares in kernel/sched/fair.c). See nice(2), which is each thread's own.
    """
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - names are numbers
        with contextlib.suppress(ProcessLookupError):  # it has ended
            if 0 <= os.getpriority(os.PRIO_PROCESS, int(thread)) < _GIVING_WAY:
                os.setpriority(os.PRIO_PROCESS, int(thread), _GIVING_WAY)


_whole: set[int] | None = None
"""The processors that this process may use when it has not stepped aside; None: it has not."""


def left_for_others(ours: Collection[int], theirs: Collection[int]) -> set[int]:
    """Return the processors to use beside somebody who may use ``theirs``: all of ours but one.

    Always the first of theirs: several that step aside leave the same one. All of ours where that
    leaves none.
    """
    common = sorted(set(ours) & set(theirs))
    return set(ours) - set(common[:1]) or set(ours)


def step_aside(theirs: Collection[int]) -> None:
    """Leave one of their processors alone, with all threads that there are and will be.

    Until `come_back`; who has stepped aside already stays there. See sched_setaffinity(2), which is
    each thread's own, and its children's.
    """
    global _whole  # noqa: PLW0603 - what it says is so of the process
    if _whole is None:
        _whole = os.sched_getaffinity(0)
        _use(left_for_others(_whole, theirs))


def come_back() -> None:
    """Use all processors again; nothing happens if we have not stepped aside."""
    global _whole
    whole, _whole = _whole, None
    if whole is not None:
        _use(whole)


def processors() -> int:
    """Return how many processors we may use when we have not stepped aside."""
    return len(os.sched_getaffinity(0) if _whole is None else _whole)


@contextlib.contextmanager
def wholly() -> Iterator[None]:
    """Let the calling thread use all processors while the block runs, and what it starts for good.

    Of a program that is started outside of it, all that it ever starts would have too few.
    """
    if _whole is None:
        yield
        return
    aside = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _whole)
    try:
        yield
    finally:
        os.sched_setaffinity(0, aside)


def bring_back(pid: int) -> None:
    """Have a process that stepped aside with us use all that we use; nothing if it has ended."""
    with contextlib.suppress(FileNotFoundError):
        _use(os.sched_getaffinity(0), pid)


def _use(processors: set[int], pid: int | None = None) -> None:
    """Have all threads use these; those that are made meanwhile have what their maker has."""
    seen: set[str] = set()
    tasks = f"/proc/{'self' if pid is None else pid}/task"
    while fresh := set(os.listdir(tasks)) - seen:  # noqa: PTH208 - names are numbers
        for thread in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), processors)
        seen |= fresh
