"""The JSON documents of OCI images and docker archives, read from whoever wrote them, and written.

Source of names and rules: github.com/opencontainers/image-spec 1.1 (image-index.md, manifest.md,
config.md, media-types.md). No file is touched here.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pymigrate.runtime.errors import ImageError
from pymigrate.runtime.image_record import MAX_LAYERS, ImageConfig, is_digest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
LAYOUT = {"imageLayoutVersion": "1.0.0"}
MAX_DOCUMENT = 4 << 20  # bytes, as registries bound manifests
_MAX_BLOB = 1 << 40
_MAX_ENTRIES = 1000
_CONTAINERD_NAME = "io.containerd.image.name"  # the whole name; docker save writes it
_INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_CONFIGS = (CONFIG, "application/vnd.docker.container.image.v1+json")
_LAYERS = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(diff|foreign\.diff)\.tar(\.gzip|\.zstd)?)"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
# Go's names of architectures, the best first where a machine runs programs of several.
_ARCHITECTURES = {
    "x86_64": ("amd64", "386"),
    "i686": ("386",),
    "aarch64": ("arm64", "arm"),
    "armv7l": ("arm",),
    "armv6l": ("arm",),
    "ppc64le": ("ppc64le",),
    "riscv64": ("riscv64",),
    "s390x": ("s390x",),
}


@dataclass(frozen=True)
class Descriptor:
    """A blob: what it is, its SHA-256 in hexadecimal digits and its size in bytes."""

    media_type: str
    digest: str
    size: int
    name: str = ""  # what it is called, if the index says so
    architecture: str = ""  # "" is not told
    system: str = ""

    @property
    def is_index(self) -> bool:
        """Whether it lists further manifests."""
        return self.media_type in _INDEXES


@dataclass(frozen=True)
class Manifest:
    """One image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class PackedImage:
    """One image of a docker archive; paths are relative to its top."""

    names: tuple[str, ...]
    config: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Configuration:
    """What an image's configuration says: how it is run, and what its layers unpack to."""

    config: ImageConfig
    architecture: str
    diff_ids: tuple[str, ...]


def architectures(machine: str) -> tuple[str, ...]:
    """Return what this kind of machine (uname -m) runs, the best first."""
    return _ARCHITECTURES.get(machine, (machine,))


def load(data: bytes, what: str) -> object:
    """Read JSON; ImageError where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON") from error


def read_index(document: object, what: str) -> tuple[Descriptor, ...]:
    """Return the manifests that an index lists."""
    entries = _list(_object(document, what).get("manifests"), what)
    found = tuple(_descriptor(entry, what) for entry in entries)
    if not found:
        raise ImageError(f"{what} lists no image")
    return found


def choose(
    descriptors: Sequence[Descriptor], machine: str, wanted: str | None, what: str
) -> Descriptor:
    """Return the one image of an index that is meant: of this name, for this machine.

    Raises:
        ImageError: none is, or more than one.

    """
    images = [each for each in descriptors if each.is_index or each.media_type in _MANIFESTS]
    names = sorted({each.name for each in images if each.name})
    if wanted is not None:
        images = [each for each in images if wanted in (each.name, each.digest)]
        if not images:
            raise ImageError(f"{what} has no image {wanted!r}", hint=_list_of(names))
    elif len(names) > 1:
        raise ImageError(f"{what} has {len(names)} images; none was chosen", hint=_list_of(names))
    able = architectures(machine)
    fit = [each for each in images if _fits(each, able)]
    if not fit:
        kinds = sorted({each.architecture or "?" for each in images})
        raise ImageError(
            f"{what} has no image for this machine ({able[0]}), but for {', '.join(kinds) or '?'}"
        )
    known = {name: index for index, name in enumerate(able)}
    # Stable, so of several for one kind of machine (variants of arm) the first is taken.
    return min(fit, key=lambda each: known.get(each.architecture, 0))


def _fits(descriptor: Descriptor, able: Sequence[str]) -> bool:
    return descriptor.system in ("", "linux") and descriptor.architecture in ("", *able)


def _list_of(names: Sequence[str]) -> str:
    return f"--ref NAME chooses one of: {', '.join(names)}" if names else "it names none"


def read_manifest(document: object, what: str) -> Manifest:
    """Return a manifest; ImageError if it is not one of an image."""
    fields = _object(document, what)
    config = _descriptor(fields.get("config"), what)
    layers = tuple(_descriptor(entry, what) for entry in _list(fields.get("layers"), what))
    if config.media_type not in _CONFIGS:
        raise ImageError(f"{what} is no image of a container, but {config.media_type[:80]!r}")
    for layer in layers:
        if not _LAYERS.fullmatch(layer.media_type):
            raise ImageError(f"{what} has a layer of unknown type {layer.media_type[:80]!r}")
    return Manifest(config, layers)


def read_docker_manifest(document: object, what: str) -> tuple[PackedImage, ...]:
    """Return the images of a docker archive's manifest.json."""
    found = []
    for entry in _list(document, what):
        fields = _object(entry, what)
        found.append(
            PackedImage(
                names=tuple(_text(name, what) for name in _list(fields.get("RepoTags"), what)),
                config=_path(fields.get("Config"), what),
                layers=tuple(_path(path, what) for path in _list(fields.get("Layers"), what)),
            )
        )
    if not found:
        raise ImageError(f"{what} lists no image")
    return tuple(found)


def read_config(document: object, what: str) -> Configuration:
    """Return an image's configuration; what is missing in it is as in image-spec's config.md."""
    fields = _object(document, what)
    running = _object(fields.get("config") or {}, what)
    root = _object(fields.get("rootfs") or {}, what)
    system = _text(fields.get("os") or "linux", what)
    if system != "linux":
        raise ImageError(f"{what}: is for {system[:40]}, not for Linux")
    diff_ids = tuple(_digest(each, what) for each in _list(root.get("diff_ids"), what))
    if not 0 < len(diff_ids) <= MAX_LAYERS:
        raise ImageError(f"{what}: has {len(diff_ids)} layers; 1 to {MAX_LAYERS} can be used")
    labels = _object(running.get("Labels") or {}, what)
    created = fields.get("created")
    env = _texts(running.get("Env"), what)
    config = ImageConfig(
        env=tuple(each for each in env if each.find("=") > 0),
        cmd=_texts(running.get("Cmd"), what),
        entrypoint=_texts(running.get("Entrypoint"), what),
        working_dir=posixpath.join("/", _text(running.get("WorkingDir") or "", what)) or "/",
        user=_text(running.get("User") or "", what),
        labels=tuple(sorted((key, _text(value, what)) for key, value in labels.items())),
        exposed_ports=tuple(sorted(_object(running.get("ExposedPorts") or {}, what))),
        volumes=tuple(sorted(_object(running.get("Volumes") or {}, what))),
        created=created if isinstance(created, str) and _TIME.fullmatch(created) else "",
        stop_signal=_text(running.get("StopSignal") or "", what),
        shell=_texts(running.get("Shell"), what),
    )
    return Configuration(config, _text(fields.get("architecture") or "", what), diff_ids)


def config_document(
    config: ImageConfig, architecture: str, diff_ids: Sequence[str]
) -> dict[str, object]:
    """Return the configuration that `read_config` reads as the same."""
    running = {
        "Env": list(config.env),
        "Cmd": list(config.cmd),
        "Entrypoint": list(config.entrypoint),
        "WorkingDir": config.working_dir,
        "User": config.user,
        "Labels": dict(config.labels),
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Volumes": {path: {} for path in config.volumes},
        "StopSignal": config.stop_signal,
        "Shell": list(config.shell),
    }
    created = config.created or "1970-01-01T00:00:00Z"
    return {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {key: value for key, value in running.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in diff_ids]},
        # docker's older formats count one entry for each layer.
        "history": [{"created": created, "created_by": "pymigrate"} for _ in diff_ids],
    }


def dump(document: object) -> bytes:
    """Write JSON so that the same document has the same bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def descriptor_document(descriptor: Descriptor) -> dict[str, object]:
    """Return what `read_index` and `read_manifest` read as the same."""
    document: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": f"sha256:{descriptor.digest}",
        "size": descriptor.size,
    }
    if descriptor.architecture:
        document["platform"] = {"architecture": descriptor.architecture, "os": "linux"}
    if descriptor.name:
        document["annotations"] = {REF_NAME: descriptor.name}
    return document


def _descriptor(value: object, what: str) -> Descriptor:
    fields = _object(value, what)
    annotations = _object(fields.get("annotations") or {}, what)
    platform = _object(fields.get("platform") or {}, what)
    size = fields.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_BLOB:
        raise ImageError(f"{what}: a blob of impossible size")
    name = annotations.get(_CONTAINERD_NAME) or annotations.get(REF_NAME) or ""
    return Descriptor(
        media_type=_text(fields.get("mediaType") or "", what),
        digest=_digest(fields.get("digest"), what),
        size=size,
        name=_text(name, what),
        architecture=_text(platform.get("architecture") or "", what),
        system=_text(platform.get("os") or "", what),
    )


def _digest(value: object, what: str) -> str:
    algorithm, _, digest = _text(value, what).partition(":")
    if algorithm != "sha256" or not is_digest(digest):
        raise ImageError(f"{what}: a digest that is no SHA-256")
    return digest


def _path(value: object, what: str) -> str:
    path = _text(value, what)
    if not path or path.startswith("/") or ".." in path.split("/") or len(path) > 4095:
        raise ImageError(f"{what}: the path {path[:80]!r} leads out of the archive")
    return path


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ImageError(f"{what} is damaged")
    return value


def _list(value: object, what: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
        raise ImageError(f"{what} is damaged")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ImageError(f"{what} is damaged")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    return tuple(_text(each, what) for each in _list(value, what))
