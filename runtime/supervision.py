"""The way to talk to a container's supervisor: one request, one reply."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pymigrate.runtime import control, errors

# Everything but a wait is answered at once; a start mounts, forks and executes.
REPLY_SECONDS = 60.0

LENT = "lent"
"""In a container's directory: where its supervisor attaches mounts that CRIU is to find."""


class SupervisorEnded(errors.ContainerError):
    """The supervisor hung up before it answered: its work was over, or it was killed."""


class LogPlace(NamedTuple):
    """An offset in the file of the log with this inode, whatever it is called by now."""

    offset: int
    inode: int


class Supervision:
    """A connection to the supervisor of one container; not for several threads at once.

    The one that Container.prepare() returns is the supervisor's *keeper*: while nothing runs yet,
    closing it (or the death of its owner) makes the supervisor undo everything and end.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        """Take over a connected socket."""
        self._connection = connection
        self._name = name
        self._waiting = False

    @classmethod
    def connect(cls, directory: Path) -> Supervision:
        """Connect to the supervisor that sits in a container's directory.

        Raises:
            WrongState: there is none.

        """
        try:
            return cls(control.connect(directory), directory.name)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise errors.WrongState(
                f"{directory.name} has no supervisor: it is not running under our care",
                hint=f"pymigrate rm -f {directory.name} removes what is left of it",
            ) from error

    def close(self) -> None:
        """Hang up; a second time does nothing."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Hang up at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hang up."""
        self.close()

    def expect_restore(self) -> None:
        """Have the supervisor load what a restore takes, while nobody waits for it yet."""
        self._ask("expect_restore")

    def mount(self) -> None:
        """Mount the container's overlay at rootfs/ in the supervisor's mounts; idempotent.

        To be called when the upper directory is complete; ``start`` does it by itself.
        """
        self._ask("mount")

    def lend(self, trees: Sequence[int]) -> None:
        """Attach detached mounts at LENT/0, LENT/1 … in the supervisor's mounts, until ``adopt``.

        For what CRIU mounts in the container. Those of a call before are gone.
        """
        self._ask("lend", trees)

    def move_network(self, pid: int) -> None:
        """Put the cable into the network namespace of a process that CRIU restores.

        For containers with users of their own, whose network must belong to those.
        """
        self._ask("move_network", pid=pid)

    def start(self, *, then_wait: bool = False) -> int:
        """Run the container's command as the record and config.json say; return its PID.

        With ``then_wait`` only ``wait`` may follow on this connection, and it is certain to get the
        exit code, however soon the command ends and even if the container is then removed.

        Raises:
            CannotRun, CommandNotFound: the command could not be executed; the supervisor ended.

        """
        pid = _number(self._ask("start", then_wait=then_wait), "pid")
        self._waiting = then_wait
        return pid

    def spawn(
        self,
        argv: Sequence[str],
        fds: Sequence[int] = (),
        *,
        in_cgroup: bool,
        in_network: bool = False,
    ) -> int:
        """Run a program as a child of the supervisor, in its mounts; return its PID.

        ``fds`` appear as 3, 4, 5 … in this order; stdin is /dev/null, stdout and stderr go to
        the supervisor's log. With ``in_cgroup`` it sits in the container's cgroups and has the
        container's cgroup namespace, so that what CRIU restores inherits both. With ``in_network``
        it has the container's network namespace; a supervisor of an older version does not know
        that word, so look (`namespaces.is_in_network`) where it matters.
        """
        reply = self._ask("spawn", fds, argv=list(argv), in_cgroup=in_cgroup, in_network=in_network)
        return _number(reply, "pid")

    def wait_spawned(self, pid: int) -> int:
        """Wait for a program of ``spawn``; return its exit code, 128+N for signal N."""
        return _number(self._ask("wait_spawned", seconds=None, pid=pid), "exit_code")

    def expect_end(self, *, wanted: bool) -> None:
        """Say whether the container's end is wanted: then it is not run again after it."""
        self._ask("expect_end", wanted=wanted)

    def hush(self) -> None:
        """Have a health check that runs ended; the caller holds the lock or a fence, then freezes.

        Without those another one could begin.
        """
        self._ask("hush")

    def guard(self, lock: int, helpers: Sequence[int]) -> None:
        """Have the container go on if this connection is lost before ``unguard``.

        Before it is frozen. ``lock`` is the descriptor by which the caller has locked the
        container; ``helpers`` are the programs of ``spawn`` that must have ended first. Asked for
        again, it adds helpers. See guard.py.

        Raises:
            WrongState: another connection is its guard, or a migration holds it.

        """
        self._ask("guard", [lock], helpers=list(helpers))

    def unguard(self) -> None:
        """End the guard: the container is as it should be; only its lock is given back.

        No error if the supervisor has ended, as it does when the container has.
        """
        with contextlib.suppress(SupervisorEnded):
            self._ask("unguard")

    def stdio(self) -> dict[str, int]:
        """Make new pipes for a restore; return the container's ends, which the caller closes.

        The keys are "stdout", "stderr" and, if the container was run with -i, "stdin".
        """
        return self._named_fds("stdio")

    def netns(self) -> int:
        """Return a descriptor of the container's network namespace, which the caller closes."""
        return self._named_fds("netns")["netns"]

    def mntns(self) -> int:
        """Return a descriptor of the supervisor's mount namespace, which the caller closes."""
        return self._named_fds("mntns")["mntns"]

    def terminal(self, master_fd: int) -> None:
        """Give the supervisor the master of the container's terminal after a restore."""
        self._ask("terminal", [master_fd])

    def adopt(self, pid: int) -> None:
        """Say that this child of the supervisor is the container's init.

        Raises:
            WrongState: it is not a child of the supervisor.

        """
        self._ask("adopt", pid=pid)

    def kill(self, signal_number: int) -> None:
        """Send a signal to the container's init."""
        self._ask("kill", signal=signal_number)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the container's terminal."""
        self._ask("resize", rows=rows, columns=columns)

    def attach(self) -> tuple[socket.socket, LogPlace]:
        """Return a socket that carries stdin and events, and where the log ends; see relay.py.

        Made before ``start``, nothing of the container's output is missed.
        """
        reply, fds = self._exchange("attach", (), REPLY_SECONDS, {})
        place = LogPlace(_number(reply, "log_offset"), _number(reply, "log_inode"))
        return socket.socket(fileno=fds[0]), place

    def begin_wait(self) -> None:
        """Ask for the container's end; only ``wait`` may follow on this connection."""
        if not self._waiting:
            try:
                control.send(self._connection, {"op": "wait"})
            except (BrokenPipeError, ConnectionResetError) as error:
                raise self._ended("wait") from error
            self._waiting = True

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until the container has ended and is cleaned up; return its exit code.

        None says that it has not ended within ``seconds``; ``wait`` may then be called again.

        Raises:
            SupervisorEnded: nobody will tell; the container's state may.

        """
        try:
            self.begin_wait()
            return _number(self._answer("wait", seconds)[0], "exit_code")
        except (TimeoutError, BlockingIOError):  # the second for 0 seconds
            return None

    def release(self) -> None:
        """Undo what was prepared and end the supervisor; only while nothing runs.

        No error if it is ending already.
        """
        with contextlib.suppress(SupervisorEnded):
            self._ask("release")

    def keep(self, name: str, fd: int) -> None:
        """Have the supervisor hold a duplicate of a descriptor; see descriptors.py."""
        self._ask("keep", [fd], name=name)

    def kept(self) -> dict[str, int]:
        """Return duplicates of all that is held, which the caller closes."""
        found: dict[str, int] = {}
        while True:
            reply, fds = self._exchange("kept", (), REPLY_SECONDS, {"first": len(found)})
            names = reply.get("names")
            found.update(zip(names if isinstance(names, list) else [], fds, strict=True))
            if not fds or len(found) >= _number(reply, "count"):
                return found

    def count_kept(self) -> int:
        """Return how many descriptors are held."""
        reply = self._ask("kept", first=1 << 31)
        return _number(reply, "count")

    def drop_kept(self) -> None:
        """Have all that is held closed. No error if the supervisor ended, with all of that."""
        with contextlib.suppress(SupervisorEnded):
            self._ask("drop_kept")

    def rely(self) -> None:
        """Have the container ended should this connection be lost; see reliance.py."""
        self._ask("rely")

    def rely_no_more(self) -> None:
        """Take that back. No error if the supervisor has ended."""
        with contextlib.suppress(SupervisorEnded):
            self._ask("rely_no_more")

    def wait_relied(self) -> None:
        """Wait until nothing is relied on any more."""
        self._ask("wait_relied", seconds=None)

    def fail(self, reason: str) -> None:
        """Have the container ended at once, and the reason written down."""
        self._ask("fail", reason=reason)

    def ping(self) -> int:
        """Return the supervisor's PID."""
        return _number(self._ask("ping"), "pid")

    def _ask(
        self,
        op: str,
        fds: Sequence[int] = (),
        seconds: float | None = REPLY_SECONDS,
        **fields: object,
    ) -> dict[str, object]:
        reply, received = self._exchange(op, fds, seconds, fields)
        for fd in received:
            os.close(fd)
        return reply

    def _named_fds(self, op: str) -> dict[str, int]:
        reply, fds = self._exchange(op, (), REPLY_SECONDS, {})
        names = reply.get("names")
        return dict(zip(names if isinstance(names, list) else [], fds, strict=True))

    def _exchange(
        self, op: str, fds: Sequence[int], seconds: float | None, fields: dict[str, object]
    ) -> tuple[dict[str, object], list[int]]:
        try:
            self._connection.settimeout(seconds)
            control.send(self._connection, {"op": op, **fields}, fds)
            return self._answer(op, seconds)
        except TimeoutError as error:
            raise errors.ContainerError(
                f"{self._name}: its supervisor did not answer {op!r} within {seconds:.0f} s"
            ) from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._ended(op) from error

    def _answer(self, op: str, seconds: float | None) -> tuple[dict[str, object], list[int]]:
        try:
            self._connection.settimeout(seconds)
            answer = control.receive(self._connection)
        except ConnectionResetError:
            answer = None
        if answer is None:
            raise self._ended(op)
        reply, received = answer
        if "error" in reply:
            raise control.error_from_document(reply["error"])
        return reply, received

    def _ended(self, op: str) -> SupervisorEnded:
        return SupervisorEnded(
            f"{self._name}: its supervisor ended before it answered {op!r}",
            hint=f"pymigrate inspect {self._name} shows what state it is in",
        )


def _number(reply: dict[str, object], name: str) -> int:
    value = reply.get(name)
    if not isinstance(value, int):
        raise errors.ProtocolError(f"the supervisor's answer has no number {name!r}")
    return value
