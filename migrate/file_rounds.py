"""A container's files on their way: in rounds while it runs, and the last difference frozen.

The upper directory and the volumes that travel. A target that does not know rounds gets each as a
whole, frozen, as all did before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from pymigrate.migrate.peer import Peer
from pymigrate.runtime import tree, tree_doubts
from pymigrate.runtime.container import Container
from pymigrate.runtime.tree_records import Record, encode
from pymigrate.runtime.tree_sending import Sender
from pymigrate.transport import messages as m
from pymigrate.transport.rpc import Writer

SMALL = 1 << 20
"""Bytes that are quick to send at once: as many as one request's way there and back."""
SHRINKS = 0.7
MOST_ROUNDS = 8
_GATHERED = 1 << 16  # bytes of small records that are written at once


@dataclass(frozen=True)
class Round:
    """What one round sent, all trees together: bytes of the streams, names, seconds."""

    bytes: int
    names: int
    seconds: float
    frozen: bool = False


def enough(rounds: Sequence[Round]) -> bool:
    """Return whether the rest should be sent frozen: it is small, or does not become smaller.

    What one round sent is what changed during the one before, so the next will be of its size.
    """
    if not rounds:
        return False
    newest = rounds[-1].bytes
    if newest <= SMALL or len(rounds) >= MOST_ROUNDS:
        return True
    return len(rounds) > 1 and newest > rounds[-2].bytes * SHRINKS


@dataclass(frozen=True)
class _Tree:
    """One of the trees, under the name that the target knows it by."""

    name: str
    root: Path
    sender: Sender
    rounds: list[int] = field(default_factory=list)  # bytes of each, empty ones left out


@dataclass
class FileRounds:
    """All trees of one container; `close` lets go of them."""

    container: Container
    peer: Peer
    trees: tuple[_Tree, ...]
    undo: ExitStack
    rounds: list[Round] = field(default_factory=list)

    @classmethod
    def begin(cls, container: Container, peer: Peer) -> FileRounds:
        """Open the trees; nothing is sent yet. No trees if the target does not know rounds."""
        with ExitStack() as undo:
            trees = []
            for name, root in _named(container) if peer.serves(m.PutChanges) else ():
                descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, descriptor)
                sender = Sender(descriptor, overlay=name == m.UPPER)
                undo.callback(sender.close)
                trees.append(_Tree(name, root, sender))
            return cls(container, peer, tuple(trees), undo.pop_all())

    def close(self) -> None:
        """Close what is open; a second time does nothing."""
        self.undo.close()

    def send_while_running(self) -> None:
        """Send rounds until what is left is small, or does not become smaller."""
        while self.trees and not enough(self.rounds):
            self.send_another()

    def send_another(self) -> None:
        """Send what changed since the last round, of a container that runs."""
        if self.trees:
            # Before anything is looked at: what is opened later changes a file's times.
            written = tree_doubts.written(self.container.cgroup.pids())
            self._send(written, frozen=False)

    def send_rest(self) -> None:
        """Send what is left, of a container that stands still."""
        if self.trees:
            self._send(frozenset(), frozen=True)
        else:
            started = time.monotonic()
            sent = sum(
                self.peer.put_files(name, _whole(root, overlay=name == m.UPPER))
                for name, root in _named(self.container)
            )
            self.rounds.append(Round(sent, 0, time.monotonic() - started, frozen=True))
        self.close()

    def _send(self, written: frozenset[tree_doubts.Stamp] | None, *, frozen: bool) -> None:
        started = time.monotonic()
        sent = names = 0
        for each in self.trees:
            with tree.reading(each.root):
                records = each.sender.records(written, last=frozen)
                first = next(records, None)
            if first is None:
                continue  # nothing changed, so nothing is said
            stream = _stream(each.root, chain((first,), records))
            size = self.peer.put_changes(each.name, len(each.rounds) + 1, stream)
            each.rounds.append(size)
            sent += size
            names += each.sender.changed
        self.rounds.append(Round(sent, names, time.monotonic() - started, frozen))


def _named(container: Container) -> Iterator[tuple[str, Path]]:
    yield m.UPPER, container.upper
    for volume in container.volumes_to_travel:
        yield volume.destination, Path(volume.source)


def _stream(root: Path, records: Iterator[Record]) -> Callable[[Writer], object]:
    def send(stream: Writer) -> None:
        gathered: list[bytes | memoryview] = []
        size = 0
        with tree.reading(root):
            for record in records:
                for piece in encode(record):
                    if len(piece) >= _GATHERED:
                        stream.write(b"".join(gathered))
                        gathered.clear()
                        size = 0
                        stream.write(piece)
                        continue
                    gathered.append(bytes(piece))  # a file's content is only lent
                    size += len(piece)
                if size >= _GATHERED:
                    stream.write(b"".join(gathered))
                    gathered.clear()
                    size = 0
            stream.write(b"".join(gathered))

    return send


def _whole(root: Path, *, overlay: bool) -> Callable[[Writer], object]:
    def send(stream: Writer) -> object:
        # Without a digest of its own: the channel guards every byte of the stream.
        return tree.write(root, stream, overlay=overlay, sparse=True, hashed=False)

    return send
