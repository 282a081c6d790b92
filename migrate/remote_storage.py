"""A repository's storage on another host, over SSH: ``ssh://[USER@]HOST[:PORT]/DIR``.

The agent there (repository_agent.py) does what a disk does: drafts, syncs, renames, locks. So all
that repository_disk.py promises of a crash is promised there, and there is no second way of doing
it. A connection is never made anew: with it go the lock and the drafts, and whoever held them must
notice. What the other host says is not believed: all content is sealed, and checked here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from pymigrate.checkpoint.repository_storage import PATIENCE_SECONDS, Ends, Lock, Storage
from pymigrate.checkpoint.sealing import Damaged
from pymigrate.runtime import errors
from pymigrate.transport import messages as m
from pymigrate.transport.destination import Destination
from pymigrate.transport.rpc import Client

COMMAND = "pymigrate"
PIECE = 1 << 20  # bytes that are written at once
MOST = 8 << 20  # bytes of files in one answer; see repository_agent.py
ANSWER_SECONDS = 120.0  # for what a disk does at once; a dead line shows by itself, and sooner
_SLICE = 5.0  # seconds that the agent waits for a lock before we look whether we still want it

Ask = m.AskRepository
Told = m.RepositoryTold

_URL = re.compile(r"ssh://(?P<host>[^/]+)(?P<directory>/.+)")
_CLASSES: dict[int, type[errors.PymigrateError]] = {
    kind.exit_code: kind
    for kind in (errors.HostError, errors.NoSpace, errors.NotFound, errors.WrongState, Damaged)
}


@dataclass(frozen=True)
class Location:
    """A directory of another host."""

    destination: Destination
    directory: str

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read ssh://[USER@]HOST[:PORT]/DIR; raises UsageError."""
        match = _URL.fullmatch(text)
        if match is None or "\0" in text:
            raise errors.UsageError(
                f"--repo {text}: not a repository; nothing was changed",
                hint="name a directory, or ssh://[USER@]HOST[:PORT]/DIR",
            )
        return cls(Destination.parse(match["host"]), match["directory"])

    def __str__(self) -> str:
        """Write it as it is typed."""
        return f"ssh://{self.destination}{self.directory}"

    def connect(self, undo: ExitStack) -> Client:
        """Log in and start the agent; ``undo`` gets what hangs up."""
        from pymigrate.transport import ssh  # paramiko takes 150 ms to load

        connection = undo.enter_context(ssh.connect(self.destination))
        agent = connection.open_agent([COMMAND, "agent", "--repository", self.directory])
        return undo.enter_context(Client(agent, level=None))  # what is sent is compressed already


@contextmanager
def opened(location: Location) -> Iterator[RemoteStorage]:
    """Connect for the block.

    Raises:
        TransportError: the host cannot be reached, is not who it should be, or has no pymigrate.

    """
    with ExitStack() as undo:
        yield RemoteStorage(location.connect(undo), str(location))


class RemoteStorage(Storage):
    """What repository_storage.py wants, by an agent; threads take turns."""

    def __init__(self, client: Client, where: str) -> None:
        """Greet the agent; ``where`` is for people."""
        self._client = client
        self._where = where
        client.hello(timeout=ANSWER_SECONDS)

    @property
    def where(self) -> str:
        """Where it is, for people."""
        return self._where

    @property
    def exists(self) -> bool:
        """Whether there is a repository."""
        return self._ask(Ask(look=Ask.Look())).exists

    @property
    def foreign(self) -> bool:
        """Whether something else lies there."""
        return self._ask(Ask(look=Ask.Look())).foreign

    def make(self) -> None:
        """Make the directories; may be repeated."""
        self._ask(Ask(make=Ask.Make()))

    def names(self, folder: str) -> list[str]:
        """List a folder in order."""
        return sorted(self._ask(Ask(names=Ask.Names(folder=folder))).names)

    def size(self, place: str) -> int:
        """Return the size of a file in bytes."""
        (found,) = self.ends([place], 0, 0)
        if isinstance(found, Damaged):
            raise found
        return found.size

    def ends(self, places: Sequence[str], head: int, tail: int) -> list[Ends | Damaged]:
        """Return the first and last bytes of files, so many where there are; one for each place."""
        found: list[Ends | Damaged] = []
        step = max(1, min(1024, MOST // max(head + tail, 1)))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            told = self._ask(Ask(ends=Ask.Ends(places=some, head=head, tail=tail)))
            if len(told.pieces) != len(some):
                raise errors.ProtocolError(f"{self._where}: its agent left out a file")
            found += [self._piece(piece) for piece in told.pieces]
        return found

    def _piece(self, piece: Told.Piece) -> Ends | Damaged:
        if piece.damage:
            return Damaged(m.printable(piece.damage))
        return Ends(piece.size, piece.head, piece.tail)

    def read(self, place: str, limit: int) -> bytes:
        """Return a whole file; raises Damaged if it is larger than the limit."""
        (first,) = self.ends([place], min(limit + 1, MOST), 0)
        if isinstance(first, Damaged):
            raise first
        if first.size > limit:
            raise Damaged(f"{place} is larger than it may be")
        return first.head + self.read_at(place, len(first.head), first.size - len(first.head))

    def read_at(self, place: str, offset: int, length: int) -> bytes:
        """Return a part of a file; it is shorter where the file ends."""
        parts: list[bytes] = []
        while length > 0:
            wanted = Ask.ReadAt(place=place, offset=offset, length=min(length, MOST))
            part = self._ask(Ask(read_at=wanted)).data[: wanted.length]
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def remove(self, *places: str) -> None:
        """Remove files, for good; those that are gone already are well."""
        self._ask(Ask(remove=Ask.Remove(places=places)), timeout=None)

    def publish_first(self, place: str, data: bytes) -> bool:
        """Make a file appear unless it is there already; of two at once one wins."""
        return self._ask(Ask(publish_first=Ask.PublishFirst(place=place, data=data))).first

    def publish(self, place: str, data: bytes, owner: str) -> None:
        """Make a small file appear."""
        with self.draft(owner) as draft:
            draft.write(data)
            draft.publish(place)

    @contextmanager
    def draft(self, owner: str) -> Iterator[RemoteDraft]:
        """Begin a file for the holder of our lock; it is discarded unless it was published."""
        del owner  # the agent knows whose it is: ours
        draft = RemoteDraft(self._ask)
        with _given_back(draft.discard):
            yield draft

    @contextmanager
    def held(
        self, *, exclusive: bool = False, patience: float = PATIENCE_SECONDS
    ) -> Iterator[Lock]:
        """Hold the lock of our connection for the block, waiting up to ``patience`` seconds.

        Raises:
            WrongState: another's lock excludes it.

        """
        deadline = time.monotonic() + patience
        while True:
            left = max(0.0, deadline - time.monotonic())
            wanted = Ask.Lock(exclusive=exclusive, patience_ms=round(min(left, _SLICE) * 1000))
            try:
                owner = self._ask(Ask(lock=wanted)).owner
                break
            except errors.WrongState:
                if left <= _SLICE:
                    raise
        with _given_back(lambda: self._ask(Ask(unlock=Ask.Unlock()))):
            yield RemoteLock(self._ask, owner)

    def sweep(self) -> None:
        """Remove the drafts of those who died."""
        self._ask(Ask(sweep=Ask.Sweep()))

    def _ask(self, request: Ask, timeout: float | None = ANSWER_SECONDS) -> Told:
        try:
            return self._client.call(request, timeout=timeout)
        except errors.PeerError as error:
            kind = _CLASSES.get(error.peer_code, errors.PeerError)
            raise kind(f"{self._client.peer}: {error.message}", hint=error.hint) from error


@contextmanager
def _given_back(act: Callable[[], object]) -> Iterator[None]:
    """Do it at the end of the block; a lost connection has done it already."""
    try:
        yield
    except BaseException as error:
        try:
            act()
        except errors.TransportError as second:
            error.add_note(f"the other host could not be told: {second.message}")
        raise
    with suppress(errors.Unreachable):
        act()


class RemoteLock:
    """The lock of a connection."""

    def __init__(self, ask: Callable[[Ask], Told], owner: str) -> None:
        """Take what was acquired."""
        self._ask = ask
        self._owner = owner

    @property
    def owner(self) -> str:
        """What the drafts of its holder are named by."""
        return self._owner

    def confirm(self) -> None:
        """Make sure that nobody held us for dead meanwhile; raises WrongState."""
        self._ask(Ask(confirm=Ask.Confirm()))


class RemoteDraft:
    """A file being written at the other host."""

    def __init__(self, ask: Callable[[Ask], Told]) -> None:
        """Begin it."""
        self._ask = ask
        self._number: int | None = ask(Ask(begin=Ask.Begin())).draft
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        """Write all of it at the end, some of it later."""
        self._pending += data
        while len(self._pending) >= PIECE:
            self._send(PIECE)

    def publish(self, place: str) -> None:
        """Put it in its place, complete and on the disk."""
        while self._pending:
            self._send(PIECE)
        if self._number is None:
            raise AssertionError("a draft is published once")
        self._ask(Ask(publish=Ask.Publish(draft=self._number, place=place)))

    def discard(self) -> None:
        """Let the agent close it, and remove it unless it was published; may be repeated."""
        if self._number is not None:
            number, self._number = self._number, None
            self._ask(Ask(discard=Ask.Discard(draft=number)))

    def _send(self, count: int) -> None:
        data = bytes(self._pending[:count])
        del self._pending[:count]
        self._ask(Ask(write=Ask.Write(draft=self._number or 0, data=data)))
