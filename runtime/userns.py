"""A container's user namespace, made before anything else of the container.

It comes first because other things are made with it: layers are mounted with their owners shifted
by it, and the network namespace must belong to it, for capabilities over a network are those that
one holds in the user namespace that made it (user_namespaces(7), "Interaction of user namespaces
and other types of namespaces"). Nobody is in it until the container's first process joins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn, Protocol

from pymigrate.runtime import namespaces, syscalls
from pymigrate.runtime.errors import HostError, MissingFeature, UsageError
from pymigrate.runtime.settings import IdMapping, Spec
from pymigrate.runtime.values import dataclass


class Kernel(Protocol):
    """The call that making it takes; see runtime/syscalls.py."""

    def unshare(self, flags: int) -> None:
        """See unshare(2)."""


@dataclass(frozen=True)
class Made:
    """Descriptors, the caller's to close, of the namespaces; None: no network was asked for."""

    users: int
    network: int | None


def make(spec: Spec, *, network: bool, kernel: Kernel = syscalls) -> Made:
    """Make the user namespace of a spec with its id maps and, if asked, a network of its own.

    For a single-threaded caller. MissingFeature where the kernel makes none, HostError for ids
    that it does not map; on failure nothing is left.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    waits, let_go = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(let_go)
        kinds = (syscalls.CLONE_NEWUSER, *((syscalls.CLONE_NEWNET,) if network else ()))
        _be_its_first(kinds, tell, waits, kernel)
    for fd in (tell, waits):
        os.close(fd)
    try:
        _expect_made("user", told)
        _map_ids(pid, spec)
        if network:
            # After the maps, which say to whom the network's files in /proc and /sys belong.
            os.write(let_go, b"1")
            _expect_made("network", told)
        return _take(pid, network=network)
    finally:
        for fd in (told, let_go):  # with these it ends
            os.close(fd)
        os.waitpid(pid, 0)


def _be_its_first(kinds: Sequence[int], tell: int, waits: int, kernel: Kernel) -> NoReturn:
    """In a child: make each namespace when told to, and answer with "0" or the error's number."""
    try:
        for kind in kinds:
            number = 0
            try:
                kernel.unshare(kind)
            except OSError as error:
                number = error.errno or 1
            os.write(tell, str(number).encode())
            if not os.read(waits, 1):
                break
    finally:
        os._exit(0)


def _expect_made(kind: str, told: int) -> None:
    said = os.read(told, 16)
    if said == b"0":
        return
    reason = os.strerror(int(said)) if said else "the process that makes it ended"
    raise MissingFeature(
        f"this host makes no {kind} namespace for a container's users: {reason}",
        hint="see the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone",
    )


def _map_ids(pid: int, spec: Spec) -> None:
    try:
        namespaces.write_id_maps(pid, spec)
    except OSError as error:
        raise HostError(
            f"the kernel refuses to map the container's users: {error.strerror}",
            hint="ranges must not overlap, and must be mapped where pymigrate itself runs",
        ) from error


def _take(pid: int, *, network: bool) -> Made:
    flags = os.O_RDONLY | os.O_CLOEXEC
    users = os.open(f"/proc/{pid}/ns/user", flags)
    try:
        return Made(users, os.open(f"/proc/{pid}/ns/net", flags) if network else None)
    except OSError:
        os.close(users)
        raise


def owner_on_host(mappings: Sequence[IdMapping], inside: int) -> int:
    """Return who on the host owns what ``inside`` owns in the container; without one, root does."""
    with suppress(UsageError):
        return namespaces.host_id(mappings, inside)
    return namespaces.host_id(mappings, 0)
