"""Logins at a real sshd that begin before they are needed: shared, refused, cut, never wanted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pymigrate.migrate.target import Login, Logins, Target
from pymigrate.runtime.errors import AuthenticationFailed
from pymigrate.transport.frames import Frame, Kind
from tests.fakes import sshd as fake_sshd
from tests.fakes.sshd import Sshd

ECHO = "sh -c cat"  # in the agent's place; the word "agent" is its name then
WAIT = 10.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this person's own keys, agent and configuration."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@dataclass(frozen=True)
class Watched(Target):
    """A target that remembers who has logged in, and how often it was tried."""

    logins: list[Login] = field(default_factory=list)
    tried: list[None] = field(default_factory=list)

    def log_in(self) -> Login:
        self.tried.append(None)
        login = super().log_in()
        self.logins.append(login)
        return login


def target(server: Sshd, key: Path | None = None) -> Watched:
    return Watched(
        server.name,
        identity=str(key or server.user_key),
        known_hosts=str(server.known_hosts),
        remote_command=ECHO,
    )


def taken(logins: Logins) -> Login:
    login = logins.take()
    assert login is not None
    return login


def answers(login: Login) -> bool:
    login.agent.send(Frame(Kind.EVENT, b"anybody there?"), timeout=WAIT)
    return bytes(login.agent.receive(timeout=WAIT).payload) == b"anybody there?"


def test_two_share_a_connection_which_ends_with_the_last(sshd: Sshd) -> None:
    there = target(sshd)
    with closing(Logins(there, 2)) as logins:
        first, second = taken(logins), taken(logins)
        assert logins.take() is None
    try:
        assert len(there.tried) == 1
        assert (first.is_alone, second.is_alone) == (True, False)
        assert first.connection is second.connection
        assert answers(first)
        assert answers(second)
        first.close()
        first.close()
        assert answers(second)
    finally:
        second.close()
    assert not second.connection.alive


def test_a_host_that_allows_one_session_has_two_connections(tmp_path: Path) -> None:
    if reason := fake_sshd.missing():
        pytest.skip(f"missing: {reason}")
    with (
        fake_sshd.running(tmp_path, settings="MaxSessions 1") as server,
        closing(Logins(target(server), 2)) as logins,
    ):
        first, second = taken(logins), taken(logins)
        try:
            assert second.is_alone
            assert answers(first)
            assert answers(second)
        finally:
            first.close()
            second.close()


def test_what_nobody_takes_is_hung_up(sshd: Sshd) -> None:
    there = target(sshd)
    with closing(Logins(there, 2)) as logins:
        logins.await_library()
        first = taken(logins)
        first.close()

    assert not there.logins[0].connection.alive


def test_who_is_not_let_in_is_told_so_each_time_and_tried_once(sshd: Sshd) -> None:
    there = target(sshd, sshd.other_key)
    with closing(Logins(there, 2)) as logins:
        for _ in range(2):
            with pytest.raises(AuthenticationFailed):
                logins.take()
        assert logins.take() is None
    assert len(there.tried) == 1


def test_a_login_that_was_cut_while_it_waited_is_not_given(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, beside = threading.Event(), Login.beside

    def watched(login: Login, command: Sequence[str]) -> Login:
        second = beside(login, command)
        made.set()
        return second

    monkeypatch.setattr(Login, "beside", watched)
    with closing(Logins(target(sshd), 2)) as logins:
        first = taken(logins)
        assert made.wait(WAIT)
        first.connection.close()

        assert logins.take() is None
