"""Snapshots of containers: made while they run, restored, compared, forgotten."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pymigrate.checkpoint import archive, images, pruning
from pymigrate.checkpoint.chunking import Cut
from pymigrate.checkpoint.load import Loaded, Wishes, load_from
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_looks import MemoryLooks
from pymigrate.checkpoint.packs import Ids
from pymigrate.checkpoint.repository import Contents, Repository
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_writer import writing
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.checkpoint.save import Saved, capture
from pymigrate.checkpoint.sealing import MAX_SECRET, Damaged
from pymigrate.checkpoint.snapshot import Member, Snapshot, Statistics
from pymigrate.checkpoint.snapshot_memory import SnapshotMemory
from pymigrate.migrate.retention import Policy, keep
from pymigrate.migrate.snapshot_pages import Stored
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import PymigrateError, UsageError
from pymigrate.runtime.host import Host
from pymigrate.runtime.tree_format import Kind, shown
from pymigrate.runtime.tree_source import Source

PASSPHRASE = "PYMIGRATE_PASSPHRASE_FILE"  # noqa: S105 - the name of a variable
BEFORE_REWIND = "before-rewind"
"""The tag of a snapshot of what a container was before it was put back."""


def location(host: Host, text: str | None) -> str:
    """Say where a repository is, so that it means the same everywhere on this host.

    It is a path (by default the host's own repository), or ssh://[USER@]HOST[:PORT]/DIR.
    """
    if text is None:
        return str(host.root / "snapshots")
    if "://" in text:
        from pymigrate.migrate.remote_storage import Location

        return str(Location.parse(text))
    return str(Path(text).absolute())


@contextmanager
def opened(
    where: str, secret: bytes | None, scratch: Path | None = None, *, make: bool = False
) -> Iterator[Repository]:
    """Open a repository for the block, or with ``make`` make one where there is none.

    ``scratch`` is a directory of this host on whose disk large tables may be.

    Raises:
        NotFound: there is none.
        UsageError: the secret is not its secret.
        TransportError: its host cannot be reached.

    """
    opening = Repository.open_or_make if make else Repository.open
    if "://" not in where:
        yield opening(Directory(Path(where)), secret, scratch)
        return
    from pymigrate.migrate import remote_storage  # the transport is not needed for a directory

    with remote_storage.opened(remote_storage.Location.parse(where)) as storage:
        yield opening(storage, secret, scratch)


def read_secret(key_file: Path | None) -> bytes | None:
    """Read the secret of a repository from the file named, or from that of the environment."""
    named = key_file or os.environ.get(PASSPHRASE)
    if not named:
        return None
    try:
        with Path(named).open("rb") as stream:
            secret = stream.read(MAX_SECRET + 1).rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(f"cannot read the secret in {named}: {error.strerror}") from error
    if not secret or len(secret) > MAX_SECRET:
        raise UsageError(
            f"{named} holds no secret: it is empty, or larger than 64 KiB; nothing was changed",
            hint=f"head -c 32 /dev/urandom | base64 > {named}",
        )
    return secret


def create(
    container: Container,
    repository: Repository,
    tags: Sequence[str] = (),
    options: DumpOptions | None = None,
) -> Snapshot:
    """Add a snapshot of a running container, which stands still only while it is dumped.

    On any error nothing is added, and the container goes on as before.

    Raises:
        WrongState: the container does not run, or prune holds the repository for too long.
        DumpFailed: CRIU could not write it down.
        NoSpace: a disk is full.

    """
    options = options or DumpOptions(leave_running=True)
    begun = time.monotonic()
    created = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    saved = Saved(Path(repository.disk.where))
    added: list[Snapshot] = []
    with ExitStack() as closing:
        writer = closing.enter_context(writing(repository))
        memory = looks = None
        if options.leave_running:
            memory = SnapshotMemory(writer, writer.zeros)
            closing.callback(memory.close)
            looks = MemoryLooks(memory)
            closing.callback(looks.close)

        def store(members: Mapping[str, Path], manifest: Manifest) -> None:
            if looks is not None:
                looks.complete(members)
            taken = {} if looks is None else looks.taken
            kept = tuple(
                memory.add(name, taken[name])
                if memory is not None and name in taken
                # A restore compares what is in a volume with what was in it by this checksum.
                else writer.add(name, members[name], digest=name.startswith("volumes/"))
                for name in sorted(members)
            )
            writer.flush()
            snapshot = Snapshot(
                id="",
                created=created,
                host=socket.gethostname(),
                manifest=replace(manifest, lazy=False),  # its memory is in it
                members=kept,
                tags=tuple(tags),
                statistics=Statistics(
                    frozen_seconds=saved.frozen,
                    seconds=time.monotonic() - begun,
                    new_bytes=writer.new_bytes,
                    new_chunks=writer.new_chunks,
                    total_bytes=sum(member.size for member in kept),
                ),
            )
            added.append(writer.publish(snapshot))

        capture(container, options, store, saved, looks)
    return added[0]


@dataclass(frozen=True)
class Rewound:
    """A container that was put back, and the snapshot of what it was before, if it ran."""

    loaded: Loaded
    present: Snapshot | None


def restore(host: Host, repository: Repository, identity: str, wishes: Wishes) -> Loaded:
    """Bring a container back as it was at a snapshot, as often as wanted; see `load_from`."""
    return load_from(host, Stored(repository, repository.snapshot(identity)), wishes)


def rewind(host: Host, repository: Repository, identity: str, wishes: Wishes) -> Rewound:
    """Put a container back to a snapshot, in its own place; the present is kept as another one.

    If the snapshot cannot be restored, the present is.

    Raises:
        UsageError: the container of that name is another one than that of the snapshot.
        RestoreFailed: nothing was lost; the message says what runs.

    """
    past = repository.snapshot(identity)
    container = Container.open(host, past.container)
    if container.record.id != past.manifest.record.id:
        raise UsageError(
            f"{container.name} is not the container of snapshot {past.short_id}, which had the "
            "same name; nothing was changed",
            hint="restore it under another name with --name",
        )
    if not container.state().status.is_alive:
        return Rewound(restore(host, repository, identity, wishes), None)
    ending = DumpOptions(leave_running=False, debug=wishes.debug, skip=wishes.skip)
    present = create(container, repository, [BEFORE_REWIND], ending)
    try:
        return Rewound(restore(host, repository, identity, wishes), present)
    except PymigrateError as error:
        try:
            restore(host, repository, present.id, Wishes(debug=wishes.debug))
        except PymigrateError as second:
            error.add_note(
                f"{container.name} is stopped, since the present could not be restored either: "
                f"{second.message}; it is snapshot {present.short_id}"
            )
        else:
            error.message = f"{error.message}; {container.name} runs on as it was before"
        raise


def forget(snapshots: Sequence[Snapshot], policy: Policy) -> list[tuple[Snapshot, tuple[str, ...]]]:
    """Say which snapshots the rules keep, and why: no reason, not kept. Pure.

    The rules count for each container of each host by itself.
    """
    by_container: dict[tuple[str, str], list[Snapshot]] = {}
    for snapshot in snapshots:
        by_container.setdefault((snapshot.host, snapshot.container), []).append(snapshot)
    decided: list[tuple[Snapshot, tuple[str, ...]]] = []
    for own in by_container.values():
        reasons = keep([datetime.fromisoformat(one.created) for one in own], policy)
        decided += zip(own, reasons, strict=True)
    return decided


@dataclass(frozen=True)
class Thinned:
    """What keep rules and prune did, or would do."""

    removed: tuple[Snapshot, ...]
    kept: tuple[tuple[Snapshot, tuple[str, ...]], ...]
    pruned: pruning.Pruned


def thin(
    repository: Repository,
    policy: Policy,
    *,
    container: str | None = None,
    tag: str | None = None,
    host: str | None = None,
    dry_run: bool = False,
) -> Thinned:
    """Forget what the rules do not keep, of those chosen or of all, and free the room."""
    listing = repository.listing()
    chosen = [
        one
        for one in listing.snapshots
        if container in (None, one.container)
        and tag in (None, *one.tags)
        and host in (None, one.host)
    ]
    removed: list[Snapshot] = []
    kept: list[tuple[Snapshot, tuple[str, ...]]] = []
    if policy.is_empty:
        kept = [(one, ()) for one in chosen]
    else:
        decided = forget(chosen, policy)
        removed = [one for one, reasons in decided if not reasons]
        kept = [(one, reasons) for one, reasons in decided if reasons]
    identities = [one.id for one in removed]
    if identities and not dry_run:
        repository.remove(identities)
    pruned = pruning.prune(repository, dry_run=dry_run, forgotten=identities)
    return Thinned(tuple(removed), tuple(kept), pruned)


# Comparing two snapshots


@dataclass(frozen=True)
class FileState:
    """A file of the container at a snapshot."""

    kind: Kind
    size: int
    mode: int
    owner: tuple[int, int]
    digest: str


@dataclass(frozen=True)
class Difference:
    """What changed from one snapshot to another; ``files`` maps paths to A(dded), C or D."""

    files: dict[str, str]
    processes: dict[int, tuple[images.Process | None, images.Process | None]]
    memory: tuple[int, int]
    changed_memory: int


def diff(repository: Repository, first: Snapshot, second: Snapshot) -> Difference:
    """Compare two snapshots, of one container or of two; raises Damaged."""
    with repository.reading():
        contents = repository.contents()
        files = _compare(_files(repository, contents, first), _files(repository, contents, second))
        one, two = (
            {process.pid: process for process in _processes(repository, contents, snapshot)}
            for snapshot in (first, second)
        )
        changed = {
            pid: (one.get(pid), two.get(pid))
            for pid in sorted(one.keys() | two.keys())
            if one.get(pid) != two.get(pid)
        }
        before, after = (_pages(repository, contents, snapshot) for snapshot in (first, second))
    new = ~np.isin(_comparable(after), _comparable(before))
    return Difference(
        files,
        changed,
        (_memory(first), _memory(second)),
        int(new.sum()) * images.PAGE,
    )


def _compare(before: Mapping[str, FileState], after: Mapping[str, FileState]) -> dict[str, str]:
    found = {}
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            found[path] = "A"
        elif path not in after:
            found[path] = "D"
        elif before[path] != after[path]:
            found[path] = "C"
    return found


def _files(repository: Repository, contents: Contents, snapshot: Snapshot) -> dict[str, FileState]:
    """Return the files in the container's upper directory and its volumes, by their paths."""
    found: dict[str, FileState] = {}
    volumes = snapshot.manifest.record.volumes
    for member in snapshot.members:
        if member.name == archive.FILES:
            prefix = "/"
        elif member.name.startswith("volumes/"):
            prefix = volumes[int(Path(member.name).stem)].destination.rstrip("/") + "/"
        else:
            continue
        source = Source(_Stream(repository.read(contents, member)), hashed=False)
        while (entry := source.next_member()) is not None:
            digest = hashlib.sha256(entry.target or b"")
            for piece in source.content(entry):
                digest.update(piece)
            found[prefix + shown(entry.name)] = FileState(
                entry.kind, entry.size, entry.mode, (entry.uid, entry.gid), digest.hexdigest()
            )
    return found


class _Stream:
    """Chunks as a stream that is read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return between 1 and ``size`` bytes, or none at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


def _processes(
    repository: Repository, contents: Contents, snapshot: Snapshot
) -> list[images.Process]:
    members = {
        member.name.removeprefix("checkpoint/"): member
        for member in snapshot.members
        if member.name.startswith("checkpoint/")
    }
    return images.processes(members, _reader(repository, contents, members))


def _reader(
    repository: Repository, contents: Contents, members: Mapping[str, Member]
) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        if name not in members:
            raise Damaged(f"{name} is not in the snapshot")
        return b"".join(repository.read(contents, members[name]))

    return read


def _pages(repository: Repository, contents: Contents, snapshot: Snapshot) -> Ids:
    found = [
        repository.expand(contents, member)
        for member in snapshot.members
        if member.cut is Cut.PAGES
    ]
    return np.concatenate(found) if found else np.empty((0, 16), np.uint8)


def _comparable(ids: Ids) -> NDArray[np.uint64]:
    """Make one number of each name, so that they can be looked up in each other."""
    halves = np.ascontiguousarray(ids).view("<u8").astype(np.uint64).reshape(-1, 2)
    return halves[:, 0] ^ (halves[:, 1] * np.uint64(0x9E3779B97F4A7C15))


def _memory(snapshot: Snapshot) -> int:
    return sum(member.size for member in snapshot.members if member.cut is Cut.PAGES)
