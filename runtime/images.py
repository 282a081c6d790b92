"""The images of a host: layers by digest, and an index of names (image_index.py).

::

    ROOT/images/layers/DIGEST/     a layer: the unpacked tree, used as it is by overlayfs
    ROOT/images/tmp/RANDOM/        a layer being made, locked by its maker; swept when that is gone

A layer's digest is the SHA-256 of its canonical tar (`tree.write`). What is below layers/ is
complete and on the disk; it is never changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pymigrate.runtime import compressed, image_index, image_record, syscalls, tree
from pymigrate.runtime.errors import (
    BadArchive,
    Corrupted,
    HostError,
    ImageError,
    NotFound,
    WrongState,
)
from pymigrate.runtime.host import Host
from pymigrate.runtime.image_index import Index
from pymigrate.runtime.image_record import Image, ImageConfig
from pymigrate.runtime.lock import locked, try_lock
from pymigrate.runtime.values import dataclass, replace

LIMITS = tree.Limits(max_bytes=1 << 38, max_files=3_000_000)
"""The most that an image may unpack to: 256 GiB."""

PRUNE_SECONDS = 3600.0

_TAR_HINT = "give a directory with a root file system, or a tar of one (plain, gzip, xz or zstd)"


@dataclass(frozen=True)
class Pruned:
    """What `Store.prune` removed: images, and layers by digest."""

    images: tuple[Image, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Scratch:
    """A directory of the store for work in progress; ``lock`` is a descriptor that keeps it."""

    path: Path
    lock: int


class Store:
    """The image store of one host. Any number of processes may use it at a time."""

    def __init__(self, host: Host) -> None:
        """Nothing is touched until something is asked for."""
        self._host = host
        self._layers = host.images / "layers"
        self._temporary = host.images / "tmp"
        self._index = host.index

    # Making images

    def import_directory(
        self, path: Path, reference: str, config: ImageConfig | None = None
    ) -> Image:
        """Copy a root file system and name it; a name in use moves to the new image.

        What is mounted below the directory is left out.

        Raises:
            NotFound, ImageError: it is no directory, or not a root file system.
            NoSpace, HostError: it could not be copied; nothing is left behind.

        """
        reference = image_record.parse_reference(reference)
        if not path.is_dir():
            raise NotFound(f"there is no directory {path}", hint=_TAR_HINT)
        if self._host.root.resolve().is_relative_to(path.resolve()):
            raise ImageError(
                f"{path} contains {self._host.root}, where images are kept",
                hint="copy the wanted directories to another one, or keep the images elsewhere "
                "with --root",
            )
        _check_root(path, path)
        with self._staging() as staging:
            summary = tree.copy(path, staging)
            self._publish(staging, summary.digest)
        return self._name(reference, summary, config)

    def import_tar(
        self,
        path: Path,
        reference: str,
        config: ImageConfig | None = None,
        *,
        packed: Callable[[Path], Image | None] = lambda _: None,
    ) -> Image:
        """Unpack a tar of a root file system and name it; a name in use moves to the new image.

        ``packed`` is as in `import_stream`.

        Raises:
            NotFound, ImageError: it is no tar, not a root file system, or made to do harm.
            NoSpace, HostError: it could not be unpacked; nothing is left behind.

        """
        reference = image_record.parse_reference(reference)
        try:
            stream = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {path}", hint=_TAR_HINT) from error
        except OSError as error:
            raise ImageError(f"cannot read {path}: {error.strerror}") from error
        with stream:
            return self.import_stream(stream, reference, config, source=str(path), packed=packed)

    def import_stream(
        self,
        stream: tree.Readable,
        reference: str,
        config: ImageConfig | None = None,
        *,
        source: str,
        packed: Callable[[Path], Image | None] = lambda _: None,
    ) -> Image:
        """Do as `import_tar`, from an open stream; ``source`` names it in errors.

        ``packed`` is shown what was unpacked, and imports it if that is an archive of layers.
        """
        reference = image_record.parse_reference(reference)
        with self._staging() as staging:
            try:
                tree.read(compressed.plain(stream), staging, limits=LIMITS, devices=True)
            except BadArchive as error:
                raise ImageError(
                    f"{source} is not an image: {error.message}; nothing was imported",
                    hint=error.hint or _TAR_HINT,
                ) from error
            if (image := packed(staging)) is not None:
                return image
            _check_root(staging, source)
            # The archive may be written in any way: the layer's name comes from what it became.
            summary = tree.digest(staging)
            self._publish(staging, summary.digest)
        return self._name(reference, summary, config)

    def add_layer(self, make: Callable[[Path], tree.Summary]) -> tree.Summary:
        """Keep the layer that ``make`` makes in an empty directory; what it raises is raised.

        No image has it yet: `name` is to follow, or `prune` removes it some day.
        """
        with self._staging() as staging:
            summary = make(staging)
            self._publish(staging, summary.digest)
        return summary

    def name(
        self, reference: str | None, layers: tuple[str, ...], config: ImageConfig, size: int
    ) -> Image:
        """Make an image of layers that are here; a name in use moves to it.

        Raises:
            NotFound: a layer is not here.

        """
        from datetime import UTC, datetime

        created = config.created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        image = image_record.make(reference, layers, replace(config, created=created), size)
        with self.locked():
            for digest in layers:
                self.layer_path(digest)
            index = image_index.read(self._index)
            # The same again keeps its first date, so that its export stays the same.
            known = index.images.get(image.digest, replace(image, reference=None))
            images = {**index.images, image.digest: known}
            references = dict(index.references)
            replaced = references.get(reference) if reference is not None else None
            if reference is not None:
                references[reference] = image.digest
            dropped: tuple[str, ...] = ()
            if replaced is not None and replaced not in references.values():
                old = index.images[replaced]
                if not any(set(used) & set(old.layers) for _, used in self._in_use()):
                    del images[replaced]
                    dropped = old.layers
            image_index.write(self._index, Index(images, references))
            self._drop_layers(dropped, images)
        return replace(known, reference=reference)

    # Asking

    def get(self, text: str) -> Image:
        """Return an image by its name, its digest or the first 12 or more digits of that.

        Raises:
            NotFound: there is none.

        """
        return image_index.read(self._index).get(text)

    def ls(self) -> tuple[Image, ...]:
        """Return all images by name; one with two names is there twice; the nameless come last."""
        index = image_index.read(self._index)
        named = [
            replace(index.images[digest], reference=reference)
            for reference, digest in sorted(index.references.items())
        ]
        nameless = [
            index.images[digest]
            for digest in sorted(index.images)
            if digest not in index.references.values()
        ]
        return (*named, *nameless)

    def layer_path(self, digest: str) -> Path:
        """Return the directory of a layer.

        Raises:
            NotFound: the layer is not here.

        """
        path = self._layers / digest
        if not image_record.is_digest(digest) or not path.is_dir():
            raise NotFound(f"there is no image layer {digest[:64]}", hint="import the image again")
        return path

    def missing(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of the layers are not here."""
        return tuple(digest for digest in layers if not (self._layers / digest).is_dir())

    # Removing

    def remove(self, text: str) -> Image:
        """Remove a name, and with an image's last name the image and the layers it alone uses.

        Raises:
            NotFound: there is no such image.
            WrongState: a container is made of it.

        """
        with self.locked():
            image = self.get(text)
            index = image_index.read(self._index)
            references = dict(index.references)
            if image.reference is not None:
                del references[image.reference]
            if image.digest in references.values():
                image_index.write(self._index, Index(index.images, references))
                return image
            users = [name for name, used in self._in_use() if set(used) & set(image.layers)]
            if users:
                raise WrongState(
                    f"{image.reference or text} is in use by {', '.join(sorted(users))}; "
                    "it is still here",
                    hint="remove these containers first: pymigrate rm NAME",
                )
            images = {key: each for key, each in index.images.items() if key != image.digest}
            image_index.write(self._index, Index(images, references))
            self._drop_layers(image.layers, images)
            return image

    def prune(self, *, unused: bool = False, older_than: float = PRUNE_SECONDS) -> Pruned:
        """Remove images that have no name, with ``unused`` all that no container is made of, and
        layers that no image and no container has.

        Layers that came within the last ``older_than`` seconds stay, for a migration or an import
        may be about to use them.
        """  # noqa: D205 - one sentence
        with self.locked():
            index = image_index.read(self._index)
            in_use = {layer for _, used in self._in_use() for layer in used}
            names = set() if unused else set(index.references.values())
            images = {
                digest: image
                for digest, image in index.images.items()
                if digest in names or in_use.intersection(image.layers)
            }
            references = {key: value for key, value in index.references.items() if value in images}
            gone = tuple(image for digest, image in index.images.items() if digest not in images)
            if gone:
                image_index.write(self._index, Index(images, references))
            dropped = {layer for image in gone for layer in image.layers}
            latest = time.time() - older_than
            # The change time is that of the rename to where the layer is.
            dropped.update(
                path.name for path in self._layers.iterdir() if path.stat().st_ctime <= latest
            )
            removed = self._drop_layers(tuple(dropped), images)
            self._sweep()
        return Pruned(tuple(index.named(image) for image in gone), removed)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all images as they are for the block, for example until a container's record names
        the layers; waits for another process that does the same.
        """  # noqa: D205 - one sentence
        self._prepare()
        with locked(self._host.images):
            yield

    # Moving images between hosts

    def describe(self, text: str) -> dict[str, object]:
        """Return an image as a JSON document for another host's `adopt`. Raises as `get`."""
        return image_record.to_document(self.get(text))

    def adopt(self, document: object) -> Image:
        """Enter an image from another host, all of whose layers are here; may be repeated.

        A name that belongs to another image here stays with it.

        Raises:
            ImageError: the document is damaged.
            NotFound: a layer is not here.

        """
        image = image_record.from_document(document)
        with self.locked():
            for digest in self.missing(image.layers):
                self.layer_path(digest)
            index = image_index.read(self._index)
            images = {**index.images, image.digest: replace(image, reference=None)}
            references = dict(index.references)
            if image.reference is not None:
                references.setdefault(image.reference, image.digest)
            image_index.write(self._index, Index(images, references))
            return Index(images, references).named(images[image.digest])

    def write_layer(self, digest: str, stream: tree.Writable) -> tree.Summary:
        """Write a layer's canonical tar.

        Raises:
            NotFound: the layer is not here.
            Corrupted: it is not what its name says; what was written must be thrown away.

        """
        summary = tree.write(self.layer_path(digest), stream, layer=True)
        if summary.digest != digest:
            raise Corrupted(
                f"the image layer {digest[:12]} was changed on this host",
                hint="remove the image and import it again",
            )
        return summary

    def read_layer(
        self, digest: str, stream: tree.Readable, *, limits: tree.Limits = LIMITS
    ) -> tree.Summary:
        """Unpack a layer that another host wrote and keep it if it is the one asked for.

        Raises:
            BadArchive, Corrupted: it is not; nothing is left behind.
            NoSpace, HostError: it could not be unpacked; nothing is left behind.

        """
        with self._staging() as staging:
            summary = tree.read(stream, staging, limits=limits, devices=True, layer=True)
            if summary.digest != digest:
                raise Corrupted(f"the image layer {digest[:12]} arrived altered")
            self._publish(staging, digest)
        return summary

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """Give an empty directory on the disk of the images, removed at the end of the block.

        If its maker dies, it is removed by the next who wants one and finds it unlocked.
        """
        with self.locked():
            self._sweep()
            import tempfile  # of those who only look for layers nobody needs it

            path = Path(tempfile.mkdtemp(dir=self._temporary))
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield Scratch(path, descriptor)
        except BaseException as error:
            try:
                _remove_tree(path)
            except OSError as failure:
                error.add_note(f"{path} could not be removed: {failure.strerror}")
            raise
        finally:
            os.close(descriptor)
        _remove_tree(path)

    # Inside

    def _prepare(self) -> None:
        for directory in (self._host.images, self._layers, self._temporary):
            directory.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        with self.scratch() as scratch:
            yield scratch.path

    def _sweep(self) -> None:
        for path in self._temporary.iterdir():
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if try_lock(descriptor):
                    _remove_tree(path)
            finally:
                os.close(descriptor)

    def _publish(self, staging: Path, digest: str) -> None:
        """Move a finished layer to its place, when all of it is on the disk."""
        if (self._layers / digest).is_dir():
            return
        _sync_file_system(staging)
        try:
            staging.rename(self._layers / digest)
        except OSError as error:
            if (self._layers / digest).is_dir():  # another process was first
                return
            raise HostError(f"cannot keep the layer: {error.strerror}") from error
        _sync_directory(self._layers)

    def _name(self, reference: str, summary: tree.Summary, config: ImageConfig | None) -> Image:
        return self.name(reference, (summary.digest,), config or ImageConfig(), summary.bytes)

    def _in_use(self) -> list[tuple[str, list[str]]]:
        """Return each container's name and layers."""
        found = []
        for path in self._host.containers.glob("*/container.json"):
            try:
                layers = json.loads(path.read_bytes())["layers"]
                found.append((path.parent.name, list(map(str, layers))))
            except FileNotFoundError:
                continue  # removed just now
            except (ValueError, KeyError, TypeError) as error:
                raise HostError(
                    f"{path} is damaged, so which images are in use is not known",
                    hint=f"pymigrate rm -f {path.parent.name}",
                ) from error
        return found

    def _drop_layers(self, layers: tuple[str, ...], images: Mapping[str, Image]) -> tuple[str, ...]:
        """Remove those of the layers that no image and no container uses; return these."""
        kept = {layer for image in images.values() for layer in image.layers}
        kept.update(layer for _, used in self._in_use() for layer in used)
        removed = sorted(set(layers) - kept)
        for digest in removed:
            # By way of tmp/: a crash half-way must not leave half a layer under its name.
            import tempfile

            aside = Path(tempfile.mkdtemp(dir=self._temporary)) / digest
            with contextlib.suppress(FileNotFoundError):
                (self._layers / digest).rename(aside)
            _remove_tree(aside.parent)
        return tuple(removed)


def _check_root(path: Path, source: object) -> None:
    """Raise ImageError for what is certainly not a root file system."""
    names = {entry.name for entry in path.iterdir()}
    if not names:
        raise ImageError(f"{source} is not an image: it is empty; nothing was imported")
    packed = names & {"oci-layout", "manifest.json", "repositories"}
    if packed and not names & {"bin", "usr", "etc"}:
        raise ImageError(
            f"{source} is an archive of image layers, not a root file system; nothing was imported",
            hint="pymigrate image import takes OCI layouts and docker archives with manifest.json",
        )


def _remove_tree(path: Path) -> None:
    """Remove a tree if it is there."""
    with contextlib.suppress(FileNotFoundError):
        import shutil

        shutil.rmtree(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(path: Path) -> None:
    """Bring all of a new layer to the disk at once: fsync of each file would take a minute."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(descriptor)
    finally:
        os.close(descriptor)
