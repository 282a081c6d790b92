"""Which blocks of a checkpoint's memory were waited for by whom it was restored before.

A program that begins again where it stood needs the same pages again, mostly. So a restore that
brings memory while the program runs notes what was waited for, and the next one of the same
checkpoint on this host brings that first, and does not hold it back while somebody waits. It is a
hint and nothing else: one that is lost, damaged or of blocks that are not there costs the time that
it would have saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymigrate.checkpoint.manifest import Manifest
    from pymigrate.checkpoint.memory_map import PageFile
    from pymigrate.runtime.host import Host

FOLDER = "working-sets"  # below the host's root
MOST = 2048  # blocks that are kept of a checkpoint, 1 GiB at most
KEPT = 64  # checkpoints of which they are kept, the last restored
_MAX_BYTES = 128 << 10

Block = tuple[str, int]
"""A file of pages, and the number of a block in it."""


def place(host: Host, manifest: Manifest) -> Path:
    """Return where a host keeps that of a checkpoint."""
    return host.root / FOLDER / f"{hashlib.sha256(manifest.to_json()).hexdigest()}.json"


def read(path: Path) -> list[Block]:
    """Return the blocks, what was waited for first in front; none if there is no such hint."""
    try:
        with path.open("rb") as stream:
            return unpack(stream.read(_MAX_BYTES))
    except OSError:
        return []


def write(path: Path, blocks: Iterable[Block], faults: int = 0) -> None:
    """Replace the hint, and forget those of checkpoints that were not restored for longest.

    ``faults`` is how many pages were waited for, for who wants to know what the hint is worth.

    Raises OSError.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(pack(blocks, faults))
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    for old in _by_age(path.parent)[KEPT:]:
        old.unlink(missing_ok=True)


def pack(blocks: Iterable[Block], faults: int = 0) -> bytes:
    """Return them as they are kept, each once."""
    return json.dumps({"faults": faults, "blocks": list(dict.fromkeys(blocks))[:MOST]}).encode()


def unpack(document: bytes) -> list[Block]:
    """Return what of a document are blocks; nobody relies on it."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return []
    listed = found.get("blocks") if isinstance(found, dict) else None
    blocks: list[Block] = []
    for each in listed if isinstance(listed, list) else ():
        match each:
            case [str(name), int(number)]:
                blocks.append((name, number))
    return blocks[:MOST]


def _by_age(folder: Path) -> list[Path]:
    """List what is in a folder, the youngest first; another restore may change it meanwhile."""
    ages = []
    for each in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            ages.append((each.stat().st_mtime_ns, each))
    return [path for _, path in sorted(ages, reverse=True)]


def first(files: Sequence[PageFile], known: Sequence[Block]) -> Iterator[tuple[PageFile, int]]:
    """Yield these blocks, as far as they are."""
    by_name = {file.name: file for file in files if file.inner is not None}
    for name, number in known:
        if name in by_name and 0 <= number < by_name[name].blocks:
            yield by_name[name], number


def others(files: Sequence[PageFile]) -> Iterator[tuple[PageFile, int]]:
    """Yield all blocks in which something may come later, in the order of addresses."""
    for file in files:
        for number in range(file.blocks if file.inner is not None else 0):
            if any(file.within(number)):
                yield file, number
