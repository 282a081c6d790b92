"""Messages of the control socket: whole, bounded, and with their descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime import control, errors


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_a_message_arrives_with_its_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    read, write = os.pipe()
    control.send(pair[0], {"op": "x"}, [write])
    os.close(write)
    message, fds = control.receive(pair[1]) or ({}, [])
    os.write(fds[0], b"hello")

    assert ({"op": "x"}, b"hello") == (message, os.read(read, 9))
    assert not os.get_inheritable(fds[0])
    for fd in (read, *fds):
        os.close(fd)


@pytest.mark.parametrize("data", [b"[]", b"5", b"{", b"\xff", b"[" * 50_000, b"x" * 200_000])
def test_what_is_no_message_is_refused(
    pair: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    pair[0].send(data)

    with pytest.raises(errors.ProtocolError):
        control.receive(pair[1])


def test_the_end_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()

    assert control.receive(pair[1]) is None


def test_an_error_comes_back_as_what_it_was() -> None:
    error = errors.CommandNotFound("no such", hint="look")
    document = control.error_to_document(error)
    back = control.error_from_document(document["error"])

    assert (type(back), back.message, back.hint) == (errors.CommandNotFound, "no such", "look")


@pytest.mark.parametrize("document", [None, 5, {}, {"kind": "annotations"}, {"kind": "Exception"}])
def test_an_unknown_error_is_still_one_of_ours(document: object) -> None:
    assert errors.ContainerError is type(control.error_from_document(document))


def test_a_socket_works_below_a_very_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()
    fd = os.open(directory, os.O_PATH)
    with control.listen(fd) as listener, control.connect(directory) as client:
        server, _ = listener.accept()
        with server:
            control.send(client, {"op": "ping"})
            assert ({"op": "ping"}, []) == control.receive(server)
            assert os.getuid() == control.peer_uid(server)
    os.close(fd)
