"""Memory on its way into a repository: what the looks saw, and what changed before the freeze."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pymigrate.checkpoint import images, snapshot_memory
from pymigrate.checkpoint.digest_table import SIZE
from pymigrate.checkpoint.images import PAGE, Entry
from pymigrate.checkpoint.laid_aside import Aside
from pymigrate.checkpoint.memory_looks import MemoryLooks
from pymigrate.checkpoint.page_layout import BATCH, Layout
from pymigrate.checkpoint.repository import Repository
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_writer import writing
from pymigrate.checkpoint.snapshot import Snapshot
from pymigrate.checkpoint.snapshot_memory import SnapshotMemory
from pymigrate.runtime.errors import DumpFailed
from tests.fakes.repositories import manifest, restored
from tests.unit.test_lazy_archive import pagemap

LEFT, HERE = 2, 4  # PE_LAZY: left in the process; PE_PRESENT: in CRIU's file
COUNT = 100
NOISE = random.Random(5).randbytes(COUNT * PAGE)
OWN = b"e" * PAGE


class Held:
    """Pages of this process, and a lazy dump that says so; one page is in CRIU's file."""

    def __init__(self, directory: Path, noise: bytes = NOISE) -> None:
        self.stage = directory / "stage"
        self.memory = mmap.mmap(-1, len(noise), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory[:] = noise
        view = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.addressof(view)
        del view
        (self.stage / "checkpoint").mkdir(parents=True)
        self.members = {
            name: self.stage / name for name in ("checkpoint/pages-1.img", self.map_name)
        }
        self.members["checkpoint/pages-1.img"].write_bytes(OWN)
        self.entries = [(PAGE, 1, HERE), (self.address, len(noise) // PAGE, LEFT)]
        self.dump()
        self.repository = Repository.open_or_make(Directory(directory / "repository"))

    @property
    def map_name(self) -> str:
        return f"checkpoint/pagemap-{os.getpid()}.img"

    def dump(self) -> None:
        """Say what is where, as the next lazy dump does."""
        self.members[self.map_name].write_bytes(pagemap(1, self.entries))

    def change(self, number: int, content: bytes) -> None:
        self.memory[number * PAGE : (number + 1) * PAGE] = content * PAGE


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found = Held(tmp_path)
    # Of this process only that memory is looked at: the rest of it changes all the time.
    own = Layout.of_entries([Entry(found.address, COUNT, present=False, lazy=True)])
    monkeypatch.setattr(Layout, "of_areas", classmethod(lambda *_: own))
    yield found
    found.memory.close()


def kept(
    held: Held, change: int | None, *, looks: bool = True, still: bool = True
) -> tuple[Snapshot, int]:
    """Make a snapshot, of which a page changes after the look; returns how many chunks were new."""
    with (
        writing(held.repository) as writer,
        closing(SnapshotMemory(writer)) as store,
        closing(MemoryLooks(store)) as memory,
    ):
        if looks:
            memory.look([os.getpid()])
        if change is not None:
            held.change(change, b"x")
        if still:
            memory.look_still([os.getpid()], held.stage)
        memory.take([os.getpid()], held.stage, ())
        held.change(COUNT - 1, b"y")  # it runs again: nothing of this may be seen
        memory.complete(held.members)
        assert ["checkpoint/pages-1.img"] == [*memory.taken]
        pages = store.add(*memory.taken.popitem())
        described = Snapshot("", "2026-01-02T03:04:05Z", "alpha", manifest(), (pages,))
        return writer.publish(described), writer.new_chunks


@pytest.mark.parametrize("room", [0, PAGE, snapshot_memory.SPARE])
@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("still", [True, False])
def test_memory_is_kept_as_it_was_under_the_freeze(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, looks: bool, still: bool
) -> None:
    monkeypatch.setattr(snapshot_memory, "SPARE", room)
    expected = OWN + NOISE[: 7 * PAGE] + b"x" * PAGE + NOISE[8 * PAGE :]

    made, _ = kept(held, 7, looks=looks, still=still)

    found = restored(held.repository, made.id, tmp_path / "scratch")
    assert {"checkpoint/pages-1.img": expected} == found


def taken(held: Held, tmp_path: Path, before: Layout, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Look at what stands still, as laid out then; change a page all the same; take the memory."""
    monkeypatch.setattr(Layout, "of_areas", classmethod(lambda *_: before))
    with (
        writing(held.repository) as writer,
        closing(SnapshotMemory(writer)) as store,
        closing(MemoryLooks(store)) as memory,
    ):
        memory.look_still([os.getpid()], held.stage)
        memory._beside.shutdown(wait=True)
        held.change(7, b"x")
        memory.take([os.getpid()], held.stage, ())
        pages = store.add(*memory.taken.popitem())
        described = Snapshot("", "2026-01-02T03:04:05Z", "alpha", manifest(), (pages,))
        made = writer.publish(described)
    return restored(held.repository, made.id, tmp_path / "scratch")["checkpoint/pages-1.img"]


def test_what_was_read_beside_criu_is_not_read_again(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Layout.of_entries([Entry(held.address, COUNT, present=False, lazy=True)])

    assert OWN + NOISE == taken(held, tmp_path, before, monkeypatch)


@pytest.mark.parametrize("pieces", [[], [(0, 7), (8, COUNT - 8)]], ids=["code", "a page less"])
def test_what_was_not_seen_so_beside_criu_is_read_again(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[int, int]]
) -> None:
    before = Layout.of_entries(
        [
            Entry(held.address + first * PAGE, count, present=False, lazy=True)
            for first, count in pieces
        ]
    )

    found = taken(held, tmp_path, before, monkeypatch)

    assert OWN + NOISE[: 7 * PAGE] + b"x" * PAGE + NOISE[8 * PAGE :] == found


def test_what_did_not_change_is_not_stored_again(held: Held) -> None:
    kept(held, None)
    held.dump()

    _, new = kept(held, 7)

    assert 2 == new  # the page changed now, and the one changed after the first freeze


def test_the_pagemap_says_then_that_all_pages_are_there(held: Held) -> None:
    kept(held, None)

    data = held.members[held.map_name].read_bytes()
    assert (1, [True, True]) == (
        images.pagemap(data, held.map_name)[0],
        [entry.present for entry in images.pagemap(data, held.map_name)[1]],
    )
    assert pagemap(1, [(PAGE, 1, HERE), (held.address, COUNT, LEFT | HERE)]) == data


def test_memory_that_cannot_be_read_fails_the_snapshot(held: Held) -> None:
    held.members[held.map_name].write_bytes(pagemap(1, [(PAGE, 1, LEFT)]))  # nothing is there

    with (
        writing(held.repository) as writer,
        closing(SnapshotMemory(writer)) as store,
        closing(MemoryLooks(store)) as memory,
        pytest.raises(DumpFailed, match="cannot be read"),
    ):
        memory.take([os.getpid()], held.stage, ())


def test_what_is_laid_aside_comes_back_from_memory_and_file(tmp_path: Path) -> None:
    aside = Aside()
    one, two, three, four, five = (digit * SIZE for digit in (b"1", b"2", b"3", b"4", b"5"))
    aside.put(one, memoryview(one * 2))
    aside.limit(2 * SIZE, tmp_path)
    for digest in (two, three, three, four):
        aside.put(digest, memoryview(digest * 2))

    assert [each * 2 for each in (one, two, three, four)] == [
        *map(aside.get, (one, two, three, four))
    ]
    assert [True, True, False] == [each in aside for each in (two, three, five)]
    with pytest.raises(KeyError):
        aside.get(five)
    aside.close()
    assert [] == [*tmp_path.iterdir()]


def test_segments_end_where_windows_of_addresses_end() -> None:
    window = 16
    layout = Layout.of_entries(
        [
            Entry((5 * window + 14) * PAGE, 20, present=False, lazy=True),
            Entry((9 * window) * PAGE, 2 * BATCH, present=True, lazy=False),
        ]
    )

    edges = [edge for batch in layout.batches() for edge in batch.edges]

    assert [0, 2, 18, 20] == edges[:4]
    assert (20 + 2 * BATCH) * PAGE == layout.size
    assert all(batch.size <= BATCH * PAGE for batch in layout.batches())
    assert layout.size == sum(batch.size for batch in layout.batches())
    assert [] == [*Layout.of_entries([]).batches()]


def test_segments_of_two_layouts_have_one_name_if_they_have_the_same_pages() -> None:
    def names(*entries: tuple[int, int, bool]) -> list[int]:
        layout = Layout.of_entries(
            [
                Entry(page * PAGE, count, present=here, lazy=not here)
                for page, count, here in entries
            ]
        )
        return [*map(int, layout.names())]

    both = names((32, 16, False), (49, 3, False))
    assert 2 == len({*both})
    assert both == names((32, 4, False), (36, 12, False), (49, 3, False))
    assert both[:1] == names((32, 16, False), (49, 2, False))[:1]
    for others in (
        names((32, 15, False), (49, 2, False)),
        names((33, 15, False), (50, 3, False)),
        names((16, 16, False), (65, 3, False)),
    ):
        assert not {*both} & {*others}
    assert [-1, both[1]] == names((32, 15, False), (47, 1, True), (49, 3, False))
    assert [] == names()
