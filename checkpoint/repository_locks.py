"""Locks of a repository: shared ones for those who add or read, an exclusive one for prune.

A lock is an empty file, so that it can be taken on a full disk. Its name says who holds it, and
its time of modification when the holder last said that he lives. A lock of this machine is dead
when its process is; any other when it was silent for half an hour. Whoever finds a dead one removes
it.

Taking one is: make the file, then look at the others. Of two who do so at once and exclude each
other, both may step back, and both try again; but never do both go on.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pymigrate.checkpoint.repository_disk import Disk
from pymigrate.checkpoint.repository_storage import PATIENCE_SECONDS
from pymigrate.runtime.errors import HostError, WrongState
from pymigrate.runtime.state import Identity

EXPIRE_SECONDS = 30 * 60
REFRESH_SECONDS = 60
_LOOK_SECONDS = 0.1
_NAME = re.compile(
    r"(?P<mode>shared|exclusive)-(?P<id>[0-9a-f]{16})-(?P<machine>[0-9a-f-]{36}\.[0-9]+)"
    r"-(?P<pid>[0-9]+)-(?P<started>[0-9]+)-(?P<host>[A-Za-z0-9.-]*)"
)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its name says it; ``started`` tells a process from later ones."""

    exclusive: bool
    id: str
    machine: str
    pid: int
    started: int
    host: str

    @classmethod
    def here(cls, *, exclusive: bool) -> Holder:
        """Describe this process."""
        own = Identity.of(os.getpid())
        if own is None:
            raise HostError("/proc does not know this process; nothing was changed")
        host = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())[:64]
        return cls(exclusive, os.urandom(8).hex(), _machine(), own.pid, own.started, host)

    @classmethod
    def parse(cls, name: str) -> Holder | None:
        """Read the name of a lock; None: it is none of ours."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        return cls(
            found["mode"] == "exclusive",
            found["id"],
            found["machine"],
            int(found["pid"]),
            int(found["started"]),
            found["host"],
        )

    @property
    def name(self) -> str:
        """The name of the lock's file."""
        mode = "exclusive" if self.exclusive else "shared"
        return f"{mode}-{self.id}-{self.machine}-{self.pid}-{self.started}-{self.host}"

    def is_dead(self, age: float) -> bool:
        """Say whether nobody holds it any more; ``age`` in seconds since it was refreshed."""
        if self.machine == _machine():
            return not Identity(self.pid, self.started).is_alive
        return age > EXPIRE_SECONDS


def _machine() -> str:
    """Return what PIDs are comparable in: this boot, and this PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"


class Lock:
    """A lock that is held."""

    def __init__(self, disk: Disk, holder: Holder) -> None:
        """Take what was acquired; use `held`."""
        self._disk = disk
        self._holder = holder
        self._over = threading.Event()

    @property
    def owner(self) -> str:
        """What the drafts of its holder are named by."""
        return self._holder.id

    def confirm(self) -> None:
        """Make sure that nobody held us for dead meanwhile; raises WrongState."""
        if self._holder.name not in self._disk.names("locks"):
            raise WrongState(
                "the lock of the repository was lost: this process stood still for too long; "
                "nothing was published",
                hint="try again",
            )

    def refresh_until_over(self) -> None:
        """Say that we live, now and then."""
        while not self._over.wait(REFRESH_SECONDS):
            with contextlib.suppress(OSError):  # `confirm` will tell
                os.utime(self._disk.root / "locks" / self._holder.name)

    def end(self) -> None:
        """Stop refreshing."""
        self._over.set()


@contextlib.contextmanager
def held(
    disk: Disk, *, exclusive: bool = False, patience: float = PATIENCE_SECONDS
) -> Iterator[Lock]:
    """Hold a lock for the block, waiting for up to ``patience`` seconds; raises WrongState."""
    holder = Holder.here(exclusive=exclusive)
    _acquire(disk, holder, patience)
    lock = Lock(disk, holder)
    thread = threading.Thread(target=lock.refresh_until_over, daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        lock.end()
        thread.join()
        disk.remove(f"locks/{holder.name}")


def _acquire(disk: Disk, holder: Holder, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        with disk.translated("take a lock"):
            os.close(disk.create(f"locks/{holder.name}"))
        try:
            others = [o for o in living(disk) if o.name != holder.name]
        except BaseException:
            disk.remove(f"locks/{holder.name}")
            raise
        against = [o for o in others if o.exclusive or holder.exclusive]
        if not against:
            return
        disk.remove(f"locks/{holder.name}")
        if time.monotonic() > deadline:
            other = against[0]
            raise WrongState(
                f"the repository {disk.root} is in use by process {other.pid} on {other.host}; "
                "nothing was changed",
                hint="try again when it has ended",
            )
        # There is nothing to wait on: the other may be on another machine.
        jitter = 1 + int.from_bytes(os.urandom(1)) / 256
        select.select([], [], [], _LOOK_SECONDS * jitter)


def living(disk: Disk) -> list[Holder]:
    """Return those who hold locks; the dead ones' are removed."""
    found = []
    for name in disk.names("locks"):
        holder = Holder.parse(name)
        if holder is None:
            raise HostError(
                f"{disk.root}/locks/{name} is no lock of ours; nothing was changed",
                hint="remove it if you know what it is",
            )
        try:
            age = time.time() - (disk.root / "locks" / name).stat().st_mtime
        except FileNotFoundError:
            continue  # its holder has just ended
        if holder.is_dead(age):
            disk.remove(f"locks/{name}")
        else:
            found.append(holder)
    return found


def sweep(disk: Disk) -> None:
    """Remove the drafts of those who died."""
    drafts = disk.names("tmp")
    owners = {holder.id for holder in living(disk)}
    dead = [f"tmp/{name}" for name in drafts if name.partition(".")[0] not in owners]
    old = [place for place in dead if not place.endswith(".first") or _is_old(disk, place)]
    if old:
        disk.remove(*old)


def _is_old(disk: Disk, place: str) -> bool:
    try:
        return time.time() - (disk.root / place).stat().st_mtime > EXPIRE_SECONDS
    except FileNotFoundError:
        return False
