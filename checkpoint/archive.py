"""A checkpoint as one file: podman's layout, so that checkpointctl reads it, and our manifest.

A tar, compressed by zstd or not, of these members in this order:

* ``checkpoint/``: an entry of its own, which checkpointctl looks for;
* ``pymigrate.json``: the manifest, with the size of each member that follows;
* ``checkpoint/NAME``: CRIU's images but for the next;
* ``config.dump``, ``spec.dump``, ``network.status``: what podman's tools show; see podman.py;
* ``rootfs-diff.tar``: the overlay's upper directory; ``deleted.files``: its whiteouts, as JSON;
* ``volumes/N.tar``: the Nth volume of the record, if it travels; ``ctr.log``: the output;
* ``checkpoint/pages-N.img``: the memory, each block of up to 512 KiB a zstd frame of its own;
* ``checkpoint/blocks-N.sha256``: the SHA-256 of each of these blocks, whose lengths are, among the
  images, in ``checkpoint/blocks-N.pages``; see block_table.py;
* ``pymigrate.sha256``: the SHA-256 of every member before it but the memory, as sha256sum(1) writes
  them;
* ``pymigrate.sig``: if it is signed, the signature of the member before it; see signing.py.

A restore may so begin without the memory, and read each page when it is wanted: see `lay_out` and
seekable.py. Encrypted ones (protection.py) are read from their beginning. Blocks are not all of one
length: a block is compressed while the container runs (archive_memory.py), and what its memory will
look like from its beginning is not known then.

Archives of before (formats 1 and 2 of the manifest) are read too. They have a SHA-256 of the memory
as a whole, and instead of both tables ``checkpoint/blocks-N.xxh3``, the XXH3 (128 bits, big-endian)
of each 512 KiB: signed ones are read from their beginning, for XXH3 withstands accidents only. The
oldest have no blocks at all.

Reading trusts nothing: only these names, only regular files, only sizes that the manifest has
announced; and whoever extracts uses nothing before the last member has confirmed the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from pymigrate.checkpoint import block_table, seekable, signing
from pymigrate.checkpoint.manifest import MAX_BYTES as MAX_MANIFEST
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.memory_map import is_page_file
from pymigrate.checkpoint.new_file import writing
from pymigrate.checkpoint.protection import NOBODY, Trust, unsealed
from pymigrate.runtime import compressed, digests
from pymigrate.runtime.errors import BadArchive, NoSpace, NotFound
from pymigrate.runtime.tree_format import Kind, Member, padding
from pymigrate.runtime.tree_source import Source
from pymigrate.runtime.values import dataclass

IMAGES = "checkpoint"
MANIFEST = "pymigrate.json"
SUMS = "pymigrate.sha256"
SIGNATURE = "pymigrate.sig"
FILES = "rootfs-diff.tar"
LOG = "ctr.log"

MAX_TOTAL = 1 << 42
"""Bytes that an archive may unpack to, whatever it says of itself."""

MAX_MEMBERS = 100_000
_SPARE = 64 << 20  # bytes to leave free on the disk that is unpacked to
_KNOWN = (
    r"checkpoint/[A-Za-z0-9_@:+-][A-Za-z0-9_@:+.-]{0,200}"
    r"|volumes/[0-9]{1,4}\.tar"
    r"|config\.dump|spec\.dump|network\.status|deleted\.files|rootfs-diff\.tar|ctr\.log"
)


def is_memory(name: str) -> bool:
    """Say whether a member is a file of pages."""
    return name.startswith(f"{IMAGES}/") and is_page_file(name.removeprefix(f"{IMAGES}/"))


@dataclass(frozen=True)
class LaidOut:
    """An archive that was unpacked without its memory; ``places`` say where that begins in it."""

    stream: BinaryIO
    file: seekable.Seekable
    sums: dict[str, str]
    places: dict[str, int]


@dataclass(frozen=True)
class Verified:
    """What was read to its end: the SHA-256 of each member, and the public key of who signed it.

    Of memory whose blocks are vouched for by themselves there is none.
    """

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

    @property
    def _in_blocks(self) -> frozenset[str]:
        """The files of pages whose blocks have a SHA-256 each."""
        members = self.manifest.members
        return frozenset(
            name for name in members if is_memory(name) and block_table.pages_of(name) in members
        )

    def extract(self, into: Path) -> dict[str, str]:
        """Unpack into an empty directory and verify; the caller removes it on any error.

        Returns the SHA-256 of each member, as `Verified` has them.

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
        return sum(size for name, size in members if is_memory(name))

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
            memory = _Blocks(self._in_blocks)
            while (member := source.next_member()) is not None:
                name = _name(self.path, member)
                if name == SUMS:
                    break
                again = name in sums or name in memory.taken
                if again or member.size != manifest.members.get(name):
                    raise _hostile(self.path, f"{name} is not what the manifest announces")
                if memory.is_vouched_for(name):
                    memory.take(source, member, name, into)
                else:
                    sums[name] = _take(source, member, into, memory.hearer(name))
            else:
                raise _damaged(self.path, "its checksums are missing")
            memory.compare()
            signer = self._compare(source, member, sums, without=memory.taken)
            if any(map(self._has_blocks, filter(is_memory, manifest.members))):
                self._check_table()
            # Up to the end of a compressed stream, where its own checksum is.
            if stream.read(1):
                raise _hostile(self.path, "something follows its end")
        return Verified(sums, signer)

    def _has_blocks(self, name: str) -> bool:
        return name in self._in_blocks or block_table.of_before(name) in self.manifest.members

    def _check_table(self) -> None:
        if self.is_encrypted:
            return  # nobody reads it by that
        with self.path.open("rb", buffering=0) as stream:
            if seekable.opened(stream.fileno()) is None:
                raise BadArchive("its table of frames is missing")

    def lay_out(self, into: Path) -> LaidOut | None:
        """Unpack and verify as `extract` does, all but the memory; None if that cannot be.

        So it is with encrypted ones, and of those of before with signed ones and without blocks.
        For the memory there are holes: see archive_pages.py.
        """
        memory = [name for name in self.manifest.members if is_memory(name)]
        is_old = not self._in_blocks.issuperset(memory)
        if self.is_encrypted or (self.is_signed and is_old):
            return None
        if not all(map(self._has_blocks, memory)):
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
            if not is_memory(name):
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
    block_table.check_announced(
        [name for name in manifest.members if is_memory(name)], manifest.members
    )
    sizes = manifest.members.values()
    if len(sizes) > MAX_MEMBERS or any(size < 0 for size in sizes) or sum(sizes) > MAX_TOTAL:
        raise _hostile(path, "it announces more than any checkpoint has")
    return manifest, digests.sha256(data).hexdigest()


def _name(path: Path, member: Member) -> str:
    name = member.name.decode("utf-8", "replace")
    if member.kind is not Kind.FILE or member.extents is not None:
        raise _hostile(path, f"{name[:100]!r} is a {member.kind.name.lower()}, not a plain file")
    if name != SUMS and not re.fullmatch(_KNOWN, name):
        raise _hostile(path, f"{name[:100]!r} is no member of a checkpoint")
    return name


Hearer = Callable[[bytes], object]


class _Blocks:
    """The memory in an archive that is read from its beginning, and what vouches for it."""

    def __init__(self, vouched_for: Collection[str]) -> None:
        self._vouched_for = vouched_for
        self._tables = {
            table: bytearray()
            for name in vouched_for
            for table in (block_table.pages_of(name), block_table.digests_of(name))
        }
        self._found: dict[str, bytes] = {}
        self.taken: set[str] = set()

    def is_vouched_for(self, name: str) -> bool:
        """Say whether a member is a file of pages that has tables."""
        return name in self._vouched_for

    def hearer(self, name: str) -> Hearer:
        """Say who is to hear what is in a member; the tables have been bounded before."""
        return self._tables[name].extend if name in self._tables else _nobody

    def take(self, source: Source, member: Member, name: str, into: Path | None) -> None:
        """Write a file of pages below `into`, if given. Raises BadArchive."""
        lengths = block_table.unpack(self._tables[block_table.pages_of(name)], member.size)
        found = block_table.Digesting(lengths)
        _write(source, member, into, found.update)
        self._found[block_table.digests_of(name)] = found.table
        self.taken.add(name)

    def compare(self) -> None:
        """Raise BadArchive if a block is not what its table says; the table may still be wrong."""
        for name, found in self._found.items():
            if found != self._tables[name]:
                raise BadArchive(f"a block of memory, or {name}, was altered")


def _nobody(_chunk: bytes) -> None:
    """Hear nothing."""


def _take(source: Source, member: Member, into: Path | None, hearer: Hearer = _nobody) -> str:
    """Write the member below `into`, if given; return its SHA-256."""
    found = digests.large()
    _write(source, member, into, found.update, hearer)
    return found.hexdigest()


def _write(source: Source, member: Member, into: Path | None, *hearers: Hearer) -> None:
    with ExitStack() as stack:
        out = None
        if into is not None:
            place = into / member.name.decode()
            place.parent.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            out = stack.enter_context(os.fdopen(os.open(place, flags, 0o600), "wb", buffering=0))
        for chunk in source.content(member):
            for hearer in hearers:
                hearer(chunk)
            view = memoryview(chunk)
            while out is not None and view:
                view = view[out.write(view) :]


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
