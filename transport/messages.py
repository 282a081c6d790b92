"""Requests and replies as typed messages: packing, checking, and which versions understand us.

The fields are listed in messages.proto. What a peer sends is checked here once, so that handlers
may build file names from ``migration_id``, ``name``, ``tree`` and ``digest``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from google.protobuf.message import DecodeError, Message

from pymigrate.runtime.errors import PeerError, ProtocolError, PymigrateError
from pymigrate.runtime.version import VERSION
from pymigrate.transport import messages_pb2
from pymigrate.transport.messages_pb2 import (
    AskRepository,
    DataOpened,
    Error,
    Facts,
    Finish,
    Finished,
    Hello,
    HelloReply,
    Keepalive,
    KeptAlive,
    OpenData,
    Pages,
    PagesTaken,
    Prepare,
    Prepared,
    PutChanges,
    PutFiles,
    PutImageFiles,
    PutImages,
    PutLayer,
    Received,
    Release,
    Released,
    RepositoryTold,
    Reserve,
    Reserved,
    Restore,
    Restored,
    Resume,
    Resumed,
    Status,
    StatusReply,
)

__all__ = [
    "ANSWERS",
    "PROTOCOL",
    "PROTOCOL_MIN",
    "AskRepository",
    "DataOpened",
    "Error",
    "Facts",
    "Finish",
    "Finished",
    "Hello",
    "HelloReply",
    "Keepalive",
    "KeptAlive",
    "Message",
    "OpenData",
    "Pages",
    "PagesTaken",
    "Prepare",
    "Prepared",
    "PutChanges",
    "PutFiles",
    "PutImageFiles",
    "PutImages",
    "PutLayer",
    "Received",
    "Release",
    "Released",
    "RepositoryTold",
    "Reserve",
    "Reserved",
    "Restore",
    "Restored",
    "Resume",
    "Resumed",
    "Status",
    "StatusReply",
    "hello",
    "negotiate",
    "pack_error",
    "pack_reply",
    "pack_request",
    "printable",
    "software",
    "unpack_error",
    "unpack_reply",
    "unpack_request",
]

PROTOCOL = 1  # the version we speak
PROTOCOL_MIN = 1  # the oldest that we still understand

MAX_TEXT = 8192  # characters of an error's message or hint that are worth sending
ANSWERS: Mapping[type[Message], type[Message]] = {  # what each request is answered by
    Hello: HelloReply,
    Reserve: Reserved,
    Prepare: Prepared,
    PutLayer: Received,
    PutFiles: Received,
    PutChanges: Received,
    PutImages: Received,
    PutImageFiles: Received,
    Restore: Restored,
    Resume: Resumed,
    Release: Released,
    Finish: Finished,
    Status: StatusReply,
    Keepalive: KeptAlive,
    OpenData: DataOpened,
    Pages: PagesTaken,
    AskRepository: RepositoryTold,
}
STREAMED = frozenset({PutLayer, PutFiles, PutChanges, PutImages, PutImageFiles})  # a stream follows
UPPER = "upper"  # the tree of PutFiles that is the container's own changes

_MIGRATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,250}")
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
_PLACE = re.compile(r"config|(packs|snapshots|locks|tmp)/[A-Za-z0-9][A-Za-z0-9.-]{0,250}")
_FOLDER = re.compile(r"packs|snapshots|locks|tmp")


def software() -> str:
    """Name ourselves with our version."""
    return f"pymigrate {VERSION}"


def hello(migration_id: str = "", *, for_memory: bool = False) -> Hello:
    """Make the first request of a connection; ``for_memory`` if it is to carry memory alone."""
    return Hello(
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL,
        software=software(),
        migration_id=migration_id,
        for_memory=for_memory,
    )


def negotiate(peer: Hello, *, lowest: int = PROTOCOL_MIN, highest: int = PROTOCOL) -> int:
    """Choose the highest version that both speak.

    Raises ProtocolError, naming both sides' versions, if there is none.
    """
    if peer.protocol_min > peer.protocol_max or peer.protocol_max == 0:
        message = f"hello with impossible versions {peer.protocol_min} to {peer.protocol_max}"
        raise ProtocolError(message)
    chosen = min(highest, peer.protocol_max)
    if chosen < max(lowest, peer.protocol_min):
        older = "the target's" if highest < peer.protocol_min else "the source's"
        message = (
            f"the two hosts speak different protocols: the source is"
            f" {printable(peer.software) or 'unknown'} with protocol"
            f" {_span(peer.protocol_min, peer.protocol_max)}, the target {software()} with"
            f" {_span(lowest, highest)}"
        )
        raise ProtocolError(message, hint=f"{older} pymigrate is the older one: update it")
    return chosen


def accept(reply: HelloReply) -> int:
    """Check the version that the target chose; ProtocolError if we do not speak it."""
    if not PROTOCOL_MIN <= reply.protocol <= PROTOCOL:
        message = (
            f"the target ({printable(reply.software) or 'unknown'}) chose protocol"
            f" {reply.protocol}, and we are {software()} with {_span(PROTOCOL_MIN, PROTOCOL)}"
        )
        hint = "put the same version of pymigrate on both hosts"
        raise ProtocolError(message, hint=hint)
    return reply.protocol


def _span(lowest: int, highest: int) -> str:
    return str(lowest) if lowest == highest else f"{lowest} to {highest}"


def printable(text: str) -> str:
    """Replace what could steer a terminal, and cut what is too long; for text from a peer."""
    shown = "".join(c if c.isprintable() or c == "\n" else "�" for c in text[:MAX_TEXT])
    return shown.strip()


def _arms(envelope: type[Message]) -> dict[str, str]:
    """Map the names of messages to the arms of the envelope's oneof that hold them."""
    body = envelope.DESCRIPTOR.oneofs_by_name["body"]
    return {str(field.message_type.name): field.name for field in body.fields}  # type: ignore[union-attr]


_REQUEST_ARMS = _arms(messages_pb2.Request)
_REPLY_ARMS = _arms(messages_pb2.Reply)


def pack_request(identity: int, body: Message) -> bytes:
    """Put a request into its envelope."""
    envelope = messages_pb2.Request(id=identity)
    getattr(envelope, _REQUEST_ARMS[body.DESCRIPTOR.name]).CopyFrom(body)
    return envelope.SerializeToString()


def pack_reply(identity: int, body: Message) -> bytes:
    """Put a reply into its envelope."""
    envelope = messages_pb2.Reply(id=identity)
    getattr(envelope, _REPLY_ARMS[body.DESCRIPTOR.name]).CopyFrom(body)
    return envelope.SerializeToString()


def pack_error(identity: int, error: PymigrateError) -> bytes:
    """Write an error down for the other side."""
    return Error(
        id=identity,
        code=error.exit_code,
        kind=type(error).__name__,
        message=error.message[:MAX_TEXT],
        hint=error.hint[:MAX_TEXT],
    ).SerializeToString()


def unpack_request(data: bytes | bytearray | memoryview) -> tuple[int, Message]:
    """Read a request; ProtocolError if it is none, one that we do not know, or a hostile one."""
    envelope = messages_pb2.Request()
    body = _parse(envelope, data, "request")
    return envelope.id, _checked(body)


def unpack_reply(data: bytes | bytearray | memoryview) -> tuple[int, Message]:
    """Read a reply; ProtocolError if it is none or one that we do not know."""
    envelope = messages_pb2.Reply()
    body = _parse(envelope, data, "reply")
    return envelope.id, body


def unpack_error(data: bytes | bytearray | memoryview) -> tuple[int, PeerError]:
    """Read what the other side says went wrong there."""
    error = Error()
    try:
        error.ParseFromString(bytes(data))
    except DecodeError as cause:
        message = "the other side sent an error that cannot be read"
        raise ProtocolError(message) from cause
    text = printable(error.message) or f"{printable(error.kind) or 'an error'} without a message"
    code = error.code if 0 < error.code < 256 else 1
    return error.id, PeerError(text, hint=printable(error.hint), peer_code=code)


def request_id(data: bytes | bytearray | memoryview) -> int:
    """Give the id of a request even if its body is unknown; 0 if nothing can be read."""
    envelope = messages_pb2.Request()
    try:
        envelope.ParseFromString(bytes(data))
    except DecodeError:
        return 0
    return envelope.id


def _parse(
    envelope: messages_pb2.Request | messages_pb2.Reply,
    data: bytes | bytearray | memoryview,
    what: str,
) -> Message:
    try:
        envelope.ParseFromString(bytes(data))
    except DecodeError as cause:
        message = f"the other side sent a {what} that cannot be read"
        raise ProtocolError(message) from cause
    arm = envelope.WhichOneof("body")
    if arm is None:
        message = f"the other side sent a {what} that {software()} does not know"
        hint = "put the same version of pymigrate on both hosts"
        raise ProtocolError(message, hint=hint)
    body: Message = getattr(envelope, arm)
    return body


def _checked(body: Message) -> Message:
    """Refuse values that would be dangerous in a file name."""
    if isinstance(body, AskRepository):
        return _checked_places(body)
    fields = body.DESCRIPTOR.fields_by_name
    identity: str = getattr(body, "migration_id", "")
    if not (_MIGRATION_ID.fullmatch(identity) or (isinstance(body, Hello) and not identity)):
        message = f"{body.DESCRIPTOR.name} with the impossible migration id {identity[:80]!r}"
        raise ProtocolError(message)
    if isinstance(body, Reserve) and not _NAME.fullmatch(body.name):
        message = f"Reserve with the impossible name {body.name[:80]!r}"
        raise ProtocolError(message)
    digests = [*body.layers] if isinstance(body, Reserve) else []
    if "digest" in fields:
        digests.append(getattr(body, "digest"))  # noqa: B009 - a Message has no such attribute
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            message = f"{body.DESCRIPTOR.name} with the impossible digest {digest[:80]!r}"
            raise ProtocolError(message)
    if isinstance(body, PutFiles | PutChanges):
        _check_tree(body.DESCRIPTOR.name, body.tree)
    if isinstance(body, PutImageFiles):
        _check_files([file.name for file in body.files])
    return body


def _checked_places(body: AskRepository) -> AskRepository:
    """Refuse what is no name of a file of a repository."""
    asked: object = getattr(body, body.WhichOneof("ask") or "look")
    places = [*getattr(asked, "places", ()), *filter(None, [getattr(asked, "place", "")])]
    folder = getattr(asked, "folder", "packs")
    for name, form in ((folder, _FOLDER), *((place, _PLACE) for place in places)):
        if not form.fullmatch(name):
            message = f"AskRepository with the impossible place {name[:80]!r}"
            raise ProtocolError(message)
    return body


def _check_files(names: list[str]) -> None:
    for name in names:
        if not _FILE.fullmatch(name):
            message = f"PutImageFiles with the impossible name {name[:80]!r}"
            raise ProtocolError(message)
    if len(set(names)) != len(names):
        message = "PutImageFiles with one name twice"
        raise ProtocolError(message)


def _check_tree(request: str, tree: str) -> None:
    if tree != UPPER and not _is_plain(tree):
        message = f"{request} with the impossible tree {tree[:80]!r}"
        raise ProtocolError(message)


def _is_plain(path: str) -> bool:
    """Say whether a path is absolute and goes down only."""
    parts = PurePosixPath(path).parts
    return path.startswith("/") and "\0" not in path and ".." not in parts and len(path) < 4096
