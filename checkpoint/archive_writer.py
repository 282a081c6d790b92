"""Checkpoints are written as archives; their format is said in archive.py."""

from __future__ import annotations

import calendar
import hashlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pymigrate.checkpoint import block_table, seekable, signing
from pymigrate.checkpoint.archive import IMAGES, MANIFEST, SIGNATURE, SUMS, is_memory
from pymigrate.checkpoint.archive_memory import THREADS
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.page_blocks import Encoder, FilePages, Pages
from pymigrate.checkpoint.protection import Protection
from pymigrate.runtime.errors import HostError, UsageError
from pymigrate.runtime.tree_format import END, Kind, Member, encode, padding

_CHUNK = 1 << 20
_LEVEL = 3


@dataclass(frozen=True)
class Compression:
    """How an archive is compressed; no level: not at all."""

    level: int | None = _LEVEL

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read ``zstd``, ``zstd:LEVEL`` or ``none``; raises UsageError."""
        name, _, level = text.partition(":")
        if name == "none" and not level:
            return cls(None)
        if name == "zstd" and not level:
            return cls()
        if name == "zstd" and level.isdigit() and 1 <= int(level) <= 19:
            return cls(int(level))
        raise UsageError(
            f"--compress {text}: unknown; nothing was changed", hint="zstd, zstd:1 … zstd:19, none"
        )


def write(
    members: Mapping[str, Path],
    manifest: Manifest,
    stream: BinaryIO,
    compression: Compression,
    protection: Protection | None = None,
    memory: Mapping[str, Pages] | None = None,
) -> None:
    """Write files that no longer change as an archive; `members` maps names to files.

    ``memory`` is what is known already of the blocks of files of pages, whose own files, if there
    are any, are not looked at then.
    """
    protection = protection or Protection()
    encoder = Encoder(compression.level)
    pages: dict[str, Pages] = {
        name: FilePages(path, encoder) for name, path in members.items() if is_memory(name)
    }
    pages |= memory or {}
    lengths = {block_table.pages_of(name): each.lengths for name, each in pages.items()}
    tables = {name: block_table.pack(each) for name, each in lengths.items()}
    files = {name: path for name, path in members.items() if name not in pages}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    announced = {
        **sizes,
        **{name: len(table) for name, table in tables.items()},
        **{name: sum(each.lengths) for name, each in pages.items()},
        **{
            block_table.digests_of(n): len(p.lengths) * block_table.DIGEST for n, p in pages.items()
        },
    }
    if protection.signer is not None:
        announced |= {SIGNATURE: signing.SIZE}
    described = manifest.with_members(announced).to_json()
    sums: list[str] = []
    with (
        protection.sealing(stream) as sealed,
        _compressed(sealed, compression) as out,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        out.write(encode(_member(IMAGES, Kind.DIRECTORY, 0o700, 0, manifest)))
        _write_bytes(out, MANIFEST, described, manifest, sums)
        for name in sorted(files.keys() | tables.keys(), key=_images_first):
            if name in tables:
                _write_bytes(out, name, tables[name], manifest, sums)
            else:
                _write_file(out, name, files[name], sizes[name], manifest, sums)
        digests = {
            block_table.digests_of(name): _write_memory(out, name, pages[name], pool, manifest)
            for name in sorted(pages)
        }
        for name, data in digests.items():
            _write_bytes(out, name, data, manifest, sums)
        text = "".join(sums).encode()
        _write_bytes(out, SUMS, text, manifest, [])
        if protection.signer is not None:
            _write_bytes(out, SIGNATURE, protection.signer.sign(text), manifest, [])
        out.write(END)


def _images_first(name: str) -> tuple[bool, str]:
    return not name.startswith(f"{IMAGES}/"), name


@contextmanager
def _compressed(stream: seekable.Writable, compression: Compression) -> Iterator[seekable.Sink]:
    if compression.level is None:
        yield seekable.PlainSink(stream)
        return
    out = seekable.FrameSink(stream, compression.level)
    try:
        yield out
        out.finish()
    finally:
        out.close()


def _member(name: str, kind: Kind, mode: int, size: int, manifest: Manifest) -> Member:
    made = calendar.timegm(time.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ"))
    return Member(name.encode(), kind, mode, 0, 0, made * 10**9, size=size)


def _write_bytes(
    out: seekable.Sink, name: str, data: bytes, manifest: Manifest, sums: list[str]
) -> None:
    out.write(encode(_member(name, Kind.FILE, 0o600, len(data), manifest)))
    out.write(data)
    out.write(bytes(padding(len(data))))
    sums.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")


def _write_file(
    out: seekable.Sink, name: str, path: Path, size: int, manifest: Manifest, sums: list[str]
) -> None:
    found = hashlib.sha256()
    out.write(encode(_member(name, Kind.FILE, 0o600, size, manifest)))
    with path.open("rb") as stream:
        for at in range(0, size, _CHUNK):
            wanted = min(_CHUNK, size - at)
            data = stream.read(wanted)
            if len(data) != wanted:
                raise HostError(f"{path} became shorter while it was written to the archive")
            found.update(data)
            out.write(data)
    out.write(bytes(padding(size)))
    sums.append(f"{found.hexdigest()}  {name}\n")


def _write_memory(
    out: seekable.Sink, name: str, pages: Pages, pool: ThreadPoolExecutor, manifest: Manifest
) -> bytes:
    """Write a file of pages, each block by itself; return their digests."""
    size = sum(pages.lengths)
    out.write(encode(_member(name, Kind.FILE, 0o600, size, manifest)))
    out.cut()
    digests = []
    for block in pages.blocks(pool):
        out.put(block.frame, block.size)
        digests.append(block.digest)
    out.write(bytes(padding(size)))
    return b"".join(digests)
