"""A repository's storage on another host: by an agent in a thread, or by one behind sshd."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.migrate.remote_storage import RemoteStorage
from pymigrate.migrate.repository_agent import RepositoryAgent
from pymigrate.transport import loopback, ssh
from pymigrate.transport.channel import Channel
from pymigrate.transport.destination import Destination
from pymigrate.transport.rpc import Client, Server
from tests.fakes.sshd import Sshd

AGENT = (sys.executable, "-I", "-m", "pymigrate.migrate", "agent", "--repository")


class Thread(threading.Thread):
    """An agent in a thread; ``ended`` is what ended it, if that was an error."""

    def __init__(self, directory: Directory, channel: Channel) -> None:
        super().__init__()
        self.ended: BaseException | None = None
        self._agent = RepositoryAgent(directory)
        self._channel = channel

    def run(self) -> None:
        try:
            try:
                Server(self._channel, self._agent.handlers()).serve()
            finally:
                self._agent.close()
        except BaseException as error:
            self.ended = error


@contextmanager
def by_thread(directory: Directory) -> Iterator[tuple[RemoteStorage, Client]]:
    """Give a storage by an agent in a thread, which has ended when the block has."""
    near, far = loopback.pair("beta", "alpha")
    thread = Thread(directory, far)
    thread.start()
    try:
        with Client(near, level=None) as client:
            yield RemoteStorage(client, "ssh://beta/repository"), client
    finally:
        thread.join()


@contextmanager
def by_ssh(server: Sshd, directory: Path) -> Iterator[tuple[RemoteStorage, Client]]:
    """Give a storage by an agent that a real sshd started."""
    with (
        ssh.connect(
            Destination.parse(server.name),
            identity=server.user_key,
            known_hosts=server.known_hosts,
        ) as connection,
        Client(connection.open_agent([*AGENT, str(directory)]), level=None) as client,
    ):
        yield RemoteStorage(client, f"ssh://{server.name}{directory}"), client
