"""Inputs that are read to the end, made by what writes them: nothing here outlives its format."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from pymigrate.checkpoint import archive_writer, new_file
from pymigrate.checkpoint import packs as pack
from pymigrate.checkpoint.archive_writer import Compression
from pymigrate.checkpoint.chunking import Cut
from pymigrate.checkpoint.snapshot import Member, Snapshot
from pymigrate.migrate.journal import Journal
from pymigrate.migrate.phases import Phase
from pymigrate.runtime import spec, state, tree, tree_records
from pymigrate.runtime.errors import NotFound
from pymigrate.transport import frames as wire
from pymigrate.transport import messages as m
from pymigrate.transport import pages
from pymigrate.transport.frames import Flag, Frame, Kind
from tests.fakes.repositories import manifest

LOGS = Path(__file__).parents[1] / "unit" / "criu_logs"
BLOBS = 1000  # bytes of the blobs in the pack whose table is read


def _bodies() -> dict[Kind, list[bytes]]:
    record = json.dumps(state.record_to_document(manifest().record)).encode()
    settings = json.dumps(spec.to_document(manifest().spec)).encode()
    reserve = m.Reserve(
        migration_id="m1", name="web", record_json=record, spec_json=settings, layers=["ef" * 32]
    )
    requests = [
        m.hello("m1"),
        reserve,
        m.PutFiles(migration_id="m1", tree="upper"),
        m.PutLayer(migration_id="m1", digest="ef" * 32),
        m.Resume(migration_id="m1", frames=[b"x" * 60]),
    ]
    runs = [pages.Run(0x1000, 1, pages.Kind.CONTENT), pages.Run(0x4000, 2, pages.Kind.ZERO)]
    batch = pages.Batch(pages.Stage.FINAL, 7, pages.Runs.of(runs), memoryview(bytes(4096)))
    return {
        Kind.REQUEST: [m.pack_request(1, each) for each in requests],
        Kind.REPLY: [m.pack_reply(1, m.Resumed(already=True))],
        Kind.ERROR: [m.pack_error(1, NotFound("gone", hint="look"))],
        Kind.EVENT: [pages.news(pages.News.WANTED, inner=7, value=0x1000)],
        Kind.DATA: [pages.encode(batch)],
        Kind.END: [b""],
        Kind.PING: [b""],
    }


def messages() -> list[bytes]:
    return [body for bodies in _bodies().values() for body in bodies if body]


def frames() -> list[bytes]:
    whole = [Frame(kind, body) for kind, bodies in _bodies().items() for body in bodies]
    return [*map(wire.encode, whole), wire.encode(Frame(Kind.END, b"", Flag.ABORTED))]


def _in_directory(make: Callable[[Path], list[bytes]]) -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        return make(Path(directory))


def archives() -> list[bytes]:
    def make(directory: Path) -> list[bytes]:
        members = {}
        for name, data in (
            ("checkpoint/inventory.img", b"inventory"),
            ("checkpoint/pages-1.img", bytes(8192)),
            ("rootfs-diff.tar", b""),
            ("config.dump", b"{}"),
        ):
            members[name] = directory / name.replace("/", "_")
            members[name].write_bytes(data)
        made = []
        for text in ("none", "zstd"):
            path = directory / f"file-{text}"
            with new_file.target(path) as target:
                archive_writer.write(members, manifest(), target.stream, Compression.parse(text))
                target.publish()
            made.append(path.read_bytes())
        return made

    return _in_directory(make)


def blocks() -> list[bytes]:
    return [b"\x01\x80", b"\x80", b"\x01\x02\x03", b"\x80\x80\x01"]


def keys() -> list[bytes]:
    cost = {"n": 2, "r": 1, "p": 1}  # so that a second has more than ten of them
    wrapped: list[object] = [
        {"kind": "plain", "key": "00" * 32},
        {"kind": "scrypt", **cost, "salt": "00", "wrapped": "00" * 60},
    ]
    return [json.dumps(each).encode() for each in wrapped]


def journals() -> list[bytes]:
    def make(directory: Path) -> list[bytes]:
        path = directory / "m1" / "journal"
        with Journal.create(path) as journal:
            journal.note(role="target", name="web")
            journal.begin(Phase.RESERVED, made_volumes=[])
            journal.reach(Phase.RESERVED)
            journal.roll_back(cause="x")
        whole = path.read_bytes()
        return [whole, whole[:-7]]

    return _in_directory(make)


def documents() -> list[bytes]:
    made = manifest()
    return [
        made.to_json(),
        json.dumps(state.record_to_document(made.record)).encode(),
        json.dumps(state.state_to_document(state.CREATED)).encode(),
        json.dumps(spec.to_document(made.spec)).encode(),
    ]


def _tar(*members: tuple[str, bytes, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, target, 0o755
            content = b"content" if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def layers() -> list[bytes]:
    plain = ("d", tarfile.DIRTYPE, ""), ("d/file", tarfile.REGTYPE, "")
    return [
        _tar(*plain, ("d/.wh.gone", tarfile.REGTYPE, "")),
        _tar(*plain, ("link", tarfile.SYMTYPE, "../../outside"), ("link/x", tarfile.REGTYPE, "")),
        _tar(*plain, ("hard", tarfile.LNKTYPE, "d/file"), ("ü" * 120, tarfile.FIFOTYPE, "")),
    ]


def trees() -> list[bytes]:
    def make(directory: Path) -> list[bytes]:
        root = directory / "root"
        (root / "d").mkdir(parents=True)
        (root / "d/file").write_bytes(b"content")
        (root / "hard").hardlink_to(root / "d/file")
        (root / "link").symlink_to("d/file")
        with (root / "holes").open("wb") as file:
            file.seek(1 << 16)
            file.write(b"x" * 4096)
        out = io.BytesIO()
        tree.write(root, out)
        return [out.getvalue()]

    return [*_in_directory(make), *layers()]


def changes() -> list[bytes]:
    r = tree_records
    whole: list[tree_records.Record] = [
        r.Header(b".stash"),
        r.Remove(b"link"),
        r.MakeFile(b"new"),
        r.Write(0, memoryview(b"content")),
        r.Truncate(100),
        r.Dress(b"new", 0o644, 0, 0, 1, ()),
        r.Link(b"here/other", b"here/file"),
        r.End(),
    ]
    return [b"".join(bytes(part) for record in whole for part in r.encode(record))]


def packs() -> list[bytes]:
    counts = struct.pack("<II", 1, 1)
    blobs = struct.pack("<II", BLOBS, 2 * BLOBS)
    table = counts + blobs + bytes(16) + struct.pack("<III", 0, 0, 10)
    return [table, pack.compress(table * 9, pack.compressor()), pack.header(pack.Kind.DATA)]


def snapshots() -> list[bytes]:
    member = Member("config.dump", 2, Cut.CONTENT, 0, bytes(16))
    return [Snapshot("", "2026-01-02T03:04:05Z", "alpha", manifest(), (member,)).to_json()]


def images() -> list[bytes]:
    digest = "sha256:" + "ab" * 32
    descriptor = {"mediaType": "application/x", "digest": digest, "size": 3}
    documents: list[object] = [
        {"schemaVersion": 2, "manifests": [{**descriptor, "platform": {"os": "linux"}}]},
        {"schemaVersion": 2, "config": descriptor, "layers": [descriptor]},
        [{"Config": "a.json", "RepoTags": ["web:1"], "Layers": ["a/layer.tar"]}],
        {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Env": ["A=b"]},
         "rootfs": {"type": "layers", "diff_ids": [digest]}},
    ]  # fmt: skip
    text = 'FROM debian AS a\nARG X=1\nRUN ["sh", "-c", "x"]\nCOPY --from=a ${X:-y} /b\n'
    return [*(json.dumps(each).encode() for each in documents), text.encode()]


def criu_logs() -> list[bytes]:
    return [path.read_bytes() for path in sorted(LOGS.glob("*.log"))[::8]]
