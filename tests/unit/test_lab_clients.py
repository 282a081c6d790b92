"""The clients of the lab speak the protocols of their servers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.lab import clients
from tests.lab.clients import Gaps, Postgres, Redis, ServerError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Be the server of whatever client connects."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(clients, "connect", lambda *_: ours)
    with ours, theirs:
        yield theirs


def test_redis_command_and_every_kind_of_answer(server: socket.socket) -> None:
    redis = Redis("redis", 6379)
    server.sendall(b"*4\r\n+OK\r\n:7\r\n$3\r\na\r\n\r\n$-1\r\n")

    assert [b"OK", 7, b"a\r\n", None] == redis.ask("SET", "key", b"\0")
    assert b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$1\r\n\0\r\n" == server.recv(100)


@pytest.mark.parametrize("cut", range(1, 15))
def test_redis_answer_may_come_in_pieces(server: socket.socket, cut: int) -> None:
    redis = Redis("redis", 6379)
    answer = b"*2\r\n$1\r\nx\r\n:12\r\n"
    server.sendall(answer[:cut])
    redis._more()
    server.sendall(answer[cut:])

    assert [b"x", 12] == redis.ask("ANY")


def test_redis_error_and_end_are_told_apart(server: socket.socket) -> None:
    redis = Redis("redis", 6379)
    server.sendall(b"-ERR no\r\n")

    with pytest.raises(ServerError, match="ERR no"):
        redis.ask("ANY")
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(ServerError, match="closed"):
        redis.ask("ANY")


def message(kind: bytes, body: bytes) -> bytes:
    """Frame a message of PostgreSQL."""
    return kind + struct.pack("!i", len(body) + 4) + body


def test_postgres_rows_and_state_of_the_transaction(server: socket.socket) -> None:
    server.sendall(
        message(b"R", struct.pack("!i", 0))
        + message(b"K", struct.pack("!ii", 42, 7))
        + message(b"Z", b"I")
    )
    postgres = Postgres("postgres", 5432, "me")
    row = struct.pack("!hi", 2, 3) + b"one" + struct.pack("!i", -1)
    server.sendall(message(b"D", row) + message(b"C", b"SELECT 1\0") + message(b"Z", b"T"))

    assert [["one", None]] == postgres.query("select")
    assert (42, "T") == (postgres.backend_pid, postgres.status)


def test_postgres_error_comes_after_it_is_ready_again(server: socket.socket) -> None:
    server.sendall(message(b"Z", b"I"))
    postgres = Postgres("postgres", 5432, "me")
    server.sendall(message(b"E", b"SERROR\0C42601\0Mno such\0\0") + message(b"Z", b"E"))

    with pytest.raises(ServerError, match="42601 no such"):
        postgres.query("select")
    assert "E" == postgres.status


def test_longest_gap_is_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 1.0, 1.5, 1.5, 1.5, 1.75, 1.75, 1.75])
    clock = SimpleNamespace(monotonic=lambda: next(now), time=lambda: 0.0)
    monkeypatch.setattr(clients, "time", clock)
    gaps = Gaps()
    gaps.answered()
    gaps.answered()
    first = gaps.report()
    gaps.answered()
    second = gaps.report()

    assert (1.0, 2) == (first["longest_gap"], first["answers"])
    assert (0.25, 1) == (second["longest_gap"], second["answers"])
