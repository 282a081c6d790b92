"""The border to CRIU: which binary, and a conversation with ``criu swrk`` that can hold its votes.

The messages are pycriu's, the conversation is ours: pycriu's own takes the first notification for
the answer and hangs up. CRIU asks for a vote by a notification and acts on our answer; hanging up
counts as a no (CRIU: criu/cr-service.c, send_criu_rpc_script). The meaning of each notification is
in criu/action-scripts.c; ``dump.py`` and ``restore.py`` know which ones to hold.
"""

from __future__ import annotations

import array
import contextlib
import functools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymigrate.checkpoint import criu_messages
from pymigrate.runtime import priority
from pymigrate.runtime.errors import CheckpointError, MissingFeature
from pymigrate.runtime.values import dataclass

PREFIX = Path("/opt/pymigrate/criu")
"""Where the set-up puts a CRIU if the distribution's does not work on the running kernel."""

MAX_MESSAGE = 1 << 20
"""Bytes; CRIU's answers are far smaller."""

PATIENCE = 1800.0
"""Seconds between two words of CRIU: in between it may write 100 GB of memory to a slow disk."""

REST = 30.0
"""Seconds for which a CRIU that writes a container down may do nothing at all: the container stands
still meanwhile. A slow disk is no rest, for each piece that it takes costs processor time."""

KILL_SECONDS = 60.0
"""Until a CRIU that was killed is gone; if it waits in the kernel for a disk, that may be never."""

_LOOKS = 10  # in REST seconds

_ORPHAN_PTS = "orphan-pts-master"


@dataclass(frozen=True)
class Criu:
    """A CRIU binary: its path and its version, such as ``4.2.1``."""

    path: str
    version: str

    @property
    def number(self) -> tuple[int, ...]:
        """The version as numbers, to compare."""
        return tuple(int(part) for part in self.version.split(".") if part.isdigit())


@functools.cache
def find() -> Criu:
    """Find CRIU: $PYMIGRATE_CRIU, else ours in PREFIX, else the one on PATH.

    The one in PREFIX is only there if the distribution's failed ``criu check``, so it comes first.

    Raises MissingFeature if there is none, or if pycriu, which has its messages, is missing.
    """
    for path in _candidates():
        if path and os.access(path, os.X_OK):
            return Criu(path, _version(path))
    raise MissingFeature(
        "there is no CRIU on this host, so containers can neither be checkpointed nor restored",
        hint="apt-get install criu, or name one in PYMIGRATE_CRIU; pymigrate check tells more",
    )


def _candidates() -> Iterator[str | None]:
    yield os.environ.get("PYMIGRATE_CRIU")
    yield str(PREFIX / "sbin/criu")
    import shutil  # with bz2 and lzma, for hosts that have the distribution's

    yield shutil.which("criu")
    yield "/usr/sbin/criu"


def _version(path: str) -> str:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingFeature(
            f"{path} does not run on this host: {error}", hint="pymigrate check tells more"
        ) from error
    for line in said.splitlines():
        key, _, value = line.partition(":")
        if key == "Version":
            return value.strip()
    raise MissingFeature(f"{path} does not say its version: {said[:100]!r}")


def messages() -> Any:
    """Return pycriu's message module; it comes with CRIU and not from a package index.

    Raises MissingFeature.
    """
    try:
        return criu_messages.rpc()
    except ImportError as error:
        raise MissingFeature(
            f"pycriu, which has CRIU's messages, cannot be imported: {error}",
            hint="apt-get install python3-pycriu (Debian 13 on; before, it is in criu)",
        ) from error


@dataclass(frozen=True)
class Notification:
    """CRIU says where it is and waits for our vote; ``fd`` is the caller's to close."""

    script: str
    pid: int
    fd: int | None = None


@dataclass(frozen=True)
class Finished:
    """CRIU's answer to the request: the restored root task, or the first error in its words."""

    success: bool
    pid: int | None
    errno: int
    message: str


class HungUp(CheckpointError):
    """CRIU ended without an answer: it was killed, or it could not even read the request."""


Spawn = Callable[[Sequence[str], Sequence[int]], int]


def _allow_descriptors(pid: int) -> None:
    """Let CRIU open as many descriptors as its hard limit has.

    A lazy dump holds the memory in pipes, two descriptors to each of at most 1 MiB
    (criu/page-pipe.c). CRIU lifts the limit itself only where it has CAP_SYS_RESOURCE.
    """
    # Gone already: its connection will say so.
    with contextlib.suppress(ProcessLookupError):
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


class Session:
    """One request to one ``criu swrk``. Closing it before the answer counts as a no.

    The process is started by `spawn`, which makes the given descriptors 3, 4, 5 … in it. CRIU
    resolves descriptors in a request through /proc of the process that made the socket pair, which
    is ours; only those of ``inherit_fd`` are its own.
    """

    INHERITED_FROM = 4
    """The number, in CRIU, of the first of the descriptors passed to `start`."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        """Wrap a connection; use `start`."""
        self._connection = connection
        self._messages = messages()
        self.pid = pid
        self.before_kill: Callable[[], None] = _nothing
        """What is done before a CRIU that is stuck is killed: with it, ptrace's hold is gone."""

    @classmethod
    def start(cls, spawn: Spawn, passed: Sequence[int] = ()) -> Self:
        """Start CRIU's worker; `passed` become INHERITED_FROM, +1, … in it."""
        criu = find()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, priority.wholly():
                pid = spawn(
                    [criu.path, "--no-default-config", "swrk", "3"], [theirs.fileno(), *passed]
                )
            _allow_descriptors(pid)
            priority.favour(pid)
        except BaseException:
            ours.close()
            raise
        return cls(ours, pid)

    def ask(self, kind: str, options: Mapping[str, object]) -> None:
        """Send the request; `kind` is a name of CRIU's criu_req_type, such as ``DUMP``."""
        rpc = self._messages
        request = rpc.criu_req(type=rpc.criu_req_type.Value(kind))
        _fill(request.opts, options)
        self._send(request)

    def next(self, timeout: float = PATIENCE, rest: float | None = None) -> Notification | Finished:
        """Wait for CRIU's next word.

        Raises HungUp if it ended, or said nothing for `timeout` seconds, or neither said nor did
        anything for `rest` seconds: then it is ended, see `end`, which counts as a no.
        """
        if stuck := self._wait(self._connection.fileno(), timeout, rest):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)  # whoever stopped it: it may still undo all
            self.end(timeout if rest is None else rest)
            raise HungUp(f"criu {stuck} and was ended")
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(
                MAX_MESSAGE, socket.CMSG_SPACE(array.array("i").itemsize)
            )
        except ConnectionResetError:
            data, ancillary, flags = b"", [], 0
        if not data:
            raise HungUp("criu ended without an answer")
        if flags & socket.MSG_TRUNC:
            raise HungUp(f"criu sent more than {MAX_MESSAGE} bytes")
        fd = _descriptor(ancillary)
        answer = self._messages.criu_resp.FromString(data)
        if answer.type == self._messages.NOTIFY:
            if answer.notify.script == _ORPHAN_PTS and fd is None:
                # The descriptor is sent in a message of its own, with one byte of data.
                raise HungUp("criu announced a terminal and sent none")
            return Notification(answer.notify.script, answer.notify.pid, fd)
        if fd is not None:
            os.close(fd)
        return Finished(
            bool(answer.success),
            answer.restore.pid if answer.HasField("restore") else None,
            answer.cr_errno,
            answer.cr_errmsg,
        )

    def _wait(self, descriptor: int, timeout: float, rest: float | None) -> str:
        """Wait until it can be read; if that takes too long, return what CRIU did instead."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        spent, since = _spent(self.pid), time.monotonic()
        deadline = since + timeout
        while not poll.poll(1000 * (timeout if rest is None else min(timeout, rest / _LOOKS))):
            now = time.monotonic()
            if (seen := _spent(self.pid)) != spent:
                spent, since = seen, now
            if rest is not None and now - since >= rest:
                return f"did nothing for {rest:g} s"
            if now >= deadline:
                return f"said nothing for {timeout:g} s"
        return ""

    def vote(self, *, yes: bool) -> None:
        """Answer a notification."""
        rpc = self._messages
        self._send(rpc.criu_req(type=rpc.NOTIFY, notify_success=yes))

    def _send(self, message: Any) -> None:
        try:
            self._connection.sendall(message.SerializeToString())
        except (BrokenPipeError, ConnectionResetError) as error:
            raise HungUp("criu ended before it could be answered") from error

    def close(self) -> None:
        """Hang up; may be repeated."""
        self._connection.close()

    def end(self, timeout: float = PATIENCE) -> None:
        """Hang up and wait until CRIU has undone what it did: it freezes anew what was frozen.

        It is killed if that takes longer than `timeout` seconds, or if it does nothing for REST.
        """
        self.close()
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self._wait(process, timeout, REST):
                try:
                    self.before_kill()
                finally:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                self._wait(process, KILL_SECONDS, None)
        except ProcessLookupError:
            pass  # it has just ended
        finally:
            os.close(process)

    def __enter__(self) -> Self:
        """Hang up at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Hang up."""
        self.close()


class Prepared:
    """A CRIU that has started and waits for its request: once it is asked, it is used up."""

    def __init__(self, session: Session) -> None:
        """Take a session that was asked nothing yet."""
        self._session: Session | None = session

    @property
    def pid(self) -> int:
        """The PID of CRIU, until it is used."""
        if self._session is None:
            raise AssertionError("a prepared criu is used once")
        return self._session.pid

    def take(self) -> Session:
        """Give the session away, once."""
        if self._session is None:
            raise AssertionError("a prepared criu is used once")
        session, self._session = self._session, None
        return session

    def close(self) -> None:
        """End CRIU, if it was not used; may be repeated."""
        if self._session is not None:
            self._session.close()

    def __enter__(self) -> Self:
        """End CRIU at the end of the block, if it was not used."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End CRIU, if it was not used."""
        self.close()


def _nothing() -> None:
    """Do nothing."""


def _spent(pid: int) -> int:
    """Return the processor time of a process and all that it began, in ticks; 0 for one gone."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
        begun = [path.read_bytes() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # Behind the name, which may contain anything: proc(5). Fields 14 to 17, of itself and of those
    # that have ended.
    own = sum(map(int, line.rpartition(b")")[2].split()[11:15]))
    return own + sum(_spent(int(child)) for children in begun for child in children.split())


def _descriptor(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found = array.array("i")
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
            for surplus in found[1:]:
                os.close(surplus)
            return found[0] if found else None
    return None


def keep_request(path: Path, kind: str, fields: Mapping[str, object]) -> None:
    """Show a maintainer what CRIU is about to be asked for, and write it down; see `Session.ask`.

    It is numbers, and paths of mounts; nobody's words or keys. For who debugs: to load ``logging``
    takes 6 ms, which all others need not wait for, least of all while a container is frozen.
    """
    import logging

    logging.getLogger(__name__).debug("criu is asked: %s %s", kind, json.dumps(fields))
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _fill(message: Any, fields: Mapping[str, object]) -> None:
    """Copy plain values into a protobuf message: mappings are messages, lists are repeated."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            # Also marks a message without fields as present.
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), value)
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            repeated = getattr(message, name)
            for item in value:
                if isinstance(item, Mapping):
                    _fill(repeated.add(), item)
                else:
                    repeated.append(item)
        else:
            setattr(message, name, value)
