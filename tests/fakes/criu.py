"""A CRIU that follows a script: what it expects to be asked, what it says, when it hangs up."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pymigrate.checkpoint import criu

Step = Callable[["ScriptedCriu"], None]


@dataclass
class ScriptedCriu:
    """The far end of a Session; runs its script in a thread and keeps what it was told."""

    script: Sequence[Step]
    requests: list[Any] = field(default_factory=list)
    votes: list[bool] = field(default_factory=list)
    failure: BaseException | None = None
    process: subprocess.Popen[bytes] | None = None  # what has CRIU's PID, and can be killed
    program: Sequence[str] = ("sleep", "60")  # what that does
    _socket: socket.socket | None = None
    _thread: threading.Thread | None = None

    def spawn(self, argv: Sequence[str], fds: Sequence[int]) -> int:
        """Take the place of starting `criu swrk`."""
        assert "swrk" in argv
        self._socket = socket.socket(fileno=os.dup(fds[0]))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.process = subprocess.Popen(self.program)
        return self.process.pid

    def finish(self) -> None:
        """Wait for the end of the script; raises what went wrong in it."""
        assert self._thread is not None
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        assert self._socket is not None
        with self._socket:
            try:
                for step in self.script:
                    step(self)
            except BaseException as error:
                self.failure = error

    @property
    def connection(self) -> socket.socket:
        """Our end."""
        assert self._socket is not None
        return self._socket

    def receive(self) -> Any:
        """Receive one message of the requester."""
        data = self.connection.recv(1 << 20)
        assert data, "the requester hung up"
        return criu.messages().criu_req.FromString(data)

    def send(self, answer: Any, fds: Sequence[int] = ()) -> None:
        """Send one answer."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.connection.sendmsg([answer.SerializeToString()], rights)


def expect(kind: str) -> Step:
    """Expect a request of this type."""

    def step(fake: ScriptedCriu) -> None:
        request = fake.receive()
        assert criu.messages().criu_req_type.Value(kind) == request.type
        fake.requests.append(request)

    return step


def notify(script: str, pid: int = 0, fds: Sequence[int] = ()) -> Step:
    """Notify, and wait for the vote."""

    def step(fake: ScriptedCriu) -> None:
        rpc = criu.messages()
        answer = rpc.criu_resp(type=rpc.NOTIFY, success=True)
        answer.notify.script = script
        answer.notify.pid = pid
        fake.send(answer, fds)
        fake.votes.append(fake.receive().notify_success)

    return step


def reply(kind: str, *, success: bool, pid: int | None = None, message: str = "") -> Step:
    """Answer the request."""

    def step(fake: ScriptedCriu) -> None:
        rpc = criu.messages()
        answer = rpc.criu_resp(type=rpc.criu_req_type.Value(kind), success=success)
        if pid is not None:
            answer.restore.pid = pid
        answer.cr_errmsg = message
        fake.send(answer)

    return step


def hang_up(fake: ScriptedCriu) -> None:
    """Die."""
    fake.connection.close()


def await_hang_up(fake: ScriptedCriu) -> None:
    """Expect that the requester hangs up."""
    assert fake.connection.recv(1) == b""
