"""A checkpoint as one file: podman's layout, so that checkpointctl reads it, and our manifest.

A tar, compressed by zstd or not, of these members in this order:

* ``checkpoint/``: an entry of its own, which checkpointctl looks for;
* ``pymigrate.json``: the manifest, with the size of each member that follows;
* ``checkpoint/NAME``: CRIU's images but for the next;
* ``config.dump``, ``spec.dump``, ``network.status``: what podman's tools show; see podman.py;
* ``rootfs-diff.tar``: the overlay's upper directory; ``deleted.files``: its whiteouts, as JSON;
* ``volumes/N.tar``: the Nth volume of the record, if it travels; ``ctr.log``: the output;
* ``checkpoint/pages-N.img``: the memory, each block of 512 KiB a zstd frame of its own;
* ``checkpoint/blocks-N.xxh3``: the XXH3 (128 bits, big-endian) of each of these blocks;
* ``pymigrate.sha256``: the SHA-256 of every member before it, as sha256sum(1) writes them;
* ``pymigrate.sig``: if it is signed, the signature of the member before it; see signing.py.

A restore may so begin without the memory, and read each page when it is wanted: see `lay_out` and
seekable.py. Archives of before have neither blocks nor frames, and are read from their beginning;
so are encrypted ones (protection.py) and signed ones, for XXH3 withstands accidents only.

Reading trusts nothing: only these names, only regular files, only sizes that the manifest has
announced; and whoever extracts uses nothing before the last member has confirmed the rest.
"""

from __future__ import annotations

import calendar
import hashlib
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import xxhash

from pymigrate.checkpoint import seekable, signing
from pymigrate.checkpoint.manifest import MAX_BYTES as MAX_MANIFEST
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import BLOCK, is_page_file
from pymigrate.checkpoint.new_file import writing
from pymigrate.checkpoint.protection import NOBODY, Protection, Trust, unsealed
from pymigrate.runtime import compressed
from pymigrate.runtime.errors import BadArchive, HostError, NoSpace, NotFound, UsageError
from pymigrate.runtime.tree_format import END, Kind, Member, encode, padding
from pymigrate.runtime.tree_source import Source

IMAGES = "checkpoint"
MANIFEST = "pymigrate.json"
SUMS = "pymigrate.sha256"
SIGNATURE = "pymigrate.sig"
FILES = "rootfs-diff.tar"
LOG = "ctr.log"

DIGEST = 16
"""Bytes of the digest of a block."""

MAX_TOTAL = 1 << 42
"""Bytes that an archive may unpack to, whatever it says of itself."""

MAX_MEMBERS = 100_000
_CHUNK = 1 << 20
_LEVEL = 3
_SPARE = 64 << 20  # bytes to leave free on the disk that is unpacked to
_KNOWN = re.compile(
    r"checkpoint/[A-Za-z0-9_@:+-][A-Za-z0-9_@:+.-]{0,200}"
    r"|volumes/[0-9]{1,4}\.tar"
    r"|config\.dump|spec\.dump|network\.status|deleted\.files|rootfs-diff\.tar|ctr\.log"
)


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
) -> None:
    """Write files that no longer change as an archive; `members` maps names to files."""
    protection = protection or Protection()
    names = sorted(
        members, key=lambda name: (_is_memory(name), not name.startswith(f"{IMAGES}/"), name)
    )
    sizes = {name: members[name].stat().st_size for name in names}
    blocks = {blocks_of(name): -(-sizes[name] // BLOCK) for name in names if _is_memory(name)}
    announced = sizes | {name: count * DIGEST for name, count in blocks.items()}
    if protection.signer is not None:
        announced |= {SIGNATURE: signing.SIZE}
    described = manifest.with_members(announced).to_json()
    sums: list[str] = []
    digests: dict[str, bytes] = {}
    with protection.sealing(stream) as sealed, _compressed(sealed, compression) as out:
        out.write(encode(_member(IMAGES, Kind.DIRECTORY, 0o700, 0, manifest)))
        _write_bytes(out, MANIFEST, described, manifest, sums)
        for name in names:
            out.write(encode(_member(name, Kind.FILE, 0o600, sizes[name], manifest)))
            if _is_memory(name):
                whole, digests[blocks_of(name)] = _copy_memory(members[name], out, sizes[name])
            else:
                whole = _copy(members[name], out, sizes[name])
            sums.append(f"{whole}  {name}\n")
            out.write(bytes(padding(sizes[name])))
        for name, data in digests.items():
            _write_bytes(out, name, data, manifest, sums)
        text = "".join(sums).encode()
        _write_bytes(out, SUMS, text, manifest, [])
        if protection.signer is not None:
            _write_bytes(out, SIGNATURE, protection.signer.sign(text), manifest, [])
        out.write(END)


def _is_memory(name: str) -> bool:
    return name.startswith(f"{IMAGES}/") and is_page_file(name.removeprefix(f"{IMAGES}/"))


def blocks_of(name: str) -> str:
    """Return the member that has the digests of a file of pages."""
    return name.replace("/pages-", "/blocks-").replace(".img", ".xxh3")


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


def _copy(path: Path, out: seekable.Sink, size: int) -> str:
    found = hashlib.sha256()
    for data in _pieces(path, size, _CHUNK):
        found.update(data)
        out.write(data)
    return found.hexdigest()


def _copy_memory(path: Path, out: seekable.Sink, size: int) -> tuple[str, bytes]:
    """Write a file of pages, each block by itself; return its SHA-256, and their digests."""
    found = hashlib.sha256()
    digests = []
    for data in _pieces(path, size, BLOCK):
        found.update(data)
        digests.append(xxhash.xxh3_128_digest(data))
        out.cut()
        out.write(data)
    out.cut()
    return found.hexdigest(), b"".join(digests)


def _pieces(path: Path, size: int, each: int) -> Iterator[bytes]:
    """Read a file that is so long, in pieces of so many bytes but for the last."""
    with path.open("rb") as stream:
        for at in range(0, size, each):
            wanted = min(each, size - at)
            data = stream.read(wanted)
            if len(data) != wanted:
                raise HostError(f"{path} became shorter while it was written to the archive")
            yield data


@dataclass(frozen=True)
class LaidOut:
    """An archive that was unpacked without its memory; ``places`` say where that begins in it."""

    stream: BinaryIO
    file: seekable.Seekable
    sums: dict[str, str]
    places: dict[str, int]


@dataclass(frozen=True)
class Verified:
    """What was read to its end: the SHA-256 of each member, and the public key of who signed it."""

    sums: dict[str, str]
    signer: bytes | None


@dataclass(frozen=True)
class Archive:
    """An archive whose manifest was read; everything else is unknown until `extract`."""

    path: Path
    manifest: Manifest
    trust: Trust = NOBODY

    @classmethod
    def open(cls, path: Path, trust: Trust | None = None) -> Archive:
        """Read the manifest.

        Raises:
            NotFound: there is no such file.
            BadArchive: it is no checkpoint of ours, or not signed, where it has to be.
            UsageError: it is encrypted, and the secret is missing or wrong.

        """
        trust = trust or NOBODY
        with _opened(path, trust) as (source, _):
            opened = cls(path, _begin(path, source)[0], trust)
        if trust.signers is not None and not opened.is_signed:
            raise BadArchive(
                f"{path} is not signed; nothing was changed",
                hint="use it only if you know where it comes from; then leave --signed-by out",
            )
        return opened

    @property
    def is_signed(self) -> bool:
        """Whether it says that it is signed; by whom, and whether that is so, `examine` tells."""
        return SIGNATURE in self.manifest.members

    @property
    def is_encrypted(self) -> bool:
        """Whether it cannot be read without a secret."""
        return self.trust.secret is not None  # a secret opens nothing else

    def extract(self, into: Path) -> dict[str, str]:
        """Unpack into an empty directory and verify; the caller removes it on any error.

        Returns the SHA-256 of each member.

        Raises:
            BadArchive: cut, altered or hostile.
            NoSpace: there is not enough room for what it announces.

        """
        self._check_room(into, sum(self.manifest.members.values()))
        with writing(into):
            return self._read(into).sums

    def _check_room(self, into: Path, total: int) -> None:
        status = os.statvfs(into)
        free = status.f_bavail * status.f_frsize
        if total + _SPARE > free:
            raise NoSpace(
                f"{self.path} needs {(total + _SPARE) >> 20} MiB to unpack and {into.parent} has "
                f"{free >> 20} MiB left; nothing was changed",
                hint="free some space, or give another --root",
            )

    @property
    def memory(self) -> int:
        """Bytes of all files of pages."""
        members = self.manifest.members.items()
        return sum(size for name, size in members if _is_memory(name))

    def verify(self) -> dict[str, str]:
        """Read everything and compare the checksums; returns them. Raises BadArchive."""
        return self.examine().sums

    def examine(self) -> Verified:
        """Do as `verify`; tell who has signed it, too."""
        return self._read(None)

    def _read(self, into: Path | None) -> Verified:
        with _opened(self.path, self.trust) as (source, stream):
            manifest, begun = _begin(self.path, source)
            if manifest != self.manifest:
                raise BadArchive(f"{self.path} changed while it was read; nothing was changed")
            sums = {MANIFEST: begun}
            while (member := source.next_member()) is not None:
                name = _name(self.path, member)
                if name == SUMS:
                    break
                if name in sums or member.size != manifest.members.get(name):
                    raise _hostile(self.path, f"{name} is not what the manifest announces")
                sums[name] = _take(source, member, into)
            else:
                raise _damaged(self.path, "its checksums are missing")
            signer = self._compare(source, member, sums)
            if manifest.members.keys() & {blocks_of(name) for name in sums if _is_memory(name)}:
                self._check_table()
            # Up to the end of a compressed stream, where its own checksum is.
            if stream.read(1):
                raise _hostile(self.path, "something follows its end")
        return Verified(sums, signer)

    def _check_table(self) -> None:
        if self.is_encrypted:
            return  # nobody reads it by that
        with self.path.open("rb", buffering=0) as stream:
            if seekable.opened(stream.fileno()) is None:
                raise BadArchive("its table of frames is missing")

    def lay_out(self, into: Path) -> LaidOut | None:
        """Unpack and verify as `extract` does, all but the memory; None if that cannot be.

        So it is with archives of before, and with encrypted and signed ones. For the memory there
        are holes: see archive_pages.py.
        """
        if self.is_signed or self.is_encrypted:
            return None
        memory = [name for name in self.manifest.members if _is_memory(name)]
        if not {blocks_of(name) for name in memory} <= self.manifest.members.keys():
            return None
        sizes = self.manifest.members
        self._check_room(into, sum(sizes.values()) - sum(sizes[name] for name in memory))
        with ExitStack() as stack:
            stream = stack.enter_context(self.path.open("rb", buffering=0))
            try:
                file = seekable.opened(stream.fileno())
                if file is None:
                    return None
                with writing(into):
                    sums, places = self._read_around(file, into)
            except BadArchive as error:
                if error.message.startswith(str(self.path)):
                    raise
                raise _damaged(self.path, error.message, error.hint) from error
            stack.pop_all()
        return LaidOut(stream, file, sums, places)

    def _read_around(
        self, file: seekable.Seekable, into: Path
    ) -> tuple[dict[str, str], dict[str, int]]:
        """Take every member but the memory; return what `_read` does, and where the memory is."""
        source = Source(seekable.Stream(file, 0), hashed=False)
        manifest, begun = _begin(self.path, source)
        if manifest != self.manifest:
            raise BadArchive(f"{self.path} changed while it was read; nothing was changed")
        sums = {MANIFEST: begun}
        places: dict[str, int] = {}
        base = 0
        while (member := source.next_member()) is not None:
            name = _name(self.path, member)
            if name == SUMS:
                break
            if name in sums or name in places or member.size != manifest.members.get(name):
                raise _hostile(self.path, f"{name} is not what the manifest announces")
            if not _is_memory(name):
                sums[name] = _take(source, member, into)
                continue
            places[name] = base + source.offset
            base = places[name] + member.size + padding(member.size)
            source = Source(seekable.Stream(file, base), hashed=False)
        else:
            raise _damaged(self.path, "its checksums are missing")
        self._compare(source, member, sums, without=places)
        return sums, places

    def _compare(
        self,
        source: Source,
        member: Member,
        sums: Mapping[str, str],
        without: Collection[str] = (),
    ) -> bytes | None:
        """Compare the checksums, and look at the signature; return whose it is."""
        if member.size > MAX_MANIFEST:
            raise _hostile(self.path, "its list of checksums is too long")
        content = b"".join(source.content(member))
        text = content.decode("utf-8", "replace")
        written = {line[66:]: line[:64] for line in text.splitlines() if line[64:66] == "  "}
        for name in sums.keys() | (written.keys() - set(without)):
            if sums.get(name) != written.get(name):
                raise _damaged(self.path, f"{name} was altered")
        absent = self.manifest.members.keys() - sums.keys() - set(without) - {SIGNATURE}
        if absent:
            raise _damaged(self.path, f"{min(absent)} is missing")
        last = source.next_member()
        signer = None
        if self.is_signed:
            if last is None or last.name != SIGNATURE.encode() or last.size != signing.SIZE:
                raise _damaged(self.path, "its signature is missing")
            signer = signing.signer_of(content, b"".join(source.content(last)))
            if self.trust.signers is not None and signer not in self.trust.signers:
                raise BadArchive(
                    f"{self.path} is signed by {signing.fingerprint(signer)}, which is none of the "
                    "keys that were given; nothing was changed",
                    hint="use it only if you know that key; then name it with --signed-by",
                )
            last = source.next_member()
        if last is not None:
            raise _hostile(self.path, "something follows its checksums")
        source.finish()
        return signer


@contextmanager
def _opened(path: Path, trust: Trust) -> Iterator[tuple[Source, compressed.Readable]]:
    with ExitStack() as stack:
        try:
            if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
                what = "a directory" if path.is_dir() else "not a regular file"
                raise BadArchive(f"{path} is {what}; nothing was changed")
            stream = stack.enter_context(path.open("rb", buffering=0))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"there is no file {path}; nothing was changed") from error
        try:
            plain = compressed.plain(unsealed(cast(Any, stream), trust.secret))
            # Each member's own checksum is compared: a second pass over all bytes shows no more.
            yield Source(plain, hashed=False), plain
        except BadArchive as error:
            if error.message.startswith(str(path)):
                raise
            raise _damaged(path, error.message, error.hint) from error


def _begin(path: Path, source: Source) -> tuple[Manifest, str]:
    """Read up to the manifest; return it and its SHA-256."""
    first = source.next_member()
    if first is None or first.kind is not Kind.DIRECTORY or first.name != IMAGES.encode():
        raise _foreign(path)
    member = source.next_member()
    if member is None or member.name != MANIFEST.encode() or member.kind is not Kind.FILE:
        raise _foreign(path)
    if member.size > MAX_MANIFEST:
        raise _hostile(path, f"its manifest has {member.size} bytes")
    data = b"".join(source.content(member))
    manifest = Manifest.from_json(data)
    sizes = manifest.members.values()
    if len(sizes) > MAX_MEMBERS or any(size < 0 for size in sizes) or sum(sizes) > MAX_TOTAL:
        raise _hostile(path, "it announces more than any checkpoint has")
    return manifest, hashlib.sha256(data).hexdigest()


def _name(path: Path, member: Member) -> str:
    name = member.name.decode("utf-8", "replace")
    if member.kind is not Kind.FILE or member.extents is not None:
        raise _hostile(path, f"{name[:100]!r} is a {member.kind.name.lower()}, not a plain file")
    if name != SUMS and not _KNOWN.fullmatch(name):
        raise _hostile(path, f"{name[:100]!r} is no member of a checkpoint")
    return name


def _take(source: Source, member: Member, into: Path | None) -> str:
    """Write the member below `into`, if given; return its SHA-256."""
    found = hashlib.sha256()
    with ExitStack() as stack:
        out = None
        if into is not None:
            place = into / member.name.decode()
            place.parent.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            out = stack.enter_context(os.fdopen(os.open(place, flags, 0o600), "wb", buffering=0))
        for chunk in source.content(member):
            found.update(chunk)
            view = memoryview(chunk)
            while out is not None and view:
                view = view[out.write(view) :]
    return found.hexdigest()


def _foreign(path: Path) -> BadArchive:
    return BadArchive(
        f"{path} is no checkpoint made by pymigrate; nothing was changed",
        hint="podman container restore -i reads those that podman made",
    )


def _damaged(path: Path, what: str, hint: str = "") -> BadArchive:
    return BadArchive(
        f"{path} is damaged: {what}; nothing was changed",
        hint=hint or "copy it again from where it was",
    )


def _hostile(path: Path, what: str) -> BadArchive:
    return BadArchive(
        f"{path} is not a sound checkpoint: {what}; nothing was changed",
        hint="use it only if you know where it comes from, and copy it again",
    )
