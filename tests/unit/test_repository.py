"""A repository: what is published stays, whatever fails, whoever is killed, whoever else writes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import struct
from pathlib import Path

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pymigrate.checkpoint import pruning, repository_locks
from pymigrate.checkpoint.repository import Repository
from pymigrate.checkpoint.repository_check import verify
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_locks import Holder
from pymigrate.checkpoint.repository_storage import Storage
from pymigrate.checkpoint.repository_writer import writing
from pymigrate.checkpoint.sealing import Damaged
from pymigrate.checkpoint.snapshot import Member, Snapshot
from pymigrate.runtime.errors import (
    BadArchive,
    HostError,
    NoSpace,
    NotFound,
    PymigrateError,
    UsageError,
    WrongState,
)
from tests.fakes.repositories import Content, Crash, FailingDisk, add, manifest, restored

NOISE = random.Random(7)
PAGES = [NOISE.randbytes(4096) for _ in range(150)]


def content(changed: int = 0) -> Content:
    """Return members of which some pages and one file have changed."""
    pages = list(PAGES)
    for number in range(changed):
        pages[number * 11] = bytes([changed]) * 4096
    return {
        "checkpoint/inventory.img": b"inventory",
        "checkpoint/pages-1.img": b"".join(pages),
        "checkpoint/empty.img": b"",
        "rootfs-diff.tar": PAGES[0] * 3 + bytes([changed]) + b"".join(PAGES[:40]),
        "volumes/0.tar": b"v" * 512,
    }


def made(tmp_path: Path, secret: bytes | None = None) -> Repository:
    return Repository.open_or_make(FailingDisk(tmp_path / "repository"), secret)


def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.mark.parametrize("secret", [None, b"open sesame"])
def test_snapshots_come_back_as_they_were(tmp_path: Path, secret: bytes | None) -> None:
    repository = made(tmp_path, secret)
    kept = {add(repository, content(n), scratch(tmp_path)).id: content(n) for n in range(3)}

    again = Repository.open(Directory(tmp_path / "repository"), secret)

    for identity, expected in kept.items():
        assert expected == restored(again, identity, scratch(tmp_path))
    report = verify(again, data=True)
    assert (True, 3) == (report.is_sound, report.snapshots)


def test_unchanged_pages_are_not_stored_again(tmp_path: Path) -> None:
    repository = made(tmp_path)
    add(repository, content(), scratch(tmp_path))

    with writing(repository) as writer:
        path = tmp_path / "pages"
        path.write_bytes(content(3)["checkpoint/pages-1.img"])
        writer.add("checkpoint/pages-1.img", path)
        writer.flush()

    assert 1 == writer.new_chunks  # the three changed pages are alike


def test_same_secret_content_has_other_names_in_another_repository(tmp_path: Path) -> None:
    one, two = made(tmp_path / "1"), made(tmp_path / "2")

    assert one.keys.naming()(b"content") != two.keys.naming()(b"content")


def test_encrypted_repository_shows_nothing(tmp_path: Path) -> None:
    repository = made(tmp_path, b"secret")
    add(repository, {"rootfs-diff.tar": b"needle in a haystack" * 9}, scratch(tmp_path))

    files = [path for path in Path(repository.disk.where).rglob("*") if path.is_file()]

    assert 3 == len(files)  # config, a pack, a snapshot
    assert all(b"needle" not in path.read_bytes() for path in files)
    assert all(b"web" not in path.read_bytes() for path in files)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    repository = made(tmp_path)
    add(repository, content(), scratch(tmp_path))

    modes = {path.stat().st_mode & 0o077 for path in Path(repository.disk.where).rglob("*")}

    assert {0} == modes


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None])
def test_failure_at_every_change_of_the_disk_while_the_first_snapshot_is_made(
    tmp_path: Path, error: int | None
) -> None:
    for fails_at in itertools.count():
        root = tmp_path / str(fails_at)
        disk = FailingDisk(root, fails_at, error)
        try:
            add(Repository.open_or_make(disk), content(), scratch(tmp_path))
        except (NoSpace, HostError):
            assert error is not None
        except Crash:
            assert error is None
        if disk.done <= fails_at:
            break
        again = Repository.open_or_make(Directory(root))
        _its_process_is_gone(again.disk)
        for snapshot in again.listing().snapshots:
            assert content() == restored(again, snapshot.id, scratch(tmp_path))
        second = add(again, content(1), scratch(tmp_path))
        assert content(1) == restored(again, second.id, scratch(tmp_path))
        assert verify(again, data=True).is_sound

    assert fails_at > 25  # of which eleven make the repository


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None])
def test_failure_at_every_change_of_the_disk_while_a_snapshot_is_made(
    tmp_path: Path, error: int | None
) -> None:
    repository = made(tmp_path)
    first = add(repository, content(), scratch(tmp_path))
    fails_at = 0
    while True:
        disk = FailingDisk(Path(repository.disk.where), fails_at, error)
        failing = Repository(disk, repository.keys)
        try:
            add(failing, content(fails_at % 9 + 1), scratch(tmp_path))
        except NoSpace:
            assert error == errno.ENOSPC
        except HostError:
            assert error == errno.EIO
        except Crash:
            assert error is None
        _its_process_is_gone(repository.disk)
        if disk.done <= fails_at:
            break
        fails_at += 1
        for snapshot in repository.listing().snapshots:
            assert verify(repository, snapshot.id, data=True).is_sound
        assert content() == restored(repository, first.id, scratch(tmp_path))

    assert fails_at > 15
    last = add(repository, content(5), scratch(tmp_path))
    assert content(5) == restored(repository, last.id, scratch(tmp_path))
    pruning.prune(repository)
    assert [] == repository.disk.names("tmp")
    assert verify(repository, data=True).is_sound


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None])
def test_failure_at_every_change_of_the_disk_while_pruning(
    tmp_path: Path, error: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "FEW", 1)
    origin = made(tmp_path / "origin")
    added = [add(origin, content(n), scratch(tmp_path)) for n in range(4)]
    origin.remove([snapshot.id for snapshot in added[:-2]])
    kept = {snapshot.id: content(2 + n) for n, snapshot in enumerate(added[-2:])}
    fails_at = 0
    while True:
        root = tmp_path / "copy"
        shutil.copytree(origin.disk.where, root)
        disk = FailingDisk(root, fails_at, error)
        repository = Repository(FailingDisk(root), origin.keys)
        try:
            pruning.prune(Repository(disk, origin.keys))
        except (NoSpace, HostError):
            assert error is not None
        except Crash:
            assert error is None
        _its_process_is_gone(repository.disk)
        for identity, expected in kept.items():
            assert expected == restored(repository, identity, scratch(tmp_path))
        pruning.prune(repository)
        assert verify(repository, data=True).is_sound
        again = pruning.prune(repository, dry_run=True).plan
        assert not again.remove + again.rewrite
        assert [] == repository.disk.names("tmp")
        shutil.rmtree(root)
        if disk.done <= fails_at:
            break
        fails_at += 1

    assert fails_at > 10


def _its_process_is_gone(disk: Storage) -> None:
    """Make its lock that of a process that has ended."""
    for name in disk.names("locks"):
        holder = Holder.parse(name)
        assert holder is not None
        dead = Holder(holder.exclusive, holder.id, holder.machine, holder.pid, 1, holder.host)
        (Path(disk.where) / "locks" / name).rename(Path(disk.where) / "locks" / dead.name)


@pytest.mark.parametrize(
    "parts", [20, pytest.param(0, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_one_flipped_bit_anywhere_is_found_and_others_still_restore(
    tmp_path: Path, parts: int
) -> None:
    """Flip one bit at a time: in so many places of each file, or in every byte of it."""
    repository = made(tmp_path)
    one, two = (
        add(
            repository,
            {"checkpoint/a.img": word * 9, "checkpoint/pages-1.img": word[:1] * 4096 * 20},
            scratch(tmp_path),
        )
        for word in (b"one", b"two")
    )
    assert 6 == len(repository.pack_names())  # of each: content, segments, and a list of these
    for path in sorted(Path(repository.disk.where).rglob("*")):
        if not path.is_file():
            continue
        before = path.read_bytes()
        step = 8 * len(before) // parts + 1 if parts else 7  # of each byte another bit
        for bit in range(0, 8 * len(before), step):
            altered = bytearray(before)
            altered[bit // 8] ^= 1 << bit % 8
            path.write_bytes(altered)
            _check_damaged(repository.disk, path, (one.id, two.id), scratch(tmp_path))
        path.write_bytes(before)

    assert verify(repository, data=True).is_sound


def _check_damaged(disk: Storage, path: Path, both: tuple[str, str], scratch: Path) -> None:
    if path.name == "config":
        with pytest.raises((BadArchive, UsageError)):
            Repository.open(disk)
        return
    repository = Repository.open(disk)
    report = verify(repository, data=True)
    assert path.name[:8] in " ".join(report.problems)
    assert 1 == len(report.broken)
    (broken,) = report.broken
    with pytest.raises(Damaged):
        restored(repository, broken, scratch)
    (other,) = set(both) - {broken}
    assert 27 == len(restored(repository, other, scratch)["checkpoint/a.img"])


@pytest.mark.parametrize("folder", ["packs", "snapshots"])
def test_what_is_lost_with_a_file_is_stored_again_by_the_next_snapshot(
    tmp_path: Path, folder: str
) -> None:
    repository = made(tmp_path)
    first = add(repository, content(), scratch(tmp_path))
    for path in (Path(repository.disk.where) / folder).iterdir():
        path.write_bytes(path.read_bytes()[:-1])

    second = add(repository, content(), scratch(tmp_path))

    assert content() == restored(repository, second.id, scratch(tmp_path))
    assert ({first.id} if folder == "snapshots" else set()) == verify(repository, data=True).broken


def test_prune_frees_what_it_says_and_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    repository = made(tmp_path)
    gone = add(repository, {"volumes/0.tar": NOISE.randbytes(3 << 20)}, scratch(tmp_path))
    stays = add(repository, content(), scratch(tmp_path))
    repository.remove([gone.id])
    before = _size(repository)

    said = pruning.prune(repository, dry_run=True)
    assert before == _size(repository)
    did = pruning.prune(repository)

    assert said.plan.frees == did.freed == before - _size(repository)
    assert did.freed > 3 << 20
    assert content() == restored(repository, stays.id, scratch(tmp_path))


def test_dry_run_counts_snapshots_that_would_be_forgotten(tmp_path: Path) -> None:
    repository = made(tmp_path)
    only = add(repository, content(), scratch(tmp_path))

    assert 0 == pruning.prune(repository, dry_run=True).plan.frees
    forgotten = pruning.prune(repository, dry_run=True, forgotten=[only.id])
    assert _size(repository) - 5000 < forgotten.plan.frees


def test_packs_with_little_use_are_written_anew(tmp_path: Path) -> None:
    repository = made(tmp_path)
    big = {"checkpoint/pages-1.img": b"".join(PAGES)}
    small = {"checkpoint/pages-1.img": b"".join(PAGES[:100])}
    gone = add(repository, big, scratch(tmp_path))
    stays = add(repository, small, scratch(tmp_path))
    repository.remove([gone.id])

    before = _size(repository)
    said = pruning.prune(repository, dry_run=True).plan.frees
    pruned = pruning.prune(repository)

    assert pruned.plan.rewrite
    assert pruned.freed == before - _size(repository)
    # How the rest of a blob is compressed anew is not known beforehand.
    assert abs(said - pruned.freed) < pruned.freed / 50
    assert 400_000 < _size(repository) < 450_000
    assert small == restored(repository, stays.id, scratch(tmp_path))
    assert not pruning.prune(repository).plan.rewrite


def test_prune_touches_nothing_where_something_is_missing(tmp_path: Path) -> None:
    repository = made(tmp_path)
    add(repository, content(), scratch(tmp_path))
    name = repository.pack_names()[0]
    (Path(repository.disk.where) / "packs" / name).unlink()

    with pytest.raises(BadArchive, match="nothing was pruned"):
        pruning.prune(repository)


def _size(repository: Repository) -> int:
    return sum(path.stat().st_size for path in (Path(repository.disk.where) / "packs").iterdir())


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    repository = made(tmp_path)
    path = tmp_path / "pages-1.img"
    path.write_bytes(b"".join(PAGES))
    with writing(repository) as one, repository.reading(), writing(repository) as two:
        members = [writer.add("checkpoint/pages-1.img", path) for writer in (one, two)]
        identities = [
            writer.publish(_snapshot(member))
            for writer, member in zip((one, two), members, strict=True)
        ]

    for snapshot in identities:
        found = restored(repository, snapshot.id, scratch(tmp_path))
        assert {"checkpoint/pages-1.img": path.read_bytes()} == found
    pruning.prune(repository)  # what both stored is kept once
    assert _size(repository) < 1.1 * path.stat().st_size
    assert verify(repository, data=True).is_sound


def _snapshot(member: Member) -> Snapshot:
    return Snapshot("", "2026-01-02T03:04:05Z", "alpha", manifest(), (member,))


def test_prune_waits_for_those_at_work_and_gives_up(tmp_path: Path) -> None:
    disk = Directory(Path(made(tmp_path).disk.where))
    with (
        repository_locks.held(disk),
        pytest.raises(WrongState, match="in use by process"),
        repository_locks.held(disk, exclusive=True, patience=0),
    ):
        raise AssertionError("it did not wait")
    with repository_locks.held(disk, exclusive=True), pytest.raises(WrongState):  # noqa: SIM117
        with repository_locks.held(disk, patience=0):
            raise AssertionError("it did not wait")
    assert [] == disk.names("locks")


@pytest.mark.parametrize(("age", "is_there"), [(60, True), (3600, False)])
def test_lock_of_another_machine_expires(tmp_path: Path, age: int, is_there: bool) -> None:
    disk = Directory(Path(made(tmp_path).disk.where))
    other = Holder(True, "0" * 16, "0" * 8 + "-0000" * 3 + "-" + "0" * 12 + ".1", 7, 7, "beta")
    path = disk.root / "locks" / other.name
    path.touch()
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))

    assert ([other] if is_there else []) == repository_locks.living(disk)
    assert is_there is path.exists()


def test_who_lost_its_lock_publishes_nothing(tmp_path: Path) -> None:
    repository = made(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with writing(repository) as writer:
        member = writer.add("ctr.log", path)
        for name in repository.disk.names("locks"):
            (Path(repository.disk.where) / "locks" / name).unlink()
        with pytest.raises(WrongState, match="was lost"):
            writer.publish(_snapshot(member))

    assert [] == repository.snapshot_ids()
    assert [] == repository.pack_names()
    assert [] == repository.disk.names("tmp")


def test_snapshots_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    repository = made(tmp_path)
    old = add(repository, content(), scratch(tmp_path), "2026-01-01T00:00:00Z")
    new = add(repository, content(), scratch(tmp_path), "2026-01-02T00:00:00Z")

    assert old.id == repository.find(old.id[:8])
    assert new.id == repository.find("latest")
    with pytest.raises(NotFound):
        repository.find("xyz")
    with pytest.raises(NotFound):
        repository.find("")


def test_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()

    with pytest.raises(UsageError, match="neither empty nor a repository"):
        Repository.open_or_make(Directory(tmp_path))
    with pytest.raises(PymigrateError, match="no repository"):
        Repository.open(Directory(tmp_path / "nowhere"))
    assert ["photos"] == [path.name for path in tmp_path.iterdir()]


def test_another_program_can_read_it_by_its_documentation(tmp_path: Path) -> None:
    """Read a snapshot with nothing of ours, as docs/repository-format.md says."""
    repository = made(tmp_path)
    snapshot = add(repository, content(), scratch(tmp_path))
    root = Path(repository.disk.where)
    master = bytes.fromhex(json.loads((root / "config").read_text())["key"]["key"])

    def opened(path: Path, purpose: str, number: int, sealed: bytes, head: bytes) -> bytes:
        info = b"pymigrate repository 1: " + purpose.encode()
        key = HKDF(SHA256(), 32, bytes.fromhex(path.name), info).derive(master)
        payload = AESGCM(key).decrypt(number.to_bytes(12, "big"), sealed, head)
        method, size = struct.unpack_from("<BI", payload)
        plain = zstandard.decompress(payload[5:]) if method else payload[5:]
        assert size == len(plain)
        return plain

    chunks: dict[bytes, bytes] = {}
    for path in (root / "packs").iterdir():
        data = path.read_bytes()
        head = data[:16]
        (size,) = struct.unpack("<I4x", data[-8:])
        table = opened(path, "pack", 0, data[-8 - size : -8], head)
        blobs, count = struct.unpack_from("<II", table)
        sizes = struct.unpack_from(f"<{blobs}I", table, 8)
        names = table[8 + 8 * blobs :][: 16 * count]
        where = struct.unpack_from(f"<{3 * count}I", table, 8 + 8 * blobs + 16 * count)
        plain = []
        for number, start in enumerate(itertools.accumulate((16, *sizes[:-1]))):
            sealed = data[start : start + sizes[number]]
            plain.append(opened(path, "pack", number + 1, sealed, head))
        for row in range(count):
            blob, offset, length = where[row], where[count + row], where[2 * count + row]
            chunks[names[16 * row : 16 * row + 16]] = plain[blob][offset : offset + length]

    path = root / "snapshots" / snapshot.id
    data = path.read_bytes()
    document = json.loads(opened(path, "snapshot", 0, data[12:], data[:12]))
    for member in document["members"]:
        ids = [bytes.fromhex(member["root"])] if member["root"] else []
        for _ in range(member["levels"]):
            joined = b"".join(chunks[one] for one in ids)
            ids = [joined[at : at + 16] for at in range(0, len(joined), 16)]
        assert content()[member["name"]] == b"".join(chunks[one] for one in ids)
