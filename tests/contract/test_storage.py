"""What a repository's storage promises: in a directory, by an agent, by one behind a real sshd."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pymigrate.checkpoint import pruning
from pymigrate.checkpoint.repository import Repository
from pymigrate.checkpoint.repository_check import verify
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_storage import Ends, Storage
from pymigrate.checkpoint.sealing import Damaged
from pymigrate.migrate.remote_storage import Location
from pymigrate.runtime.errors import (
    HostError,
    NoSpace,
    NotFound,
    PeerError,
    PymigrateError,
    TransportError,
    UsageError,
    WrongState,
)
from pymigrate.transport import messages as m
from pymigrate.transport.rpc import Client
from tests.fakes import storages
from tests.fakes.repositories import Content, FailingDisk, add, restored

Opening = Callable[[], AbstractContextManager[Storage]]
NOISE = random.Random(11)
BIG = NOISE.randbytes(3 << 20)
PAGES = [NOISE.randbytes(4096) for _ in range(300)]

HOLDING = """
import sys
from pathlib import Path
from tests.fakes.storages import by_ssh
from tests.fakes.sshd import Sshd
from pymigrate.checkpoint.repository_directory import Directory

directory, port, repository = sys.argv[1:]
def hold(storage):
    with storage.held(exclusive=True) as lock, storage.draft(lock.owner) as draft:
        draft.write(b"half of it")
        print("held", flush=True)
        sys.stdin.read()
if port == "0":
    hold(Directory(Path(repository)))
else:
    with by_ssh(Sshd(Path(directory), int(port)), Path(repository)) as (storage, _):
        hold(storage)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture(params=["directory", "thread", "ssh"])
def opening(request: pytest.FixtureRequest, root: Path) -> Opening:
    """Give what opens the storage; each time is another client."""
    if request.param == "ssh":
        server = request.getfixturevalue("sshd")
        return lambda: first(storages.by_ssh(server, root))
    if request.param == "thread":
        return lambda: first(storages.by_thread(Directory(root)))

    @contextmanager
    def here() -> Iterator[Storage]:
        yield Directory(root)

    return here


@contextmanager
def first(both: AbstractContextManager[tuple[Storage, Client]]) -> Iterator[Storage]:
    with both as (storage, _):
        yield storage


@pytest.fixture
def storage(opening: Opening) -> Iterator[Storage]:
    with opening() as storage:
        storage.make()
        yield storage


def content(changed: int = 0) -> Content:
    pages = list(PAGES)
    for number in range(changed):
        pages[number * 11] = bytes([changed]) * 4096
    return {"checkpoint/pages-1.img": b"".join(pages), "rootfs-diff.tar": PAGES[0] * 3}


class TestFiles:
    """They appear whole or not at all."""

    def test_it_is_there_when_it_has_a_configuration(self, opening: Opening, root: Path) -> None:
        with opening() as storage:
            assert (False, False) == (storage.exists, storage.foreign)
            storage.make()
            assert (False, False) == (storage.exists, storage.foreign)
            storage.publish_first("config", b"{}")
            assert storage.exists
            (root / "a-letter").touch()
            assert storage.foreign

    def test_of_two_that_are_first_one_wins(self, storage: Storage) -> None:
        assert storage.publish_first("config", b"one")
        assert not storage.publish_first("config", b"two")
        assert b"one" == storage.read("config", 10)
        assert [] == storage.names("tmp")

    def test_a_draft_is_seen_when_it_is_published(self, storage: Storage) -> None:
        with storage.held() as lock:
            with storage.draft(lock.owner) as draft:
                draft.write(b"head")
                draft.write(BIG)
                assert [] == storage.names("packs")
                draft.publish("packs/ab")
            with storage.draft(lock.owner) as draft:
                draft.write(b"never")
            storage.publish("snapshots/cd", b"small", lock.owner)

        assert ["ab"] == storage.names("packs")
        assert ["cd"] == storage.names("snapshots")
        assert [] == storage.names("tmp")
        assert b"head" + BIG == storage.read("packs/ab", 4 << 20)

    def test_parts_are_read(self, storage: Storage) -> None:
        with storage.held() as lock:
            storage.publish("packs/ab", bytes(range(100)), lock.owner)

        found = storage.ends(["packs/ab", "packs/none"], 3, 2)
        assert Ends(100, b"\0\1\2", b"\x62\x63") == found[0]
        assert isinstance(found[1], Damaged)
        assert [Ends(100, bytes(range(100)), b"")] == storage.ends(["packs/ab"], 1000, 0)
        assert 100 == storage.size("packs/ab")
        assert b"\x05\x06" == storage.read_at("packs/ab", 5, 2)
        assert b"\x63" == storage.read_at("packs/ab", 99, 50)
        assert b"" == storage.read_at("packs/ab", 100, 50)
        for reading in (
            lambda: storage.read("packs/ab", 99),
            lambda: storage.read("packs/none", 99),
            lambda: storage.read_at("packs/none", 0, 1),
            lambda: storage.size("packs/none"),
        ):
            with pytest.raises(Damaged):
                reading()

    def test_what_is_removed_is_gone_and_may_be_so_before(self, storage: Storage) -> None:
        with storage.held() as lock:
            storage.publish("packs/ab", b"1", lock.owner)
            storage.publish("packs/cd", b"2", lock.owner)
        storage.remove("packs/ab", "packs/none")
        assert ["cd"] == storage.names("packs")

    def test_a_folder_that_is_missing_is_told(self, storage: Storage, root: Path) -> None:
        (root / "packs").rmdir()
        with pytest.raises(NotFound):
            storage.names("packs")


class TestLocks:
    """Shared ones go together, an exclusive one alone; a dead one's is nobody's."""

    def test_they_exclude_each_other(self, storage: Storage, opening: Opening) -> None:
        with opening() as other:
            with storage.held(), other.held():
                pass
            with storage.held(), pytest.raises(WrongState), other.held(exclusive=True, patience=0):
                pass
            with storage.held(exclusive=True), pytest.raises(WrongState), other.held(patience=0):
                pass
            with other.held(exclusive=True, patience=0):
                pass
        assert [] == storage.names("locks")

    def test_one_that_is_lost_is_not_confirmed(self, storage: Storage, root: Path) -> None:
        with storage.held() as lock:
            lock.confirm()
            (root / "locks" / storage.names("locks")[0]).unlink()
            with pytest.raises(WrongState):
                lock.confirm()

    def test_who_is_killed_leaves_neither_lock_nor_draft(
        self, request: pytest.FixtureRequest, storage: Storage, root: Path
    ) -> None:
        import subprocess

        where = ("-", "0")
        if "ssh" in request.node.name:
            server = request.getfixturevalue("sshd")
            where = (str(server.directory), str(server.port))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(
            [sys.executable, "-c", HOLDING, *where, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        ) as holder:
            assert holder.stdout is not None
            assert b"held\n" == holder.stdout.readline()
            with pytest.raises(WrongState), storage.held(patience=0):
                pass
            holder.send_signal(signal.SIGKILL)

        with storage.held(exclusive=True, patience=10):  # at once, not after half an hour
            storage.sweep()
            assert [] == storage.names("tmp")


class TestRepositories:
    """The whole of it."""

    @pytest.mark.parametrize("secret", [None, b"open sesame"])
    def test_snapshots_come_back_and_are_pruned(
        self, opening: Opening, tmp_path: Path, secret: bytes | None
    ) -> None:
        with opening() as storage:
            made = Repository.open_or_make(storage, secret)
            kept = {add(made, content(n), tmp_path / "scratch").id: content(n) for n in range(3)}
        with opening() as storage:
            again = Repository.open(storage, secret)
            for identity, expected in kept.items():
                assert expected == restored(again, identity, tmp_path / "scratch")
            assert verify(again, data=True).is_sound
            again.remove(list(kept)[:2])
            pruning.prune(again)
            assert list(kept)[2:] == [one.id for one in again.listing().snapshots]
            assert kept[list(kept)[2]] == restored(again, list(kept)[2], tmp_path / "scratch")
        with opening() as storage, pytest.raises((UsageError, Damaged)):
            Repository.open(storage, b"another")


class Cut(Client):
    """Loses the line at the n-th question (from 0)."""

    left = -1

    def call(self, *arguments: object, **options: object) -> m.Message:  # type: ignore[override]
        self.left -= 1
        if self.left == 0:
            self.close()
        return super().call(*arguments, **options)  # type: ignore[call-overload,no-any-return]


def test_line_that_is_lost_at_any_question_costs_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also each death of ours: the agent sees the same."""
    monkeypatch.setattr(storages, "Client", Cut)
    repository = Repository.open_or_make(Directory(root))
    first = add(repository, content(), tmp_path / "scratch")
    lost_at = lost = 0
    while True:
        lost_at += 1
        with ExitStack() as stack:
            storage, client = stack.enter_context(storages.by_thread(Directory(root)))
            assert isinstance(client, Cut)
            client.left = lost_at
            try:
                add(
                    Repository(storage, repository.keys),
                    content(lost_at % 9 + 1),
                    tmp_path / "scratch",
                )
            except TransportError:
                lost += 1
            over = client.left > 0
        assert [] == repository.disk.names("locks")
        assert [] == repository.disk.names("tmp")
        all_there(repository, tmp_path / "scratch")
        if over:
            break
    assert lost > 15
    assert content() == restored(repository, first.id, tmp_path / "scratch")


def all_there(repository: Repository, scratch: Path) -> None:
    """See that each snapshot which was published can be verified, and restored."""
    assert verify(repository, data=True).is_sound
    for snapshot in repository.listing().snapshots:
        assert {*content()} == {*restored(repository, snapshot.id, scratch)}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None])
def test_disk_that_fails_there_at_any_change_costs_nothing(
    root: Path, tmp_path: Path, error: int | None
) -> None:
    repository = Repository.open_or_make(Directory(root))
    first = add(repository, content(), tmp_path / "scratch")
    expected = {errno.ENOSPC: NoSpace, errno.EIO: HostError, None: PymigrateError}[error]
    fails_at = failed = 0
    while True:
        disk = FailingDisk(root, fails_at, error)
        with storages.by_thread(disk) as (storage, _):
            try:
                changed = content(fails_at % 9 + 1)
                add(Repository(storage, repository.keys), changed, tmp_path / "scratch")
            except expected:
                failed += 1
        for name in repository.disk.names("locks"):  # of an agent that died: of this process here
            repository.disk.remove(f"locks/{name}")
        for snapshot in repository.listing().snapshots:
            assert verify(repository, snapshot.id, data=True).is_sound
            assert {*content()} == {*restored(repository, snapshot.id, tmp_path / "scratch")}
        if disk.done <= fails_at:
            break
        fails_at += 1
    assert failed > 15
    add(repository, content(), tmp_path / "scratch")
    assert [] == repository.disk.names("tmp")
    assert content() == restored(repository, first.id, tmp_path / "scratch")


@pytest.fixture
def wasteful(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wasteful:
    monkeypatch.setattr(pruning, "FEW", 1)
    repository = Repository.open_or_make(Directory(root))
    kept = {add(repository, content(n), tmp_path / "scratch").id: content(n) for n in range(4)}
    forgotten = [*kept][:2]
    repository.remove(forgotten)
    return Wasteful(repository, {one: kept[one] for one in kept if one not in forgotten}, root)


@dataclass(frozen=True)
class Wasteful:
    """A repository of which prune removes packs, and writes others anew."""

    repository: Repository
    kept: dict[str, Content]
    root: Path

    @contextmanager
    def copied(self, place: Path) -> Iterator[Path]:
        """Have a copy of it; once it was pruned badly, all is there, and the next one goes on."""
        shutil.copytree(self.root, place)
        yield place
        repository = Repository(Directory(place), self.repository.keys)
        for name in repository.disk.names("locks"):  # of an agent that died: of this process here
            repository.disk.remove(f"locks/{name}")
        for identity, expected in self.kept.items():
            assert expected == restored(repository, identity, place.parent / "scratch")
        pruning.prune(repository)
        assert [] == repository.disk.names("tmp")
        assert verify(repository, data=True).is_sound
        again = pruning.prune(repository, dry_run=True).plan
        assert not again.remove + again.rewrite
        shutil.rmtree(place)

    def pruned(self, storage: Storage) -> None:
        """Prune by a storage."""
        pruning.prune(Repository(storage, self.repository.keys))


def test_line_that_is_lost_at_any_question_of_a_prune_costs_nothing(
    wasteful: Wasteful, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "Client", Cut)
    lost = 0
    for lost_at in itertools.count(1):
        with wasteful.copied(tmp_path / "copy") as place:
            with storages.by_thread(Directory(place)) as (storage, client):
                assert isinstance(client, Cut)
                client.left = lost_at
                try:
                    wasteful.pruned(storage)
                except TransportError:
                    lost += 1
                over = client.left > 0
            assert [] == [*(place / "locks").iterdir(), *(place / "tmp").iterdir()]
        if over:
            break
    assert lost > 15


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None])
def test_disk_that_fails_there_at_any_change_of_a_prune_costs_nothing(
    wasteful: Wasteful, tmp_path: Path, error: int | None
) -> None:
    expected = {errno.ENOSPC: NoSpace, errno.EIO: HostError, None: PymigrateError}[error]
    failed = 0
    for fails_at in itertools.count():
        with wasteful.copied(tmp_path / "copy") as place:
            disk = FailingDisk(place, fails_at, error)
            with storages.by_thread(disk) as (storage, _):
                try:
                    wasteful.pruned(storage)
                except expected:
                    failed += 1
        if disk.done <= fails_at:
            break
    assert failed > 10


@pytest.mark.parametrize(
    "ask",
    [
        m.AskRepository(read_at=m.AskRepository.ReadAt(place="../secret", length=1)),
        m.AskRepository(read_at=m.AskRepository.ReadAt(place="packs/../../secret", length=1)),
        m.AskRepository(ends=m.AskRepository.Ends(places=["config", "/etc/shadow"], head=9)),
        m.AskRepository(remove=m.AskRepository.Remove(places=["packs/.."])),
        m.AskRepository(publish_first=m.AskRepository.PublishFirst(place="x", data=b"1")),
        m.AskRepository(publish=m.AskRepository.Publish(draft=1, place="packs/a/b")),
        m.AskRepository(publish=m.AskRepository.Publish(draft=7, place="packs/a")),
        m.AskRepository(names=m.AskRepository.Names(folder="..")),
        m.AskRepository(ends=m.AskRepository.Ends(places=["config"] * 99, head=1 << 20)),
        m.AskRepository(read_at=m.AskRepository.ReadAt(place="config", length=1 << 30)),
        m.AskRepository(),
        m.AskRepository(begin=m.AskRepository.Begin()),  # and holds no lock
        m.Status(migration_id="x"),
        m.Reserve(migration_id="x", name="web"),
    ],
)
def test_agent_does_nothing_else(root: Path, tmp_path: Path, ask: m.Message) -> None:
    """Whoever has the key for a repository reaches neither other files nor containers."""
    (tmp_path / "secret").write_text("x")
    Repository.open_or_make(Directory(root))
    before = sorted(tmp_path.rglob("*"))
    with storages.by_thread(Directory(root)) as (storage, client):
        with pytest.raises(PeerError):
            client.call(ask)  # type: ignore[call-overload]
        assert storage.exists  # and it is still there for who asks well
    assert before == sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "text", ["ssh://beta", "ssh:///srv", "ssh://-x/srv", "sftp://b/x", "ssh://b/"]
)
def test_what_is_no_location_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Location.parse(text)


@pytest.mark.parametrize(
    "text", ["ssh://beta/srv", "ssh://root@beta:2222/srv/x", "ssh://u@[::1]:7/a"]
)
def test_a_location_is_written_as_it_is_typed(text: str) -> None:
    assert text == str(Location.parse(text))
