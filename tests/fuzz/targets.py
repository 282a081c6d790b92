"""What reads input that others made: each target takes any bytes and ends, or raises our errors.

A target is a function of the bytes and of a `Place` to put them; its seeds are inputs that it
reads to the end. What is checked with a CRC, a digest or a seal would stop a fuzzer at the door:
such targets are given what is behind the door, and put it in themselves.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pymigrate.checkpoint import diagnosis, packs, protection
from pymigrate.checkpoint.archive import Archive
from pymigrate.checkpoint.archive_pages import FromArchive
from pymigrate.checkpoint.images import PAGE
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.sealing import Keys
from pymigrate.checkpoint.snapshot import Snapshot
from pymigrate.migrate import incoming, journal
from pymigrate.runtime import containerfile, oci_documents, spec, state, tree, tree_apply
from pymigrate.runtime import tree_layer as layers
from pymigrate.runtime.errors import PymigrateError
from pymigrate.transport import compression, frames, messages, pages
from pymigrate.transport.frames import Decoder, Frame
from tests.fakes import old_archives
from tests.fakes.repositories import manifest
from tests.fuzz import seeds

LIMITS = tree.Limits(max_bytes=1 << 20, max_files=1000)
UNTOUCHED = "untouched"


@dataclass(frozen=True)
class Place:
    """A directory ``into`` to unpack into, which is empty, and what lies around it."""

    top: Path

    @property
    def into(self) -> Path:
        """Where a target may make files."""
        return self.top / "inner" / "into"

    def file(self, data: bytes) -> Path:
        """Write the input down."""
        path = self.top / "given" / "file"
        path.write_bytes(data)
        return path

    def check(self) -> None:
        """Fail if something was made, changed or removed around it."""
        assert sorted(path.name for path in self.top.iterdir()) == ["given", "inner", "outside"]
        assert [path.name for path in (self.top / "inner").iterdir()] in ([], ["into"])
        outside = self.top / "outside"
        assert [path.name for path in outside.iterdir()] == ["file"]
        assert (outside / "file").read_text() == UNTOUCHED
        assert (outside / "file").stat().st_nlink == 1


@contextmanager
def place() -> Iterator[Place]:
    """Make one; it is checked in the end."""
    top = Path(tempfile.mkdtemp(prefix="pymigrate-fuzz-"))
    try:
        for name in ("given", "inner/into", "outside"):
            (top / name).mkdir(parents=True)
        (top / "outside/file").write_text(UNTOUCHED)
        made = Place(top)
        yield made
        made.check()
    finally:
        shutil.rmtree(top)


@dataclass(frozen=True)
class Target:
    """One of them, with inputs to begin with."""

    read: Callable[[bytes, Place], None]
    seeds: Callable[[], list[bytes]]


def run(name: str, data: bytes) -> None:
    """Give a target an input: it returns, or this fails."""
    with place() as where, suppress(PymigrateError):
        TARGETS[name].read(data, where)


def _frames(data: bytes, _: Place) -> None:
    for frame in Decoder().feed(data):
        _payload(frame)


def _payload(frame: Frame) -> None:
    match frame.kind:
        case frames.Kind.REQUEST:
            messages.unpack_request(frame.payload)
        case frames.Kind.REPLY:
            messages.unpack_reply(frame.payload)
        case frames.Kind.ERROR:
            messages.unpack_error(frame.payload)
        case frames.Kind.EVENT:
            pages.parse_news(frame.payload)
        case frames.Kind.DATA if frame.flags & frames.Flag.ZSTD:
            pages.decode(compression.decompress(frame.payload, frames.CHUNK_SIZE))
        case frames.Kind.DATA:
            pages.decode(frame.payload)
        case _:
            pass


def _messages(data: bytes, place: Place) -> None:
    """Read a payload as each kind there is; then a reservation as the agent does."""
    for kind in frames.Kind:
        for flag in (frames.Flag.NONE, frames.Flag.ZSTD):
            with suppress(PymigrateError):
                _payload(Frame(kind, data, flag))
    _, request = messages.unpack_request(data)
    if isinstance(request, messages.Reserve):
        state.record_from_document(incoming.parse_json(request.record_json, "record"))
        spec.parse(incoming.parse_json(request.spec_json, "spec"))


def _archive(data: bytes, place: Place) -> None:
    path = place.file(data)
    with suppress(PymigrateError):
        Archive.open(path).verify()
    with suppress(PymigrateError):
        laid = Archive.open(path).lay_out(place.into)
        if laid is not None:
            laid.stream.close()
    shutil.rmtree(place.into)
    place.into.mkdir()
    Archive.open(path).extract(place.into)


def _blocks(data: bytes, place: Place) -> None:
    """Read an archive whose table of blocks is what was given; all its checksums are right."""
    table = data[:64]
    lengths = [pages * PAGE for pages in table]
    memory = bytes(min(sum(lengths), 1 << 20))
    digests = b"".join(hashlib.sha256(bytes(length)).digest() for length in lengths)
    contents = {
        "checkpoint/blocks-1.pages": table,
        "checkpoint/pages-1.img": memory,
        "checkpoint/blocks-1.sha256": digests,
    }
    path = place.file(b"")
    old_archives.write_contents(path, contents, manifest(), None)
    with suppress(PymigrateError):
        Archive.open(path).verify()
    skeleton = FromArchive(Archive.open(path)).lay_out(place.into)
    assert skeleton is not None
    with suppress(PymigrateError):
        skeleton.complete()
        assert memory == (place.into / "checkpoint/pages-1.img").read_bytes()
    skeleton.close()


def _keys(data: bytes, _: Place) -> None:
    """Unwrap the keys of a repository, or of an encrypted checkpoint."""
    document = incoming.parse_json(data, "key")
    for secret in (None, b"secret"):
        with suppress(PymigrateError):
            Keys.from_document(document, secret)
    header = json.dumps({"key": document, "name": "00" * 16}).encode()
    for text in (header, data):
        file = protection.MAGIC + len(text).to_bytes(4, "big") + text
        with suppress(PymigrateError):
            protection.unsealed(io.BytesIO(file), b"secret").read(1)


def _journal(data: bytes, place: Place) -> None:
    path = place.file(data)
    history = journal.read(path)
    assert isinstance(history.settled, bool)
    assert isinstance(history.facts(), dict)
    with journal.Journal.open_existing(path) as opened:
        assert opened.history == history


def _container(data: bytes, _: Place) -> None:
    with suppress(PymigrateError):
        Manifest.from_json(data)
    document = incoming.parse_json(data, "document")
    for read in (state.record_from_document, state.state_from_document, spec.parse):
        with suppress(PymigrateError):
            read(document)


def _layer(data: bytes, place: Place) -> None:
    layers.read(io.BytesIO(data), place.into, layers.Below(()), limits=LIMITS)


def _tree(data: bytes, place: Place) -> None:
    tree.read(io.BytesIO(data), place.into, limits=LIMITS, overlay=True, devices=True)


def _changes(data: bytes, place: Place) -> None:
    (place.into / "here").mkdir()
    (place.into / "here/file").write_bytes(b"content")
    (place.into / "link").symlink_to("../../outside")
    tree_apply.apply(io.BytesIO(data), place.into, limits=LIMITS, overlay=True, devices=True)


KEYS = Keys(bytes(32))  # those of a repository that is not encrypted are no secret
PACK = bytes(16)


def _pack(data: bytes, _: Place) -> None:
    """Read a pack of which the table, or the only blob, is what was given."""
    kind = packs.Kind.DATA
    sealer = packs.sealer(KEYS, PACK, kind)
    with suppress(PymigrateError):
        packs.open_blob(sealer.seal(1, data), 0, sealer)
    with suppress(PymigrateError):
        packs.parse_header(data[: packs.HEADER.size])
    with suppress(PymigrateError):
        packs.table_size(data[-packs.TRAILER.size :], len(data))
    for table in (data, packs.compress(data, packs.compressor())):
        sealed = sealer.seal(0, table)
        size = packs.HEADER.size + seeds.BLOBS + len(sealed) + packs.TRAILER.size
        with suppress(PymigrateError):
            packs.parse_table(sealed, size, kind, sealer)


def _snapshot(data: bytes, _: Place) -> None:
    Snapshot.from_json("ab" * 16, data)


def _image(data: bytes, _: Place) -> None:
    with suppress(PymigrateError):
        containerfile.parse(data.decode(errors="surrogateescape"))
    document = oci_documents.load(data, "the document")
    for read in (
        oci_documents.read_index,
        oci_documents.read_manifest,
        oci_documents.read_docker_manifest,
        oci_documents.read_config,
    ):
        with suppress(PymigrateError):
            read(document, "the document")


def _criu_log(data: bytes, place: Place) -> None:
    found = diagnosis.explain_file(place.file(data))
    assert "\x1b" not in found.sentence("it failed") + found.remedy


TARGETS: Mapping[str, Target] = {
    "frames": Target(_frames, seeds.frames),
    "messages": Target(_messages, seeds.messages),
    "archive": Target(_archive, seeds.archives),
    "blocks": Target(_blocks, seeds.blocks),
    "keys": Target(_keys, seeds.keys),
    "journal": Target(_journal, seeds.journals),
    "container": Target(_container, seeds.documents),
    "layer": Target(_layer, seeds.layers),
    "tree": Target(_tree, seeds.trees),
    "changes": Target(_changes, seeds.changes),
    "pack": Target(_pack, seeds.packs),
    "snapshot": Target(_snapshot, seeds.snapshots),
    "image": Target(_image, seeds.images),
    "criu-log": Target(_criu_log, seeds.criu_logs),
}
