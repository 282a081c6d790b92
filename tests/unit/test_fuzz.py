"""Anything at all where files of ours are expected: an error of ours, or a harmless reading."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pymigrate.checkpoint.archive import Archive
from pymigrate.migrate import journal
from pymigrate.runtime import oci_documents, tree, tree_layer
from pymigrate.runtime.errors import BadArchive, ImageError, MigrationError, PymigrateError

KEYS = (
    *("manifests", "config", "layers", "digest", "size", "mediaType", "Config", "Layers"),
    *("RepoTags", "rootfs", "diff_ids", "Env", "Cmd", "history", "platform", "x"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "event": st.sampled_from(("begin", "reach", "rolled-back", "x")) | JSON,
        "phase": st.integers(-2, 20) | JSON,
        "facts": JSON,
    },
)


@given(lines=st.lists(EVENTS | JSON, max_size=4), tail=st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_journal_is_read_or_refused(lines: list[object], tail: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "journal")
        path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + tail)
        with contextlib.suppress(MigrationError):
            history = journal.read(path)
            assert isinstance(history.settled, bool)
            assert isinstance(history.facts(), dict)


@given(data=st.binary(max_size=3000), packed=st.booleans())
@example(data=b"", packed=True)
@settings(max_examples=100, deadline=None)
def test_any_file_is_no_checkpoint(data: bytes, *, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "file")
        path.write_bytes(zstandard.ZstdCompressor().compress(data) if packed else data)
        with pytest.raises(BadArchive):
            Archive.open(path).verify()


@given(document=JSON)
@settings(max_examples=300, deadline=None)
def test_any_document_of_an_image_is_read_or_refused(document: object) -> None:
    readers = (
        oci_documents.read_index,
        oci_documents.read_manifest,
        oci_documents.read_docker_manifest,
        oci_documents.read_config,
    )
    for reader in readers:
        with contextlib.suppress(ImageError):
            reader(document, "the document")


PARTS = st.sampled_from(("a", "b", "..", ".", "link", ".wh.a", ".wh..", ".wh..wh..opq", ".wh.", ""))
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join) | st.sampled_from(("/etc", "/"))
KINDS = st.sampled_from(
    (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
)


@given(members=st.lists(st.tuples(NAMES, KINDS, NAMES), min_size=1, max_size=6))
@example(members=[("link", tarfile.SYMTYPE, "../../outside"), ("link/.wh.a", tarfile.REGTYPE, "")])
@example(members=[("link", tarfile.SYMTYPE, "../../outside"), ("link/a", tarfile.REGTYPE, "")])
@example(members=[("a", tarfile.LNKTYPE, "../../outside/a")])
@settings(max_examples=200, deadline=None)
def test_no_layer_of_an_image_touches_what_is_outside(
    members: list[tuple[str, bytes, str]],
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.mode = 0o755
            content = b"written" if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream.seek(0)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "outside").mkdir()
        (place / "outside/a").write_text("untouched")
        into = place / "layers" / "new"
        into.mkdir(parents=True)
        with contextlib.suppress(PymigrateError):
            tree_layer.read(stream, into, tree_layer.Below(()), limits=tree.Limits())
        assert ["layers", "outside"] == sorted(path.name for path in place.iterdir())
        assert ["a"] == [path.name for path in (place / "outside").iterdir()]
        assert "untouched" == (place / "outside/a").read_text()
        assert ["new"] == [path.name for path in (place / "layers").iterdir()]
