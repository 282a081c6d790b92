"""Connections that were left in repair mode."""

from __future__ import annotations

import os
import socket

import pytest

from pymigrate.runtime import tcp_repair


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.mark.skipif(os.geteuid() != 0, reason="repair mode is for CAP_NET_ADMIN")
def test_connection_in_repair_mode_goes_on(pair: tuple[socket.socket, socket.socket]) -> None:
    (near, far), others = pair, socket.socketpair()
    with near, far, others[0], others[1]:
        near.setsockopt(socket.IPPROTO_TCP, tcp_repair.TCP_REPAIR, 1)
        with pytest.raises(OSError, match="Invalid argument"):
            near.send(b"x")

        assert 1 == tcp_repair.end([os.getpid(), 1 << 30])

        assert 0 == tcp_repair.end([os.getpid()])
        near.send(b"x")
        assert b"x" == far.recv(9)
