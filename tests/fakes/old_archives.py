"""Archives as they were written before each block of memory had a SHA-256: formats 1 and 2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import xxhash

from pymigrate.checkpoint import seekable
from pymigrate.checkpoint.archive import IMAGES, MANIFEST, SIGNATURE, SUMS, is_memory
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import BLOCK
from pymigrate.checkpoint.signing import SIZE, Signer
from pymigrate.runtime.tree_format import END, Kind, Member, encode, padding


def write(
    path: Path,
    members: Mapping[str, bytes],
    manifest: Manifest,
    level: int | None,
    *,
    blocks: bool = True,
    signer: Signer | None = None,
) -> None:
    """Write one; the oldest had no ``blocks``."""
    names = sorted(members, key=lambda name: (is_memory(name), not name.startswith(IMAGES), name))
    tables = {
        name.replace("/pages-", "/blocks-").replace(".img", ".xxh3"): _table(members[name])
        for name in names
        if blocks and is_memory(name)
    }
    contents = {name: members[name] for name in names} | tables
    write_contents(path, contents, manifest, level, signer=signer)


def write_contents(
    path: Path,
    contents: Mapping[str, bytes],
    manifest: Manifest,
    level: int | None,
    *,
    signer: Signer | None = None,
) -> None:
    """Write members in this order, whatever they are, announced and with right checksums."""
    sizes = {name: len(data) for name, data in contents.items()}
    sizes |= {} if signer is None else {SIGNATURE: SIZE}
    contents = {MANIFEST: manifest.with_members(sizes).to_json(), **contents}
    with path.open("wb") as stream:
        out: seekable.Sink = seekable.PlainSink(stream)
        if level is not None:
            out = seekable.FrameSink(stream, level)
        out.write(encode(Member(IMAGES.encode(), Kind.DIRECTORY, 0o700, 0, 0, 0)))
        for name, data in contents.items():
            _add(out, name, data)
        sums = "".join(
            f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items()
        ).encode()
        _add(out, SUMS, sums)
        if signer is not None:
            _add(out, SIGNATURE, signer.sign(sums))
        out.write(END)
        if isinstance(out, seekable.FrameSink):
            out.finish()
            out.close()


def _table(data: bytes) -> bytes:
    pieces = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    return b"".join(map(xxhash.xxh3_128_digest, pieces))


def _add(out: seekable.Sink, name: str, data: bytes) -> None:
    out.write(encode(Member(name.encode(), Kind.FILE, 0o600, 0, 0, 0, size=len(data))))
    for at in range(0, len(data), BLOCK):
        if is_memory(name):
            out.cut()
        out.write(data[at : at + BLOCK])
    out.cut()
    out.write(bytes(padding(len(data))))
