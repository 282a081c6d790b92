"""A repository of snapshots: opening it, finding a snapshot, putting members together again.

::

    config              what it is, and its key           written once
    packs/NAME          chunks; see packs.py              written once, removed by prune
    snapshots/ID        one snapshot; see snapshot.py     written once, removed by rm
    locks/…  tmp/…      who is at work, and on what

Nothing is ever changed in place. A snapshot is published after all packs that it needs, so whatever
can be seen can be restored. docs/repository-format.md has the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pymigrate.checkpoint import packs
from pymigrate.checkpoint.packs import Ids, Table
from pymigrate.checkpoint.repository_index import Index, Joining, Piece, Places, pieces
from pymigrate.checkpoint.repository_storage import Ends, Lock, Storage
from pymigrate.checkpoint.sealing import ID_BYTES, Damaged, Keys
from pymigrate.checkpoint.snapshot import MAX_BYTES, Member, Snapshot, is_identity
from pymigrate.runtime.errors import NotFound, UsageError
from pymigrate.runtime.scratch import Scratch, Zeros

FORMAT = 1
CONFIG = "config"
THREADS = 2
_MAX_CONFIG = 1 << 16
_SNAPSHOT = struct.Struct("<8sI")
_SNAPSHOT_HEAD = _SNAPSHOT.pack(b"pymgsnap", FORMAT)
_PACKS = 256  # whose ends are read together
_LISTS = 1 << 20  # bytes of names that are read together
_TABLE = 64 << 10  # bytes that are read of a pack's end at once: most tables are smaller
_SMALL = 64 << 10  # bytes; few snapshots are larger
_LATEST = "latest"


@dataclass(frozen=True)
class Contents:
    """All packs, as they were seen at one moment; ``names`` and ``tables`` go together.

    A pack whose table cannot be read is left out, and said in ``damaged`` by its name: what is in
    the others can still be restored, and what was in it is stored again by the next snapshot.
    """

    names: tuple[str, ...]
    tables: tuple[Table, ...]
    index: Index
    damaged: dict[str, str]


@dataclass(frozen=True)
class Listing:
    """All snapshots, the oldest first; ``damaged`` says why others cannot be read, by their id."""

    snapshots: tuple[Snapshot, ...]
    damaged: dict[str, str]


class Repository:
    """An open repository; reading needs no lock, but prune waits for those who hold one."""

    def __init__(self, disk: Storage, keys: Keys, scratch: Path | None = None) -> None:
        """Take a disk and its keys; use `open`.

        ``scratch`` is a directory of this host on whose disk large tables may be; else they are in
        memory.
        """
        self.disk = disk
        self.keys = keys
        self.scratch = scratch

    @classmethod
    def open(
        cls, disk: Storage, secret: bytes | None = None, scratch: Path | None = None
    ) -> Repository:
        """Open a repository; for ``scratch`` see the class.

        Raises:
            NotFound: there is none.
            UsageError: the secret is not its secret.
            BadArchive: its configuration is damaged, or newer.

        """
        if not disk.exists:
            raise NotFound(
                f"there is no repository of snapshots in {disk.where}",
                hint="pymigrate snapshot create NAME makes one; --repo says where",
            )
        data = disk.read(CONFIG, _MAX_CONFIG)
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise Damaged(f"it has format {document['format']!r}, this pymigrate reads 1")
            key, check = document["key"], document["check"]
            keys = Keys.from_document(key, secret)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{disk.where}/{CONFIG} is damaged: {error!r}") from error
        except Damaged as error:
            raise Damaged(f"{disk.where}/{CONFIG}: {error.message}") from error
        if check != _check(keys, key) or data != _config(keys, key):
            raise Damaged(f"{disk.where}/{CONFIG} is damaged: it is not what was written")
        return cls(disk, keys, scratch)

    @classmethod
    def open_or_make(
        cls, disk: Storage, secret: bytes | None = None, scratch: Path | None = None
    ) -> Repository:
        """Open a repository, or make one in an empty directory; of two makers one wins."""
        if not disk.exists:
            if disk.foreign:
                raise UsageError(
                    f"{disk.where} is neither empty nor a repository; nothing was changed",
                    hint="name another directory with --repo",
                )
            disk.make()
            keys = Keys.make()
            disk.publish_first(CONFIG, _config(keys, keys.to_document(secret)))
        return cls.open(disk, secret, scratch)

    @contextmanager
    def tables(self) -> Iterator[Zeros]:
        """Give what makes large tables, for a block; they stay good after it."""
        if self.scratch is None:
            yield np.zeros
            return
        with closing(Scratch(self.scratch)) as scratch:
            yield scratch.zeros

    def contents(self) -> Contents:
        """Read the tables of all packs."""
        good: list[str] = []
        damaged: dict[str, str] = {}
        names = self.pack_names()
        with self.tables() as zeros:
            joining = Joining(zeros)
            for some in (names[at : at + _PACKS] for at in range(0, len(names), _PACKS)):
                places = [f"packs/{name}" for name in some]
                found = self.disk.ends(places, packs.HEADER.size, _TABLE)
                for name, ends in zip(some, found, strict=True):
                    try:
                        table = self._table(name, ends)
                    except Damaged as error:
                        damaged[name] = error.message
                        continue
                    joining.add(table)
                    good.append(name)
            tables, index = joining.finish()
        return Contents(tuple(good), tables, index, damaged)

    def pack_names(self) -> list[str]:
        """List the packs; names that are none of ours are left alone."""
        return [name for name in self.disk.names("packs") if is_identity(name)]

    def table(self, name: str) -> Table:
        """Read the table of one pack; raises Damaged."""
        (ends,) = self.disk.ends([f"packs/{name}"], packs.HEADER.size, _TABLE)
        return self._table(name, ends)

    def _table(self, name: str, ends: Ends | Damaged) -> Table:
        try:
            if isinstance(ends, Damaged):
                raise ends
            size = ends.size
            kind = packs.parse_header(ends.head)
            end = size - packs.TRAILER.size
            length = packs.table_size(ends.tail[-packs.TRAILER.size :], size)
            if length + packs.TRAILER.size <= len(ends.tail):
                sealed = ends.tail[-length - packs.TRAILER.size : -packs.TRAILER.size]
            else:
                sealed = self.disk.read_at(f"packs/{name}", end - length, length)
            opener = packs.sealer(self.keys, bytes.fromhex(name), kind)
            return packs.parse_table(sealed, size, kind, opener)
        except Damaged as error:
            raise Damaged(f"pack {name} is damaged: {error.message}") from error

    def blob(self, name: str, table: Table, number: int) -> bytes:
        """Read one blob of a pack; raises Damaged."""
        start = int(table.starts[number])
        sealed = self.disk.read_at(f"packs/{name}", start, int(table.sealed[number]))
        opener = packs.sealer(self.keys, bytes.fromhex(name), table.kind)
        try:
            plain = packs.open_blob(sealed, number, opener)
            if len(plain) != int(table.plain[number]):
                raise Damaged("its size is not that of the table")
        except Damaged as error:
            raise Damaged(f"pack {name}, blob {number} is damaged: {error.message}") from error
        return plain

    # Snapshots

    def listing(self) -> Listing:
        """Read all snapshots."""
        found: list[Snapshot] = []
        damaged: dict[str, str] = {}
        names = self.snapshot_ids()
        places = [f"snapshots/{name}" for name in names]
        for name, ends in zip(names, self.disk.ends(places, _SMALL, 0), strict=True):
            try:
                if isinstance(ends, Damaged):
                    raise ends
                whole = ends.size == len(ends.head)
                found.append(self._parse(name, ends.head) if whole else self.snapshot(name))
            except Damaged as error:
                if name in self.snapshot_ids():  # else it was removed while we read
                    damaged[name] = error.message
        found.sort(key=lambda snapshot: (snapshot.created, snapshot.id))
        return Listing(tuple(found), damaged)

    def snapshot_ids(self) -> list[str]:
        """List the snapshots without reading them."""
        return [name for name in self.disk.names("snapshots") if is_identity(name)]

    def snapshot(self, identity: str) -> Snapshot:
        """Read one snapshot by its whole id; raises Damaged."""
        return self._parse(identity, self.disk.read(f"snapshots/{identity}", MAX_BYTES))

    def _parse(self, identity: str, data: bytes) -> Snapshot:
        sealer = self.keys.sealer("snapshot", bytes.fromhex(identity), _SNAPSHOT_HEAD)
        try:
            if data[: len(_SNAPSHOT_HEAD)] != _SNAPSHOT_HEAD:
                raise Damaged("it does not begin as a snapshot of this version")
            plain = packs.decompress(sealer.open(0, data[len(_SNAPSHOT_HEAD) :]))
        except Damaged as error:
            raise Damaged(f"snapshot {identity[:8]} is damaged: {error.message}") from error
        return Snapshot.from_json(identity, plain)

    def sealed_snapshot(self, snapshot: Snapshot) -> bytes:
        """Return a snapshot as its file has it."""
        sealer = self.keys.sealer("snapshot", bytes.fromhex(snapshot.id), _SNAPSHOT_HEAD)
        payload = packs.compress(snapshot.to_json(), packs.compressor())
        return _SNAPSHOT_HEAD + sealer.seal(0, payload)

    def find(self, text: str) -> str:
        """Find the id of a snapshot by its first digits, or of the newest by ``latest``.

        Raises:
            NotFound: there is none.
            UsageError: there are several.

        """
        if text == _LATEST and (snapshots := self.listing().snapshots):
            return snapshots[-1].id
        matching = [name for name in self.snapshot_ids() if text and name.startswith(text)]
        if len(matching) > 1:
            raise UsageError(
                f"{len(matching)} snapshots begin with {text}; nothing was changed",
                hint="give more of the id",
            )
        if not matching:
            raise NotFound(
                f"there is no snapshot {text} in {self.disk.where}; nothing was changed",
                hint="pymigrate snapshot ls",
            )
        return matching[0]

    def remove(self, identities: Sequence[str]) -> None:
        """Forget snapshots; what only they used is freed by prune."""
        self.disk.remove(*(f"snapshots/{identity}" for identity in identities))

    def reading(self) -> AbstractContextManager[Lock]:
        """Hold a shared lock for a block: no pack goes away in it."""
        return self.disk.held()

    # Putting together

    def expand(self, contents: Contents, member: Member) -> Ids:
        """Return the names of all chunks of a member in order; raises Damaged."""
        ids = np.frombuffer(member.root, np.uint8).reshape(-1, ID_BYTES)
        for _ in range(member.levels):
            ids = self.lists(contents, ids, member.name)
        return ids

    def chunks(self, contents: Contents, member: Member) -> Iterator[Places]:
        """Yield the rows of all chunks of a member in order, some at a time; raises Damaged.

        Raises Damaged at the end if they are not as long together as the member.
        """
        size = 0
        for ids in self._expanded(contents, member):
            rows = self.rows(contents, ids, member.name)
            size += int(contents.index.length[rows].sum(dtype=np.int64))
            if size > member.size:
                break
            yield rows
        if size != member.size:
            raise Damaged(f"{member.name} has other chunks than those of {member.size} bytes")

    def _expanded(self, contents: Contents, member: Member) -> Iterator[Ids]:
        ids = np.frombuffer(member.root, np.uint8).reshape(-1, ID_BYTES)
        for _ in range(member.levels - 1):
            ids = self.lists(contents, ids, member.name)
        if not member.levels:
            yield ids
            return
        sizes = contents.index.length[self.rows(contents, ids, member.name)].astype(np.int64)
        groups = (np.cumsum(sizes) - sizes) // _LISTS
        for some in np.split(ids, np.flatnonzero(np.diff(groups)) + 1):
            yield self.lists(contents, some, member.name)

    def lists(self, contents: Contents, ids: Ids, what: str) -> Ids:
        """Read lists of names and join them; raises Damaged."""
        rows = self.rows(contents, ids, what)
        joined = bytearray(int(contents.index.length[rows].astype(np.int64).sum()))
        for piece in pieces(contents.index, rows):
            plain = self._plain(contents, piece)
            for run in piece.runs:
                joined[run.target : run.target + run.length] = plain[
                    run.source : run.source + run.length
                ]
        if len(joined) % ID_BYTES:
            raise Damaged(f"{what}: a list of chunks has {len(joined)} bytes")
        return np.frombuffer(bytes(joined), np.uint8).reshape(-1, ID_BYTES)

    def rows(self, contents: Contents, ids: Ids, what: str) -> Places:
        """Find chunks; raises Damaged if one is in no pack."""
        rows = contents.index.find(ids)
        missing = np.nonzero(rows < 0)[0]
        if len(missing):
            name = ids[missing[0]].tobytes().hex()
            because = "".join(f"; {reason}" for reason in contents.damaged.values())
            raise Damaged(
                f"{what}: {len(missing)} chunks are in no pack, the first is {name}{because}"
            )
        return rows

    def extract(self, contents: Contents, member: Member, path: Path) -> str:
        """Write a member into a new file; returns its SHA-256 if the snapshot has it.

        Raises:
            Damaged: something of it is missing or altered.
            OSError: the file cannot be written.

        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        begin = 0
        try:
            if member.size:
                os.posix_fallocate(descriptor, 0, member.size)

            def put(piece: Piece) -> None:
                plain = memoryview(self._plain(contents, piece))
                for run in piece.runs:
                    content = plain[run.source : run.source + run.length]
                    _write_at(descriptor, content, begin + run.target)

            with ThreadPoolExecutor(THREADS) as pool:
                for rows in self.chunks(contents, member):
                    for _ in pool.map(put, pieces(contents.index, rows)):
                        pass
                    begin += int(contents.index.length[rows].sum(dtype=np.int64))
        finally:
            os.close(descriptor)
        if member.sha256:
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != member.sha256:
                    raise Damaged(f"{member.name} is not what it was")
        return member.sha256

    def read(self, contents: Contents, member: Member) -> Iterator[bytes]:
        """Yield the content of a member in order, chunk by chunk; raises Damaged."""
        index = contents.index
        before = (-1, -1)
        plain = b""
        for row in (row for rows in self.chunks(contents, member) for row in rows.tolist()):
            where = (int(index.pack[row]), int(index.blob[row]))
            if where != before:
                plain = self.blob(contents.names[where[0]], contents.tables[where[0]], where[1])
                before = where
            start = int(index.offset[row])
            yield plain[start : start + int(index.length[row])]

    def _plain(self, contents: Contents, piece: Piece) -> bytes:
        return self.blob(contents.names[piece.pack], contents.tables[piece.pack], piece.blob)


def _check(keys: Keys, key: object) -> str:
    content = json.dumps([FORMAT, key], sort_keys=True).encode()
    return keys.naming()(b"configuration" + content).hex()


def _config(keys: Keys, key: object) -> bytes:
    document = {"format": FORMAT, "key": key, "check": _check(keys, key)}
    return json.dumps(document, indent=1).encode() + b"\n"


def _write_at(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, place)
        data = data[written:]
        place += written
