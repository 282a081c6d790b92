"""The far end of a repository on another host: ``pymigrate agent --repository DIR``.

It serves the files of that one directory (remote_storage.py asks), which it never understands: what
is in them is sealed at the other end. Its locks and drafts are its own, so whoever finds them here
knows whether they are alive as he knows of any process of this host; and when the connection goes,
by a death or a cut, the agent ends and takes them along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_disk import Draft
from pymigrate.checkpoint.repository_locks import Lock
from pymigrate.checkpoint.repository_storage import Ends
from pymigrate.checkpoint.sealing import Damaged
from pymigrate.runtime.errors import ProtocolError, WrongState
from pymigrate.transport import messages as m
from pymigrate.transport.rpc import Handler, Reader

MOST = 8 << 20
"""Bytes of files in one answer."""

MAX_DRAFTS = 8

Ask = m.AskRepository
Told = m.RepositoryTold


class RepositoryAgent:
    """One connection's worth of state; ``close`` gives up its lock and its drafts."""

    def __init__(self, directory: Directory) -> None:
        """Serve the repository in a directory, which need not exist yet."""
        self._disk = directory
        self._lock: Lock | None = None
        self._unlock = ExitStack()
        self._drafts: dict[int, tuple[Draft, ExitStack]] = {}
        self._begun = 0
        self._acts: dict[str, Callable[[Ask], Told]] = {
            "look": self._look,
            "make": self._make,
            "names": lambda ask: Told(names=self._disk.names(ask.names.folder)),
            "ends": self._ends,
            "read_at": self._read_at,
            "remove": self._remove,
            "publish_first": self._publish_first,
            "begin": self._begin,
            "write": self._write,
            "publish": self._publish,
            "discard": self._discard,
            "lock": self._take_lock,
            "confirm": self._confirm,
            "unlock": self._give_lock,
            "sweep": self._sweep,
        }

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        """List which request is answered by what."""
        return {m.AskRepository: self._answer}

    def close(self) -> None:
        """Let go of what this connection held."""
        with self._unlock, ExitStack() as drafts:
            for _, stack in self._drafts.values():
                drafts.callback(stack.close)
            self._drafts.clear()

    def _answer(self, request: Ask, _: Reader) -> Told:
        asked = request.WhichOneof("ask")
        if asked is None:
            raise ProtocolError("AskRepository asks what this pymigrate does not know")
        return self._acts[asked](request)

    def _look(self, _: Ask) -> Told:
        disk = self._disk
        return Told(where=disk.where, exists=disk.exists, foreign=disk.foreign)

    def _make(self, _: Ask) -> Told:
        self._disk.make()
        return Told()

    def _ends(self, ask: Ask) -> Told:
        wanted = ask.ends
        if len(wanted.places) * (wanted.head + wanted.tail) > MOST:
            raise ProtocolError(f"more than {MOST} bytes are asked for at once")
        found = self._disk.ends(wanted.places, wanted.head, wanted.tail)
        return Told(pieces=map(_piece, found))

    def _read_at(self, ask: Ask) -> Told:
        wanted = ask.read_at
        if wanted.length > MOST:
            raise ProtocolError(f"more than {MOST} bytes are asked for at once")
        return Told(data=self._disk.read_at(wanted.place, wanted.offset, wanted.length))

    def _remove(self, ask: Ask) -> Told:
        self._disk.remove(*ask.remove.places)
        return Told()

    def _publish_first(self, ask: Ask) -> Told:
        wanted = ask.publish_first
        return Told(first=self._disk.publish_first(wanted.place, wanted.data))

    def _begin(self, _: Ask) -> Told:
        if len(self._drafts) >= MAX_DRAFTS:
            raise ProtocolError(f"more than {MAX_DRAFTS} drafts at once")
        stack = ExitStack()
        draft = stack.enter_context(self._disk.draft(self._held().owner))
        self._begun += 1
        self._drafts[self._begun] = draft, stack
        return Told(draft=self._begun)

    def _write(self, ask: Ask) -> Told:
        self._draft(ask.write.draft).write(ask.write.data)
        return Told()

    def _publish(self, ask: Ask) -> Told:
        self._draft(ask.publish.draft).publish(ask.publish.place)
        return Told()

    def _discard(self, ask: Ask) -> Told:
        _, stack = self._drafts.pop(ask.discard.draft, (None, ExitStack()))
        stack.close()
        return Told()

    def _draft(self, number: int) -> Draft:
        if number not in self._drafts:
            raise ProtocolError(f"there is no draft {number}")
        return self._drafts[number][0]

    def _take_lock(self, ask: Ask) -> Told:
        if self._lock is not None:
            raise ProtocolError("a connection holds one lock at a time")
        wanted = ask.lock
        held = self._disk.held(exclusive=wanted.exclusive, patience=wanted.patience_ms / 1000)
        self._lock = self._unlock.enter_context(held)
        return Told(owner=self._lock.owner)

    def _confirm(self, _: Ask) -> Told:
        self._held().confirm()
        return Told()

    def _give_lock(self, _: Ask) -> Told:
        self._lock = None
        self._unlock.close()
        return Told()

    def _held(self) -> Lock:
        if self._lock is None:
            raise WrongState("no lock of the repository is held; nothing was changed")
        return self._lock

    def _sweep(self, _: Ask) -> Told:
        self._disk.sweep()
        return Told()


def _piece(found: Ends | Damaged) -> Told.Piece:
    if isinstance(found, Damaged):
        return Told.Piece(damage=found.message or "damaged")
    return Told.Piece(size=found.size, head=found.head, tail=found.tail)
