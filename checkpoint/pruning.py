"""Give back the room of chunks that no snapshot uses: decide, then act; safe at every moment.

Whoever adds or reads holds a shared lock; this holds the exclusive one, so no chunk is taken for
unused that a snapshot in the making counts on. A pack is removed only after what it still has to
give is published in another, so a crash leaves some chunks twice, and the next prune sees to that.

A segment that is there vouches for its pages (repository_writer.py), also one that no snapshot uses
any more, for its memory may come again. So all unused segments go, and before any page does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint import packs
from pymigrate.checkpoint.packs import Kind
from pymigrate.checkpoint.repository import THREADS, Contents, Repository
from pymigrate.checkpoint.repository_check import Walk
from pymigrate.checkpoint.repository_storage import Lock
from pymigrate.checkpoint.repository_writer import PackWriter
from pymigrate.checkpoint.sealing import Damaged
from pymigrate.runtime.errors import BadArchive

TOLERATED = 0.2
"""The part of a pack that may be unused before it is written anew."""

ORDER = (Kind.SEGMENTS, Kind.TREE, Kind.DATA)
"""Whoever vouches goes first."""

SMALL = 8 << 20  # bytes of a pack that may be joined with others
FEW = 8  # small packs that are not worth joining


@dataclass(frozen=True)
class PackUse:
    """A pack: its size on the disk, and how much of that chunks that are used take.

    Chunks of a blob are compressed as one, so a part of a blob is an estimate.
    """

    number: int
    name: str
    kind: Kind
    size: int
    used: int
    spare: int = 0
    """Chunks that no snapshot uses."""

    @property
    def unused(self) -> int:
        """Bytes on the disk that unused chunks take."""
        return self.size - self.used


@dataclass(frozen=True)
class Plan:
    """What to remove at once, what to write anew, and what stays; sizes in bytes."""

    remove: tuple[PackUse, ...]
    rewrite: tuple[PackUse, ...]
    keep: tuple[PackUse, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def frees(self) -> int:
        """How much the disk is expected to get back."""
        return sum(pack.unused for pack in (*self.remove, *self.rewrite))

    @property
    def leaves(self) -> int:
        """How much unused data stays, since it is not worth writing its pack anew."""
        return sum(pack.unused for pack in self.keep)


@dataclass
class Pruned:
    """What was done; bytes on the disk."""

    plan: Plan
    freed: int = 0
    written: int = 0


def plan(uses: Sequence[PackUse], unreadable: Sequence[str] = ()) -> Plan:
    """Decide. Pure."""
    remove = [pack for pack in uses if not pack.used]
    used = [pack for pack in uses if pack.used]
    rewrite = {
        pack.number
        for pack in used
        if pack.unused > TOLERATED * pack.size or (pack.kind is Kind.SEGMENTS and pack.spare)
    }
    for kind in Kind:
        small = [pack.number for pack in used if pack.kind is kind and pack.size < SMALL]
        if len(small) > FEW:
            rewrite |= set(small)
    return Plan(
        tuple(remove),
        tuple(pack for pack in used if pack.number in rewrite),
        tuple(pack for pack in used if pack.number not in rewrite),
        tuple(unreadable),
    )


def uses(repository: Repository, contents: Contents, used: NDArray[np.bool_]) -> list[PackUse]:
    """Say how much of each pack is used."""
    index = contents.index
    found = []
    for number, (name, table) in enumerate(zip(contents.names, contents.tables, strict=True)):
        own = index.pack == number
        rows = used & own
        live = np.bincount(index.blob[rows], index.length[rows], len(table.sealed))
        sealed = float((table.sealed * live / np.maximum(table.plain, 1)).sum())
        size = repository.disk.size(f"packs/{name}")
        # The table shrinks as the number of chunks does.
        around = (size - int(table.sealed.sum())) * int(rows.sum()) / max(len(table.ids), 1)
        spare = int(own.sum()) - int(rows.sum())
        found.append(PackUse(number, name, table.kind, size, round(sealed + around), spare))
    return found


def prune(
    repository: Repository, *, dry_run: bool = False, forgotten: Sequence[str] = ()
) -> Pruned:
    """Remove what no snapshot uses; ``forgotten``: snapshots that a dry run takes for removed.

    Raises:
        BadArchive: a snapshot cannot be read or lacks something, so what it uses is not known.
        WrongState: others are at work for too long.

    """
    with repository.disk.held(exclusive=not dry_run) as lock:
        if not dry_run:
            repository.disk.sweep()
        contents = repository.contents()
        used = _used(repository, contents, forgotten)
        decided = plan(uses(repository, contents, used), list(contents.damaged))
        pruned = Pruned(decided)
        if not dry_run:
            _execute(repository, contents, used, lock, pruned)
        return pruned


def _used(
    repository: Repository, contents: Contents, forgotten: Sequence[str]
) -> NDArray[np.bool_]:
    listing = repository.listing()
    try:
        for identity, reason in listing.damaged.items():
            if identity not in forgotten:
                raise Damaged(reason)
        walk = Walk(repository, contents)
        for snapshot in listing.snapshots:
            if snapshot.id not in forgotten:
                walk.visit(snapshot)
    except Damaged as error:
        raise BadArchive(
            f"{error.message}; nothing was pruned",
            hint="pymigrate snapshot verify names what is broken, snapshot rm removes it",
        ) from error
    return walk.used


def _execute(
    repository: Repository,
    contents: Contents,
    used: NDArray[np.bool_],
    lock: Lock,
    pruned: Pruned,
) -> None:
    disk = repository.disk
    for kind in ORDER:
        unneeded = [(pack.name, pack.size) for pack in pruned.plan.remove if pack.kind is kind]
        if kind is ORDER[-1]:  # of those that cannot be read the kind is not known
            unneeded += [(name, disk.size(f"packs/{name}")) for name in pruned.plan.unreadable]
        if unneeded:
            lock.confirm()
            disk.remove(*(f"packs/{name}" for name, _ in unneeded))
            pruned.freed += sum(size for _, size in unneeded)
        chosen = [pack for pack in pruned.plan.rewrite if pack.kind is kind]
        for group in _groups(chosen):
            _rewrite(repository, contents, used, lock, group, pruned)


def _groups(chosen: Sequence[PackUse]) -> Iterator[list[PackUse]]:
    """Take as many packs together as fill a new one, so that little room is needed meanwhile."""
    group: list[PackUse] = []
    for pack in chosen:
        group.append(pack)
        if sum(one.used for one in group) >= packs.PACK:
            yield group
            group = []
    if group:
        yield group


def _rewrite(
    repository: Repository,
    contents: Contents,
    used: NDArray[np.bool_],
    lock: Lock,
    group: Sequence[PackUse],
    pruned: Pruned,
) -> None:
    index = contents.index
    with ThreadPoolExecutor(THREADS) as pool:
        kind = group[0].kind
        writer = PackWriter(repository.disk, repository.keys, lock, kind, pool)
        try:
            for pack in group:
                rows = np.nonzero(used & (index.pack == pack.number))[0]
                rows = rows[np.lexsort((index.offset[rows], index.blob[rows]))]
                for identity, content in _chunks(repository, contents, pack, rows):
                    writer.add(identity, content)
            writer.finish()
        finally:
            writer.close()
    lock.confirm()
    repository.disk.remove(*(f"packs/{pack.name}" for pack in group))
    pruned.written += writer.bytes
    pruned.freed += sum(pack.size for pack in group) - writer.bytes


def _chunks(
    repository: Repository, contents: Contents, pack: PackUse, rows: NDArray[np.int64]
) -> Iterator[tuple[bytes, memoryview]]:
    index = contents.index
    name, table = contents.names[pack.number], contents.tables[pack.number]
    before = -1
    plain = memoryview(b"")
    for row in rows.tolist():
        blob = int(index.blob[row])
        if blob != before:
            plain = memoryview(repository.blob(name, table, blob))
            before = blob
        start = int(index.offset[row])
        yield index.name(row), plain[start : start + int(index.length[row])]
