"""The other host: how it is reached, and logins there that begin before anybody needs them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.runtime.errors import Unreachable

if TYPE_CHECKING:
    from pymigrate.transport.limit import RateLimit
    from pymigrate.transport.rpc import Client
    from pymigrate.transport.ssh import Connection
    from pymigrate.transport.ssh_channel import SshChannel


class Login:
    """Frames to an agent at the target, by a connection that others may use too.

    The connection is closed with the last of those that use it.
    """

    def __init__(self, connection: Connection, agent: SshChannel, users: set[Login]) -> None:
        """Use `Target.log_in`, or `beside`."""
        self.connection = connection
        self.agent = agent
        self.is_alone = not users
        """Whether nobody used the connection before, so that it has nothing else to carry."""
        self._users = users
        users.add(self)

    def beside(self, command: Sequence[str]) -> Login:
        """Start one more agent by this connection: another login would cost both hosts 60 ms.

        Raises Unreachable, as where a host allows one session by a connection.
        """
        return Login(self.connection, self.connection.open_agent(command), self._users)

    def close(self) -> None:
        """Hang up; may be repeated."""
        self._users.discard(self)
        if self._users:
            self.agent.close()
        else:
            self.connection.close()


@dataclass(frozen=True)
class Target:
    """How to reach the target's agent; all of it goes into the journal, none of it is secret."""

    destination: str
    identity: str | None = None
    known_hosts: str | None = None
    ssh_config: str | None = None
    remote_root: str | None = None
    remote_command: str = "pymigrate"

    def log_in(self) -> Login:
        """Log in and start an agent; whether it is one shows at its first answer.

        Raises what `transport.ssh.connect` and `Connection.open_agent` do.
        """
        from pymigrate.transport import ssh  # paramiko takes 80 ms to load
        from pymigrate.transport.destination import Destination

        connection = ssh.connect(
            Destination.parse(self.destination),
            identity=_path(self.identity),
            known_hosts=_path(self.known_hosts),
            ssh_config=_path(self.ssh_config),
        )
        with ExitStack() as undo:
            undo.push(connection)
            agent = connection.open_agent(self.command)
            undo.pop_all()
        return Login(connection, agent, set())

    def connect(
        self, undo: ExitStack, limit: RateLimit | None = None, logins: Logins | None = None
    ) -> Client:
        """Speak to an agent, to one of ``logins`` if there is one; `undo` gets what hangs up."""
        from pymigrate.transport.rpc import Client

        login = None if logins is None else logins.take()
        login = self.log_in() if login is None else login
        undo.callback(login.close)
        client = Client(
            login.agent,
            address=login.connection.address,
            limit=limit,
            has_line=login.is_alone,
        )
        return undo.enter_context(client)

    @property
    def command(self) -> Sequence[str]:
        """What is run at the target."""
        words = self.remote_command.split()
        if self.remote_root is not None:
            words += ["--root", self.remote_root]
        return [*words, "agent"]


class Logins:
    """Logs in at a target from now on, and starts as many agents there as are asked for.

    The first has the connection to itself at first; the others share it where the target lets them.
    Close it in the end: what nobody took is hung up, after what is being made.
    """

    def __init__(self, target: Target, count: int) -> None:
        """Begin."""
        self.target = target
        self._library = threading.Event()
        self._closed = False
        self._made: deque[Future[Login]] = deque(Future[Login]() for _ in range(count))
        self._thread = threading.Thread(
            target=self._run, args=(list(self._made),), name="logins", daemon=True
        )
        self._thread.start()

    def _run(self, wanted: Sequence[Future[Login]]) -> None:
        failure: BaseException | None = None
        first: Login | None = None
        try:
            from pymigrate.transport import ssh  # noqa: F401 - see await_library
        except BaseException as error:
            failure = error
        self._library.set()
        for each in wanted:
            if failure is None and not self._closed:
                try:
                    first = self._next(first)
                    each.set_result(first)
                    continue
                except BaseException as error:
                    failure = error  # raised by whoever takes it
            each.set_exception(failure or AssertionError("closed before it was made"))

    def _next(self, before: Login | None) -> Login:
        if before is not None:
            with contextlib.suppress(Unreachable):  # sshd_config(5): MaxSessions 1
                return before.beside(self.target.command)
        return self.target.log_in()

    def await_library(self) -> None:
        """Wait until what speaks SSH is loaded, and the first login begins."""
        self._library.wait()

    def take(self) -> Login | None:
        """Wait for the next one, which is the caller's then; None after the last that still stands.

        Raises why there is none; so do those after it, for they are not tried.
        """
        while True:
            try:
                login = self._made.popleft().result()
            except IndexError:
                return None
            if login.connection.alive:
                return login
            login.close()  # cut while it waited, with another one's

    def close(self) -> None:
        """Hang up what nobody took; may be repeated."""
        self._closed = True
        self._thread.join()
        while self._made:
            left = self._made.popleft()
            if left.exception() is None:
                left.result().close()


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()
