"""Import an OCI layout or an unpacked docker archive: every byte is verified before it is used.

What a manifest names is opened inside the directory only (openat2, RESOLVE_BENEATH) and must be a
plain file; documents are at most 4 MiB; a layer is kept when both its digest in the archive and
that of its unpacked tar (the "diff id" of the configuration) are right.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pymigrate.runtime import compressed, image_record, syscalls, tree, tree_layer
from pymigrate.runtime import oci_documents as documents
from pymigrate.runtime.errors import BadArchive, ImageError, UsageError
from pymigrate.runtime.image_record import Image
from pymigrate.runtime.images import LIMITS, Store
from pymigrate.runtime.oci_documents import Configuration, Descriptor

_MAX_DEPTH = 4  # an index may list an index, and so on
_NOTHING = "nothing was imported"


def is_layout(directory: Path) -> bool:
    """Tell whether a directory is an OCI layout or an unpacked docker archive."""
    names = {entry.name for entry in directory.iterdir()}
    return bool(names & {"oci-layout", "manifest.json"}) and not names & {"bin", "usr", "etc"}


def import_layout(
    store: Store,
    directory: Path,
    *,
    reference: str | None,
    fallback: str,
    wanted: str | None = None,
    source: str,
) -> Image:
    """Import one image; a name in use moves to it.

    Its name is ``reference``, or else what the archive calls it, or else ``fallback``. ``wanted``
    chooses one of several by its name in the archive. ``source`` names all of it in errors.

    Raises:
        ImageError: it is damaged, made to do harm, or for another kind of machine.
        NoSpace, HostError: it could not be unpacked; nothing is left behind.

    """
    try:
        if (directory / "oci-layout").exists():
            return _import_oci(store, _Blobs(directory, source), reference, fallback, wanted)
        return _import_docker(store, _Blobs(directory, source), reference, fallback, wanted)
    except BadArchive as error:
        raise ImageError(
            f"{source} cannot be used: {error.message}; {_NOTHING}", hint=error.hint
        ) from error


@dataclass(frozen=True)
class _Packed:
    """A layer in the archive; a docker archive tells neither digest nor size of the file."""

    path: str
    digest: str | None = None
    size: int | None = None


class _Blobs:
    """The files of a layout, of which nothing is believed."""

    def __init__(self, directory: Path, source: str) -> None:
        self._directory = directory
        self.source = source

    def document(self, path: str, digest: str | None = None, size: int | None = None) -> object:
        """Read a JSON document that is as its digest and size say."""
        with self.open(path) as stream:
            hashed = tree_layer.HashedStream(stream)
            data = b""
            while piece := hashed.read(documents.MAX_DOCUMENT + 1 - len(data)):
                data += piece
        if len(data) > documents.MAX_DOCUMENT:
            raise ImageError(f"{self.source}: {path} is too long; {_NOTHING}")
        if digest is not None and digest != hashed.digest:
            raise self.altered(path)
        if size is not None and size != len(data):
            raise self.altered(path)
        return documents.load(data, f"{self.source}: {path}")

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open a plain file below the directory, wherever symbolic links would like to lead."""
        with tree.opened(self._directory) as root:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                descriptor = syscalls.openat2(root, path, flags, 0, syscalls.RESOLVE_BENEATH)
            except OSError as error:
                leads_out = error.errno in (errno.EXDEV, errno.ELOOP)
                why = "leads out of it" if leads_out else "is not there"
                raise ImageError(f"{self.source}: {path} {why}; {_NOTHING}") from error
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ImageError(f"{self.source}: {path} is not a plain file; {_NOTHING}")
            yield stream

    def altered(self, path: str) -> ImageError:
        return ImageError(
            f"{self.source}: {path} is not what its digest says; {_NOTHING}",
            hint="it was damaged on its way: fetch it again",
        )


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def _import_oci(
    store: Store, blobs: _Blobs, reference: str | None, fallback: str, wanted: str | None
) -> Image:
    machine = os.uname().machine
    listed = documents.read_index(blobs.document("index.json"), f"{blobs.source}: index.json")
    chosen = documents.choose(listed, machine, wanted, blobs.source)
    name = chosen.name
    depth = 0
    while chosen.is_index:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ImageError(f"{blobs.source}: its indexes are nested too deeply; {_NOTHING}")
        listed = documents.read_index(_described(blobs, chosen), blobs.source)
        chosen = documents.choose(listed, machine, None, blobs.source)
    manifest = documents.read_manifest(_described(blobs, chosen), blobs.source)
    config = documents.read_config(_described(blobs, manifest.config), blobs.source)
    layers = [_Packed(_blob(each.digest), each.digest, each.size) for each in manifest.layers]
    return _import_layers(store, blobs, config, layers, reference or _name(name, fallback))


def _described(blobs: _Blobs, descriptor: Descriptor) -> object:
    return blobs.document(_blob(descriptor.digest), descriptor.digest, descriptor.size)


def _import_docker(
    store: Store, blobs: _Blobs, reference: str | None, fallback: str, wanted: str | None
) -> Image:
    listed = documents.read_docker_manifest(
        blobs.document("manifest.json"), f"{blobs.source}: manifest.json"
    )
    if wanted is not None:
        listed = tuple(each for each in listed if wanted in each.names)
    if len(listed) != 1:
        names = ", ".join(name for each in listed for name in each.names)
        raise ImageError(
            f"{blobs.source} has {len(listed)} such images; {_NOTHING}",
            hint=f"--ref NAME chooses one of: {names}" if names else "",
        )
    image = listed[0]
    # Its name is the digest as a rule; what the layers are is verified by what it says.
    digest = image.config.rpartition("/")[2].removesuffix(".json")
    document = blobs.document(image.config, digest if image_record.is_digest(digest) else None)
    config = documents.read_config(document, f"{blobs.source}: {image.config}")
    layers = [_Packed(path) for path in image.layers]
    name = image.names[0] if image.names else ""
    return _import_layers(store, blobs, config, layers, reference or _name(name, fallback))


def _name(found: str, fallback: str) -> str:
    """Return what to call an image: as it was called, if that is a name here."""
    for name in (found, f"{fallback}:{found}", fallback):
        # A layout's own name is often a tag alone.
        if name and (":" in name or name == fallback):
            try:
                return image_record.parse_reference(name)
            except UsageError:
                continue
    raise UsageError(
        "no name for the image can be made of what the archive says; nothing was imported",
        hint="give one: image import SOURCE NAME[:TAG]",
    )


def _import_layers(
    store: Store,
    blobs: _Blobs,
    config: Configuration,
    layers: Sequence[_Packed],
    reference: str,
) -> Image:
    able = documents.architectures(os.uname().machine)
    if config.architecture and config.architecture not in able:
        raise ImageError(
            f"{blobs.source} is for {config.architecture[:40]}, this machine is {able[0]}; "
            f"{_NOTHING}"
        )
    if len(layers) != len(config.diff_ids):
        raise ImageError(
            f"{blobs.source}: {len(layers)} layers, but {len(config.diff_ids)} in its "
            f"configuration; {_NOTHING}"
        )
    reference = image_record.parse_reference(reference)
    kept: list[str] = []
    size = 0
    left = LIMITS
    for packed, diff_id in zip(layers, config.diff_ids, strict=True):
        below = tree_layer.Below([store.layer_path(each) for each in kept])
        summary = store.add_layer(_unpacker(blobs, packed, diff_id, below, left))
        if summary.files == 0 and len(layers) > 1:
            continue  # it changes nothing, and overlayfs takes no directory twice
        kept.append(summary.digest)
        size += summary.bytes
        # The bound is the whole image's: many layers are no way around it.
        left = replace(
            left,
            max_bytes=left.max_bytes - summary.bytes,
            max_files=left.max_files - summary.files,
        )
    if not kept:
        raise ImageError(f"{blobs.source} is empty; {_NOTHING}")
    return store.name(reference, image_record.with_layers_once(kept), config.config, size)


def _unpacker(
    blobs: _Blobs,
    layer: _Packed,
    diff_id: str,
    below: tree_layer.Below,
    limits: tree.Limits,
) -> Callable[[Path], tree.Summary]:
    def unpack(into: Path) -> tree.Summary:
        with blobs.open(layer.path) as stream:
            packed = tree_layer.HashedStream(stream)
            summary, unpacked = tree_layer.read(
                compressed.plain(packed), into, below, limits=limits
            )
            while packed.read(1 << 20):
                pass  # what follows the compressed stream belongs to the digest
        if (
            layer.digest not in (None, packed.digest)
            or layer.size not in (None, packed.size)
            or unpacked != diff_id
        ):
            raise blobs.altered(layer.path)
        return summary

    return unpack
