"""Check that everything is there that the snapshots need, and is what was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint.packs import Kind, Table
from pymigrate.checkpoint.repository import THREADS, Contents, Repository
from pymigrate.checkpoint.repository_index import Places
from pymigrate.checkpoint.sealing import ID_BYTES, Damaged
from pymigrate.checkpoint.snapshot import Member, Snapshot


@dataclass
class Report:
    """What was looked at, and what is wrong with it; ``broken`` are ids of snapshots."""

    snapshots: int = 0
    packs: int = 0
    chunks: int = 0
    data_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class Walk:
    """Goes from snapshots to all their chunks; a list that several share is read once."""

    def __init__(self, repository: Repository, contents: Contents) -> None:
        """Begin with nothing."""
        self.used: NDArray[np.bool_] = np.zeros(len(contents.index), np.bool_)
        self._repository = repository
        self._contents = contents
        self._read: dict[int, NDArray[np.bool_]] = {}

    def visit(self, snapshot: Snapshot) -> None:
        """Mark what a snapshot uses; raises Damaged, naming it, if something is missing."""
        for member in snapshot.members:
            self._visit(snapshot, member)

    def _visit(self, snapshot: Snapshot, member: Member) -> None:
        what = f"snapshot {snapshot.short_id}, {member.name}"
        ids = np.frombuffer(member.root, np.uint8).reshape(-1, ID_BYTES)
        for level in range(member.levels, 0, -1):
            rows = self._mark(ids, what)
            done = self._read.setdefault(level, np.zeros_like(self.used))
            ids = ids[~done[rows]]
            done[rows] = True
            ids = self._repository.lists(self._contents, ids, what)
        self._mark(ids, what)

    def _mark(self, ids: NDArray[np.uint8], what: str) -> Places:
        rows = self._repository.rows(self._contents, ids, what)
        self.used[rows] = True
        return rows


def verify(repository: Repository, identity: str | None = None, *, data: bool = False) -> Report:
    """Check one snapshot or the whole repository; ``data``: read every byte, not just the tables.

    Raises nothing for what is damaged: it is in the report, and the rest is checked as well.
    """
    report = Report()
    with repository.reading():
        listing = repository.listing()
        contents = repository.contents()
        chosen = [s for s in listing.snapshots if identity in (None, s.id)]
        for damaged, reason in listing.damaged.items():
            if identity in (None, damaged):
                report.problems.append(reason)
                report.broken.add(damaged)
        report.snapshots = len(chosen) + len(report.broken)
        walk = Walk(repository, contents)
        _structure(walk, repository, contents, chosen, report)
        if identity is None:
            report.problems += contents.damaged.values()
            wanted = np.ones(len(contents.index), np.bool_)
        else:
            wanted = walk.used
        report.packs = len(np.unique(contents.index.pack[wanted]))
        report.chunks = int(wanted.sum())
        if data:
            _data(repository, contents, wanted, chosen, report)
    return report


def _structure(
    walk: Walk,
    repository: Repository,
    contents: Contents,
    snapshots: Sequence[Snapshot],
    report: Report,
) -> None:
    try:
        for snapshot in snapshots:
            walk.visit(snapshot)
    except Damaged:
        # A list that several snapshots share was read for one of them: now each for itself.
        for snapshot in snapshots:
            alone = Walk(repository, contents)
            try:
                alone.visit(snapshot)
            except Damaged as error:
                report.problems.append(error.message)
                report.broken.add(snapshot.id)
            walk.used |= alone.used


def _data(
    repository: Repository,
    contents: Contents,
    wanted: NDArray[np.bool_],
    snapshots: Sequence[Snapshot],
    report: Report,
) -> None:
    bad: list[tuple[int, int]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(
            lambda where: _check_blob(repository, contents, *where), _blobs(contents, wanted)
        ):
            report.data_bytes += found.size
            if found.problem:
                report.problems.append(found.problem)
                bad.append((found.pack, found.blob))
    if bad:
        _blame(repository, contents, snapshots, bad, report)


@dataclass(frozen=True)
class _Blob:
    pack: int
    blob: int
    size: int
    problem: str


def _blobs(contents: Contents, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    index = contents.index
    both = (index.pack[wanted].astype(np.int64) << 32) | index.blob[wanted]
    for one in np.unique(both).tolist():
        yield one >> 32, one & 0xFFFFFFFF


def _check_blob(repository: Repository, contents: Contents, pack: int, blob: int) -> _Blob:
    name, table = contents.names[pack], contents.tables[pack]
    try:
        plain = repository.blob(name, table, blob)
        _check_names(repository, table, blob, plain)
    except Damaged as error:
        return _Blob(pack, blob, 0, error.message)
    return _Blob(pack, blob, len(plain), "")


def _check_names(repository: Repository, table: Table, blob: int, plain: bytes) -> None:
    if table.kind is Kind.SEGMENTS:
        return  # named by their pages, which are in DATA packs and have names of their own
    name = repository.keys.naming()
    view = memoryview(plain)
    for row in np.nonzero(table.blob == blob)[0].tolist():
        start = int(table.offset[row])
        content = view[start : start + int(table.length[row])]
        if name(content) != table.ids[row].tobytes():
            raise Damaged(f"chunk {table.ids[row].tobytes().hex()} is not what its name says")


def _blame(
    repository: Repository,
    contents: Contents,
    snapshots: Iterable[Snapshot],
    bad: Sequence[tuple[int, int]],
    report: Report,
) -> None:
    """Find the snapshots that need a damaged blob."""
    index = contents.index
    both = (index.pack.astype(np.int64) << 32) | index.blob
    rows = np.isin(both, [(pack << 32) | blob for pack, blob in bad])
    for snapshot in snapshots:
        if snapshot.id in report.broken:
            continue
        walk = Walk(repository, contents)
        try:
            walk.visit(snapshot)
            hurt = bool((walk.used & rows).any())
        except Damaged:
            hurt = True
        if hurt:
            report.problems.append(f"snapshot {snapshot.short_id} cannot be restored")
            report.broken.add(snapshot.id)
