"""Directories of a cgroup file system: reading, writing, waiting for them to empty, removing."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from pymigrate.runtime.deadline import Deadline
from pymigrate.runtime.errors import ContainerError, HostError, MissingFeature
from pymigrate.runtime.values import dataclass, replace

if TYPE_CHECKING:
    from pymigrate.runtime.settings import HugepageLimit

# What rmdir and the writes of a cgroup say while it still has processes or children.
_IN_USE = (errno.EBUSY, errno.ENOTEMPTY)
_BATCH = 256  # pidfds held at a time; a process may have 1024 files by default
IO_WEIGHT = "weight of block io"
HUGETLB = "hugetlb"
_NAMED = 8  # processes that a message lists


@dataclass(frozen=True)
class Limit:
    """One value to write: ``what`` is its name for people, such as "memory limit".

    Where the kernel does not offer the file, ``instead`` is another one, with its own value.
    """

    what: str
    controller: str
    file: str
    value: str
    instead: tuple[str, str] | None = None

    def other(self) -> Limit:
        """Return it as it is written to the other file."""
        if self.instead is None:
            return self
        file, value = self.instead
        return replace(self, file=file, value=value, instead=None)


def hugepage_limits(asked: Iterable[HugepageLimit], file: str, *, none: str) -> list[Limit]:
    """Return what limits huge pages; ``file`` and ``none`` are named so in this version.

    Both what is in use, beyond which a process gets SIGBUS, and what is reserved, beyond which
    mmap(2) already fails: programs are ready for the second one only.
    """
    return [
        Limit(
            f"limit of huge pages of {each.page_size}",
            HUGETLB,
            f"{HUGETLB}.{each.page_size}.{kind}{file}",
            none if each.limit < 0 else str(each.limit),
        )
        for each in asked
        for kind in ("", "rsvd.")
    ]


def quota_and_burst(quota: Limit | None, file: str, burst: int | None) -> list[Limit]:
    """Return both in an order that never has the burst above the quota, which is refused."""
    if burst is None:
        return [] if quota is None else [quota]
    what = "cpu burst"
    first = [] if quota is None else [Limit(what, "cpu", file, "0"), quota]
    return [*first, Limit(what, "cpu", file, str(burst))]


def weight_and_idle(weight: Limit | None, *, idle: bool | None) -> list[Limit]:
    """Return both in an order that the kernel takes: who is idle has no weight."""
    if idle is None:
        return [] if weight is None else [weight]
    value = Limit("cpu idleness", "cpu", "cpu.idle", str(int(idle)))
    return [each for each in ((weight, value) if idle else (value, weight)) if each is not None]


def read(directory: str, file: str) -> str:
    """Return the text of a file without its last newline.

    FileNotFoundError also where the cgroup was removed between open and read: ENODEV to the kernel.
    """
    path = f"{directory}/{file}"
    try:
        with open(path, encoding="ascii") as stream:  # noqa: PTH123 hot path
            return stream.read().rstrip("\n")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise FileNotFoundError(errno.ENOENT, "the cgroup was removed", path) from error
        raise


def read_words(directory: str, file: str) -> frozenset[str]:
    """Return the words in a file such as cgroup.controllers."""
    return frozenset(read(directory, file).split())


def read_table(directory: str, file: str) -> dict[str, int]:
    """Return a flat keyed file, such as cgroup.events or memory.stat."""
    table = {}
    for line in read(directory, file).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            table[key] = int(value)
    return table


def write(directory: str, file: str, value: str) -> None:
    """Write one value with one write(2), as the kernel wants it; OSError names the file."""
    path = f"{directory}/{file}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
    try:
        os.write(descriptor, value.encode("ascii"))
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)


def exists(directory: str, file: str) -> bool:
    """Tell whether the kernel offers this file here."""
    return os.path.exists(f"{directory}/{file}")  # noqa: PTH110 hot path


def set_limit(directory: str, limit: Limit) -> None:
    """Write a limit; say in words which one the kernel refused."""
    try:
        write(directory, limit.file, limit.value)
    except OSError as error:
        raise HostError(
            f"the kernel refuses {limit.what} {limit.value}: {error.strerror} ({error.filename})"
        ) from error


def as_it_is(directory: str, limit: Limit) -> str:
    """Return what would be written to have what is there now, of one disk where it is about one."""
    text = read(directory, limit.file)
    disk, _, value = limit.value.partition(" ")
    if ":" not in disk:
        return text or "\n"  # an empty list must be a line, or nothing at all would be written
    for line in text.splitlines():
        if line.startswith(f"{disk} "):
            return line
    key, equals, _ = value.partition("=")
    return f"{disk} {key}=max" if equals else f"{disk} 0"


def missing(directory: str, limit: Limit, *, swap_hint: str) -> MissingFeature:
    """Return the error for a limit that this host has no file for."""
    hint = f"the {limit.controller} controller is not enabled in {directory}"
    if "swap" in limit.what:
        hint = swap_hint
    elif limit.controller == HUGETLB and (sizes := _page_sizes(directory)):
        hint = f"this kernel has huge pages of {' and '.join(sizes)}"
    elif limit.what == IO_WEIGHT:
        hint = "shares of a disk need the kernel's BFQ scheduler; limits of it do not"
    return MissingFeature(
        f"this host cannot enforce the {limit.what}: there is no {directory}/{limit.file}",
        hint=hint,
    )


def _page_sizes(directory: str) -> list[str]:
    names = [name.split(".") for name in os.listdir(directory)]  # noqa: PTH208
    return sorted({words[1] for words in names if words[0] == HUGETLB})


def tree(directory: str) -> list[str]:
    """Return the directory and all below it, leaves first; empty if it does not exist."""
    below: list[str] = []
    try:
        with os.scandir(directory) as entries:
            names = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    for name in sorted(names):
        below += tree(name)
    return [*below, directory]


def processes(directory: str) -> frozenset[int]:
    """Return the processes in the directory and below, by their ids in our pid namespace."""
    found: set[int] = set()
    for each in tree(directory):
        try:
            lines = read(each, "cgroup.procs").split()
        except FileNotFoundError:
            continue  # removed since we looked
        except OSError as error:
            # Gone between open and read, or a threaded cgroup, whose processes its parent lists.
            if error.errno not in (errno.ENODEV, errno.EOPNOTSUPP):
                raise
            continue
        found |= {int(line) for line in lines}
    return frozenset(found - {0})  # 0: a process outside our pid namespace


def remove(directory: str, deadline: Deadline) -> None:
    """Remove the directory and all below it as soon as their processes are gone.

    Raises ContainerError, naming the processes, when they are not gone in time.
    """
    attempt = 0
    while True:
        try:
            for each in tree(directory):
                os.rmdir(each)  # noqa: PTH106 hot path
        except FileNotFoundError:
            continue  # another one removes it too: look again
        except OSError as error:
            if error.errno not in _IN_USE:
                raise
            left = processes(directory)
            if deadline.passed:
                raise ContainerError(
                    f"cgroup {directory} cannot be removed: {_list(left)} still in it",
                    hint="kill them, or stop the container",
                ) from error
            wait_for_exit(left, deadline, attempt)
            attempt += 1
        else:
            return


def wait_for_exit(pids: frozenset[int], deadline: Deadline, attempt: int) -> None:
    """Wait until one of the processes has exited, then as long as the cgroup needs to notice."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(deadline.left * 1000)
        finally:
            os.close(descriptor)
        break
    deadline.back_off(attempt)


def kill_each(
    directories: Sequence[str],
    deadline: Deadline,
    *,
    hold: Callable[[], None],
    let_go: Callable[[], None],
) -> None:
    """Send SIGKILL until nothing is left in any of them.

    ``hold`` freezes what runs, or it could fork faster than we look; ``let_go`` thaws it when all
    have got the signal, which is the first thing that they then see.
    """
    attempt = 0
    while left := _all_processes(directories):
        hold()
        pids = sorted(_all_processes(directories))
        for start in range(0, len(pids), _BATCH):
            _kill_in(directories, pids[start : start + _BATCH])
        let_go()
        if deadline.passed:
            raise ContainerError(f"cgroup {directories[0]}: {_list(left)} survived SIGKILL")
        wait_for_exit(left, deadline, attempt)
        attempt += 1


def _all_processes(directories: Sequence[str]) -> frozenset[int]:
    return frozenset().union(*(processes(each) for each in directories))


def _kill_in(directories: Sequence[str], pids: Sequence[int]) -> None:
    """Kill processes that are there when we hold them by pidfds, which cannot be reused."""
    with contextlib.ExitStack() as stack:
        held = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
                stack.callback(os.close, held[pid])
        for pid in held.keys() & _all_processes(directories):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held[pid], signal.SIGKILL)


def describe(pids: frozenset[int]) -> str:
    """Return a list of processes with name and state, for a message."""
    words = []
    for pid in sorted(pids)[:_NAMED]:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
                stat = stream.read()
        except OSError as error:  # it has exited: nothing more can be said of it
            words.append(f"{pid} ({error.strerror})")
            continue
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        words.append(f"{pid} ({name}, state {stat[stat.rindex(')') + 2]})")
    if len(pids) > _NAMED:
        words.append(f"and {len(pids) - _NAMED} more")
    return ", ".join(words) or "nothing"


def _list(pids: frozenset[int]) -> str:
    return f"processes {describe(pids)}" if pids else "processes that we cannot see"
