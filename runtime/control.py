"""Messages between a supervisor and its clients: JSON objects with file descriptors beside them.

One SOCK_SEQPACKET packet is one message, so that a reader never sees half of one. A request is
``{"op": NAME, ...}``; its reply is ``{"ok": true, ...}`` or ``{"error": {"kind": CLASS, "message":
TEXT, "hint": TEXT}}``, where CLASS names a class of errors.py. Descriptors travel by SCM_RIGHTS
(see unix(7)) and arrive with close-on-exec set.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterable, Mapping

from pymigrate.runtime import errors

MAX_MESSAGE = 128 * 1024
MAX_DESCRIPTORS = 32
SOCKET_NAME = "control.sock"


def send(connection: socket.socket, message: Mapping[str, object], fds: Iterable[int] = ()) -> None:
    """Send one message.

    Raises:
        BlockingIOError: the connection does not block and the other side does not read.
        BrokenPipeError: the other side is gone.

    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise errors.UsageError(f"a message of {len(data)} bytes is longer than {MAX_MESSAGE}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """Receive one message and its descriptors, which the caller owns; None when it hung up.

    Raises:
        ProtocolError: the packet is not such a message; its descriptors are closed.

    """
    fds = array.array("i")
    data, ancillary, flags, _ = connection.recvmsg(
        MAX_MESSAGE + 1,
        socket.CMSG_SPACE(MAX_DESCRIPTORS * fds.itemsize),
        socket.MSG_CMSG_CLOEXEC,
    )
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data and not fds:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise errors.ProtocolError("a message of the supervisor's socket is too long")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise errors.ProtocolError("a message of the supervisor's socket is not an object")
    except (ValueError, RecursionError) as error:
        _close(fds)
        raise errors.ProtocolError("a message of the supervisor's socket is not JSON") from error
    except errors.ProtocolError:
        _close(fds)
        raise
    return message, list(fds)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def error_to_document(error: errors.PymigrateError) -> dict[str, object]:
    """Turn an error into the reply that carries it."""
    document = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    return {"error": document}


def error_from_document(document: object) -> errors.PymigrateError:
    """Turn the ``error`` of a reply back into an error of the same class."""
    fields = document if isinstance(document, dict) else {}
    found = getattr(errors, str(fields.get("kind")), None)
    kind = (
        found
        if isinstance(found, type) and issubclass(found, errors.PymigrateError)
        else errors.ContainerError
    )
    return kind(str(fields.get("message", "unknown error")), hint=str(fields.get("hint", "")))


def peer_uid(connection: socket.socket) -> int:
    """Return whose process is at the other end."""
    return _peer(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """Return which process made the connection."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> array.array[int]:
    """Return PID, UID and GID; see SO_PEERCRED in unix(7)."""
    credentials = array.array("i")
    size = 3 * credentials.itemsize  # struct ucred
    credentials.frombytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return credentials


def listen(directory_fd: int) -> socket.socket:
    """Make the supervisor's socket in a directory, whatever the length of its path."""
    path = _short(directory_fd)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with contextlib.suppress(FileNotFoundError):  # left by a supervisor that was killed
            os.unlink(SOCKET_NAME, dir_fd=directory_fd)
        listener.bind(path)
        listener.listen(16)
    except OSError:
        listener.close()
        raise
    return listener


def connect(directory: os.PathLike[str]) -> socket.socket:
    """Connect to the supervisor of a container's directory.

    Raises:
        FileNotFoundError, ConnectionRefusedError: there is none.

    """
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(_short(directory_fd))
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory_fd)
    return connection


def _short(directory_fd: int) -> str:
    # sun_path has 108 bytes, a --root may be longer: go through the descriptor.
    return f"/proc/self/fd/{directory_fd}/{SOCKET_NAME}"
