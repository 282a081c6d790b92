"""A peer that sends more than SSH allows it: our memory stays bounded, the connection ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import paramiko
import pytest

from pymigrate.transport import ssh_channel

PIECE = 32 << 10
WINDOW = 8 * PIECE
WAIT = 20.0


class Server(paramiko.ServerInterface):
    """Lets anybody in, and has a session for everyone."""

    def check_auth_none(self, _user: str) -> int:
        return 0  # AUTH_SUCCESSFUL

    def get_allowed_auths(self, _user: str) -> str:
        return "none"

    def check_channel_request(self, _kind: str, _number: int) -> int:
        return 0  # OPEN_SUCCEEDED


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[paramiko.Channel, paramiko.Channel]]:
    """Give our session and the server's end of it."""
    monkeypatch.setattr(ssh_channel, "WINDOW", WINDOW)
    ours, theirs = socket.socketpair()
    server = paramiko.Transport(theirs)
    client = paramiko.Transport(ours, default_window_size=WINDOW)
    try:
        server.add_server_key(paramiko.ECDSAKey.generate())
        begun = threading.Event()
        server.start_server(begun, Server())
        client.start_client(timeout=WAIT)
        client.auth_none("root")
        session = ssh_channel.open_session(client, WAIT)
        there = server.accept(WAIT)
        assert there is not None
        yield session, there
    finally:
        client.close()
        server.close()


def test_what_is_unread_never_exceeds_the_window(
    pair: tuple[paramiko.Channel, paramiko.Channel],
) -> None:
    session, there = pair
    there.out_window_size = 1 << 30  # it does as if we had allowed that
    with pytest.raises((OSError, EOFError, paramiko.SSHException)):
        there.sendall(bytes(4096 * PIECE))
    transport = session.get_transport()
    transport.join(WAIT)
    assert not transport.is_active()
    assert len(session.in_buffer) <= WINDOW


def test_what_is_read_makes_room(pair: tuple[paramiko.Channel, paramiko.Channel]) -> None:
    session, there = pair
    sent = 3 * WINDOW
    writer = threading.Thread(target=lambda: there.sendall(bytes(sent)))
    writer.start()
    session.settimeout(WAIT)
    got = 0
    while got < sent:
        got += len(session.recv(PIECE))
    writer.join(WAIT)
    assert got == sent
    assert session.get_transport().is_active()
