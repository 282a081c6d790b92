"""Memory on its way into an archive: what was spooled while it ran, and what changed since."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.checkpoint import archive_memory, archive_writer, new_file, seekable
from pymigrate.checkpoint.archive import Archive
from pymigrate.checkpoint.archive_memory import ArchiveMemory, TakenPages
from pymigrate.checkpoint.archive_writer import Compression
from pymigrate.checkpoint.images import PAGE, Entry
from pymigrate.checkpoint.memory_looks import MemoryLooks
from pymigrate.checkpoint.memory_map import BLOCK
from pymigrate.checkpoint.page_blocks import Encoder, Spooled
from pymigrate.checkpoint.page_layout import LITTLE, Layout
from pymigrate.checkpoint.protection import Protection, Trust
from pymigrate.checkpoint.spool import Spool
from pymigrate.runtime.errors import DumpFailed, NoSpace
from pymigrate.runtime.memory import Regions
from tests.unit.test_archive import manifest
from tests.unit.test_lazy_archive import laid_out, pagemap
from tests.unit.test_snapshot_memory import COUNT, NOISE, OWN, Held

PER_BLOCK = BLOCK // PAGE
PAGES = "checkpoint/pages-1.img"
SECRET = b"a secret"


@pytest.fixture
def holding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Held]]:
    with ExitStack() as closed:

        def hold(noise: bytes) -> Held:
            found = Held(tmp_path, noise)
            closed.callback(found.memory.close)
            # Of this process only that memory is looked at: the rest of it changes all the time.
            pages = len(noise) // PAGE
            own = Layout.of_entries([Entry(found.address, pages, present=False, lazy=True)])
            monkeypatch.setattr(Layout, "of_areas", classmethod(lambda *_: own))
            return found

        yield hold


@pytest.fixture
def held(holding: Callable[[bytes], Held]) -> Held:
    return holding(NOISE)


class Kept:
    """An archive that was made of held memory, and how many of its blocks had been spooled."""

    def __init__(
        self,
        held: Held,
        path: Path,
        *,
        changes: int | None = 7,
        how: str = "zstd:1",
        looks: bool = True,
        still: bool = True,
        secret: bytes | None = None,
    ) -> None:
        compression = Compression.parse(how)
        with ExitStack() as closed:
            spool = Spool(path.parent)
            encoder = Encoder(compression.level)
            store = closed.enter_context(closing(ArchiveMemory(spool, encoder)))
            memory = closed.enter_context(closing(MemoryLooks(store)))
            if looks:
                memory.look([os.getpid()])
            if changes is not None:
                held.change(changes, b"x")
            if still:
                memory.look_still([os.getpid()], held.stage)
            memory.take([os.getpid()], held.stage, ())
            held.change(
                len(held.memory) // PAGE - 1, b"y"
            )  # it runs again: nothing of this may be seen
            memory.complete(held.members)
            pages = {name: TakenPages(store, taken) for name, taken in memory.taken.items()}
            with ThreadPoolExecutor(1) as pool:
                blocks = [*pages[PAGES].blocks(pool)]
            self.spooled = sum(isinstance(block, Spooled) for block in blocks)
            self.made = len(blocks) - self.spooled
            with new_file.target(path) as target:
                archive_writer.write(
                    held.members, manifest(), target.stream, compression, Protection(secret), pages
                )
                target.publish()


CHANGED = OWN + NOISE[: 7 * PAGE] + b"x" * PAGE + NOISE[8 * PAGE :]


@pytest.mark.parametrize("room", [0, PAGE, archive_memory.SPARE])
@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("how", ["none", "zstd:1"])
def test_memory_is_kept_as_it_was_under_the_freeze(
    held: Held,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    looks: bool,
    still: bool,
    how: str,
) -> None:
    monkeypatch.setattr(archive_memory, "SPARE", room)
    path = tmp_path / "out" / "web.tar"
    path.parent.mkdir()

    Kept(held, path, how=how, looks=looks, still=still)

    assert [path] == [*path.parent.iterdir()]
    (tmp_path / "into").mkdir()
    Archive.open(path).extract(tmp_path / "into")
    assert CHANGED == (tmp_path / "into" / PAGES).read_bytes()
    with laid_out(path, tmp_path / "laid") as pages:
        (file,) = pages.files
        assert CHANGED == b"".join(pages.block(file, each) for each in range(file.blocks))
        assert [(1, 1), (1, COUNT)] == [
            (len(extents), sum(each.length for each in extents) // PAGE)
            for extents in (file.eager, file.lazy)
        ]


def test_an_encrypted_archive_has_the_memory_too(held: Held, tmp_path: Path) -> None:
    path = tmp_path / "web.tar"

    Kept(held, path, secret=SECRET)

    (tmp_path / "into").mkdir()
    Archive.open(path, Trust(SECRET)).extract(tmp_path / "into")
    assert CHANGED == (tmp_path / "into" / PAGES).read_bytes()


def test_what_did_not_change_is_not_compressed_again(
    holding: Callable[[bytes], Held], tmp_path: Path
) -> None:
    held = holding(random.Random(9).randbytes(10 * BLOCK))
    first = -held.address % BLOCK // PAGE  # page of a window that is full

    unchanged = Kept(held, tmp_path / "one", changes=None)
    held.dump()
    changed = Kept(held, tmp_path / "two", changes=first + PER_BLOCK + 3)

    # CRIU's own page is there under the freeze only, and makes a block with what follows it.
    assert unchanged.spooled >= 9
    assert (unchanged.spooled - 1, unchanged.made + 1) == (changed.spooled, changed.made)


def test_memory_that_cannot_be_read_fails_the_checkpoint(held: Held, tmp_path: Path) -> None:
    held.members[held.map_name].write_bytes(pagemap(1, [(PAGE, 1, 2)]))  # nothing is there

    with pytest.raises(DumpFailed, match="cannot be read"):
        Kept(held, tmp_path / "web.tar", looks=False, still=False)


def test_a_full_disk_is_told_and_leaves_nothing(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / "web.tar"
    path.parent.mkdir()
    monkeypatch.setattr(Spool, "append", _fails)

    with pytest.raises(NoSpace):
        Kept(held, path)

    assert [] == [*path.parent.iterdir()]


def _fails(*_: object) -> None:
    raise NoSpace("the disk is full")


def test_frames_are_copied_where_the_kernel_does_not(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seekable, "_copied", lambda *_: 0)
    path = tmp_path / "web.tar"

    Kept(held, path)

    (tmp_path / "into").mkdir()
    Archive.open(path).extract(tmp_path / "into")
    assert CHANGED == (tmp_path / "into" / PAGES).read_bytes()


PAGE_NUMBERS = st.lists(
    st.tuples(st.integers(0, 40 * PER_BLOCK), st.integers(1, 2 * PER_BLOCK)), max_size=12
)


def layout(runs: list[tuple[int, int]]) -> Layout:
    numbers = sorted({page for first, count in runs for page in range(first, first + count)})
    return Layout.of_entries([Entry(each * PAGE, 1, present=False, lazy=True) for each in numbers])


def page_addresses(which: Layout) -> list[int]:
    return [
        address + page * PAGE
        for address, count in zip(which.addresses.tolist(), which.counts.tolist(), strict=True)
        for page in range(count)
    ]


@given(PAGE_NUMBERS)
def test_blocks_are_all_pages_in_their_order(runs: list[tuple[int, int]]) -> None:
    whole = layout(runs)

    edges = [batch.edges for batch in whole.blocks()]

    assert all(0 < batch.size <= BLOCK for batch in whole.blocks())
    assert all(one[-1] == two[0] for one, two in itertools.pairwise(edges))
    assert [0, whole.size // PAGE] == ([edges[0][0], edges[-1][-1]] if edges else [0, 0])
    assert whole.segments == sum(len(each) - 1 for each in edges)
    little = sum(each[-1] - each[0] < LITTLE for each in edges)
    assert little <= len(edges) // 2 + 1  # so a table is never much longer than it has to be


REGIONS = st.lists(st.integers(0, 42 * PER_BLOCK), max_size=24).map(
    lambda edges: np.array(sorted(edges)[: len(edges) // 2 * 2], np.uint64).reshape(-1, 2) * PAGE
)


@given(PAGE_NUMBERS, REGIONS)
def test_segments_lie_in_regions_or_touch_them(
    runs: list[tuple[int, int]], regions: Regions
) -> None:
    whole = layout(runs)

    def inside(address: int) -> bool:
        return any(start <= address < end for start, end in regions.tolist())

    flags = [inside(each) for each in page_addresses(whole)]
    segments = [flags[first:last] for first, last in itertools.pairwise(whole.edges.tolist())]
    assert [all(each) for each in segments] == whole.lies_in(regions).tolist()
    assert [any(each) for each in segments] == whole.touches(regions).tolist()


@given(PAGE_NUMBERS, st.integers(0, 40 * PER_BLOCK))
def test_a_page_that_appears_changes_the_blocks_around_it(
    runs: list[tuple[int, int]], page: int
) -> None:
    def ends(which: Layout) -> set[int]:
        addresses = page_addresses(which)
        return {addresses[batch.edges[-1] - 1] for batch in which.blocks()}

    # Between two windows that are full nothing of it is seen.
    walls = [
        (each * PER_BLOCK, PER_BLOCK) for each in (page // PER_BLOCK - 1, page // PER_BLOCK + 1)
    ]
    walls = [each for each in walls if each[0] >= 0]
    before = ends(layout([*runs, *walls]))
    after = ends(layout([*runs, *walls, (page, 1)]))

    window = page // PER_BLOCK * BLOCK
    assert {each // BLOCK * BLOCK for each in before ^ after} <= {window, window - BLOCK}
