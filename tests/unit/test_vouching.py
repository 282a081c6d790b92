"""A segment that is in a repository vouches for its pages: so no page may go, or come, without it.

What a snapshot had that was removed may come again. Then nobody looks at the pages of a segment
that is still there: they have to be.
"""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from pymigrate.checkpoint import packs, pruning
from pymigrate.checkpoint.repository import Repository
from pymigrate.checkpoint.repository_check import verify
from pymigrate.runtime.errors import HostError, NoSpace
from tests.fakes.repositories import Content, Crash, FailingDisk, add, restored

NOISE = random.Random(11)
SEGMENT = 16
MEMBER = "checkpoint/pages-1.img"


def pages(count: int) -> list[bytes]:
    return [NOISE.randbytes(4096) for _ in range(count)]


def memory(*parts: list[bytes]) -> Content:
    return {MEMBER: b"".join(page for part in parts for page in part)}


def comes_again(repository: Repository, content: Content, scratch: Path) -> None:
    """Keep it once more, and see that it can be restored."""
    again = add(repository, content, scratch)
    assert content == restored(repository, again.id, scratch)
    assert verify(repository, data=True).is_sound


def unlocked(repository: Repository) -> None:
    """Be another process than the one that crashed: its lock is nobody's any more."""
    for name in repository.disk.names("locks"):
        repository.disk.remove(f"locks/{name}")


def test_what_was_forgotten_comes_again_though_its_segments_were_not_worth_removing(
    tmp_path: Path,
) -> None:
    """Of the pages most are unused, of the segments few: each kept one has the same pages."""
    few, gone = pages(SEGMENT), pages(5 * SEGMENT)
    kept = [[*few[turn:], *few[:turn], *few[: SEGMENT - 1], few[turn]] for turn in range(SEGMENT)]
    repository = Repository.open_or_make(FailingDisk(tmp_path / "repository"))
    first = add(repository, memory(*kept, gone), tmp_path)
    stays = add(repository, memory(*kept), tmp_path)
    repository.remove([first.id])

    pruning.prune(repository)

    assert memory(*kept) == restored(repository, stays.id, tmp_path)
    comes_again(repository, memory(*kept, gone), tmp_path)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None])
def test_what_was_forgotten_comes_again_after_a_prune_that_failed_anywhere(
    tmp_path: Path, error: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "FEW", 1)
    gone, kept, both = memory(pages(40)), memory(pages(40)), pages(64)
    gone = {MEMBER: gone[MEMBER] + b"".join(both)}
    kept = {MEMBER: kept[MEMBER] + b"".join(both)}
    origin = Repository.open_or_make(FailingDisk(tmp_path / "origin"))
    forgotten = add(origin, gone, tmp_path)
    add(origin, kept, tmp_path)
    origin.remove([forgotten.id])
    failed = 0
    for fails_at in itertools.count():
        root = tmp_path / "copy"
        shutil.copytree(origin.disk.where, root)
        disk = FailingDisk(root, fails_at, error)
        try:
            pruning.prune(Repository(disk, origin.keys))
        except (NoSpace, HostError, Crash):
            failed += 1
        repository = Repository(FailingDisk(root), origin.keys)
        unlocked(repository)

        comes_again(repository, gone, tmp_path)

        shutil.rmtree(root)
        if disk.done <= fails_at:
            break
    assert failed > 10


@pytest.mark.parametrize("segments", [12, 13, 14])  # of one a pack is full with the last
def test_a_snapshot_that_was_never_finished_vouches_for_nothing_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: int
) -> None:
    """Packs of segments can be full before that of their last pages is."""
    monkeypatch.setattr(packs, "BLOB", 256)
    content = {
        MEMBER: b"".join(bytes([n % 251, n // 251]) * 2048 for n in range(segments * SEGMENT))
    }

    def made(name: str, fails_at: int = -1) -> tuple[Repository, FailingDisk]:
        keys = Repository.open_or_make(FailingDisk(tmp_path / name)).keys
        disk = FailingDisk(tmp_path / name, fails_at)
        with monkeypatch.context() as small, suppress(Crash):
            small.setattr(packs, "PACK", 1200)
            add(Repository(disk, keys), content, tmp_path)
        return Repository(FailingDisk(tmp_path / name), keys), disk

    _, disk = made("whole")
    for fails_at in range(disk.done - 30, disk.done):
        repository, _ = made(f"cut-{fails_at}", fails_at)
        unlocked(repository)

        comes_again(repository, content, tmp_path)
