"""Write an image as one file that podman, skopeo and docker load; the same image, the same bytes.

Layers are not compressed: what zlib or zstd make of the same bytes depends on their version.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pymigrate.runtime import oci_documents as documents
from pymigrate.runtime import tree, tree_layer
from pymigrate.runtime.errors import Corrupted
from pymigrate.runtime.image_record import Image
from pymigrate.runtime.images import Store
from pymigrate.runtime.oci_documents import Descriptor
from pymigrate.runtime.tree_format import END, Kind, Member, encode, padding

FORMATS = ("oci", "docker")


@dataclass(frozen=True)
class _Layer:
    """A layer as it will be written: its tar's SHA-256 and length."""

    path: Path
    digest: str
    size: int


def write(store: Store, image: Image, stream: tree.Writable, form: str) -> None:
    """Write an image as an OCI layout ("oci") or as `docker save` does ("docker"), in a tar.

    Each layer is read twice: its length and its digest come before it.

    Raises:
        Corrupted: a layer was changed on this disk.
        HostError: a layer cannot be read.

    """
    layers = [_measured(store, digest) for digest in image.layers]
    architecture = documents.architectures(os.uname().machine)[0]
    config = documents.dump(
        documents.config_document(image.config, architecture, [each.digest for each in layers])
    )
    pieces = (
        _oci(image, layers, config, architecture)
        if form == "oci"
        else _docker(image, layers, config)
    )
    for piece in pieces:
        if isinstance(piece, bytes):
            _put(stream, piece)
            continue
        written = tree_layer.write(piece.path, stream)
        if written.digest != piece.digest:
            raise Corrupted(f"the image layer {piece.digest[:12]} changed while it was read")
        _put(stream, bytes(padding(piece.size)))


def _measured(store: Store, digest: str) -> _Layer:
    """Return a layer's digest and length, and make sure that it is what it was."""
    path = store.layer_path(digest)
    counted = _Counted()
    packed = tree_layer.write(path, counted)
    if packed.digest != digest:  # an image's marks of deletion are not overlayfs's
        store.write_layer(digest, tree.Nowhere())
    return _Layer(path, packed.digest, counted.size)


class _Counted:
    """A stream that only counts."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self.size += len(data)
        return len(data)


def _oci(
    image: Image, layers: list[_Layer], config: bytes, architecture: str
) -> Iterator[bytes | _Layer]:
    blobs: dict[str, bytes | _Layer] = {each.digest: each for each in layers}
    configured = _described(documents.CONFIG, config)
    manifest = documents.dump(
        {
            "schemaVersion": 2,
            "mediaType": documents.MANIFEST,
            "config": documents.descriptor_document(configured),
            "layers": [
                documents.descriptor_document(Descriptor(documents.LAYER, each.digest, each.size))
                for each in layers
            ],
        }
    )
    listed = _described(
        documents.MANIFEST, manifest, name=image.reference or "", architecture=architecture
    )
    blobs[configured.digest] = config
    blobs[listed.digest] = manifest
    index = {
        "schemaVersion": 2,
        "mediaType": documents.INDEX,
        "manifests": [documents.descriptor_document(listed)],
    }
    yield from _file("oci-layout", documents.dump(documents.LAYOUT))
    yield _directory("blobs")
    yield _directory("blobs/sha256")
    for digest in sorted(blobs):
        yield from _file(f"blobs/sha256/{digest}", blobs[digest])
    yield from _file("index.json", documents.dump(index))
    yield END


def _docker(image: Image, layers: list[_Layer], config: bytes) -> Iterator[bytes | _Layer]:
    digest = _described(documents.CONFIG, config).digest
    listed = {
        "Config": f"{digest}.json",
        "RepoTags": [image.reference] if image.reference else [],
        "Layers": [f"{each.digest}.tar" for each in layers],
    }
    for layer in {each.digest: each for each in layers}.values():
        yield from _file(f"{layer.digest}.tar", layer)
    yield from _file(f"{digest}.json", config)
    yield from _file("manifest.json", documents.dump([listed]))
    yield END


def _described(
    media_type: str, data: bytes, *, name: str = "", architecture: str = ""
) -> Descriptor:
    digest = hashlib.sha256(data).hexdigest()
    return Descriptor(media_type, digest, len(data), name, architecture, "linux")


def _file(name: str, content: bytes | _Layer) -> Iterator[bytes | _Layer]:
    size = len(content) if isinstance(content, bytes) else content.size
    yield encode(Member(name.encode(), Kind.FILE, 0o644, 0, 0, 0, size=size))
    yield content
    if isinstance(content, bytes):
        yield bytes(padding(size))


def _directory(name: str) -> bytes:
    return encode(Member(name.encode(), Kind.DIRECTORY, 0o755, 0, 0, 0))


def _put(stream: tree.Writable, data: bytes) -> None:
    while data:
        taken = stream.write(data)
        if taken is None:
            return
        data = data[taken:]
