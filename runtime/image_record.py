"""What an image is: its names, its layers and how its command is run by default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from pymigrate.runtime.digests import sha256
from pymigrate.runtime.errors import ImageError, UsageError
from pymigrate.runtime.values import asdict, dataclass, replace

_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
# distribution/reference's grammar: a registry's host and port may come first.
_NAME = re.compile(rf"(?:[a-zA-Z0-9.-]+:[0-9]+/)?{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ABBREVIATED = re.compile(r"[0-9a-f]{12,64}")
_MAX_NAME = 255
MAX_LAYERS = 500  # overlayfs: OVL_MAX_STACK
_LATER = ("stop_signal", "shell")  # not in the digest where empty: images without them came first


@dataclass(frozen=True)
class ImageConfig:
    """How containers of an image are run unless told otherwise; OCI image-spec's names."""

    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    created: str = ""
    stop_signal: str = ""
    shell: tuple[str, ...] = ()  # of a Containerfile's SHELL, for images built on this one


@dataclass(frozen=True)
class Image:
    """Layers, lowest first, by the SHA-256 of their canonical tar; ``size`` in bytes of content.

    ``reference`` is None for an image that has lost its name but is still in use.
    """

    reference: str | None
    digest: str
    layers: tuple[str, ...]
    config: ImageConfig
    size: int = 0


def make(reference: str | None, layers: tuple[str, ...], config: ImageConfig, size: int) -> Image:
    """Return an image with its digest: of layers and configuration, but not of the date."""
    timeless = {**asdict(replace(config, created="")), "layers": layers}
    timeless = {key: value for key, value in timeless.items() if value or key not in _LATER}
    text = json.dumps(timeless, sort_keys=True, separators=(",", ":"))
    return Image(reference, sha256(text.encode()).hexdigest(), layers, config, size)


def parse_reference(text: str) -> str:
    """Return ``name:tag`` for ``name[:tag]``; the tag is ``latest`` unless given.

    Raises:
        UsageError: it is no such name.

    """
    name, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        name, tag = text, "latest"
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name) or not _TAG.fullmatch(tag):
        raise UsageError(
            f"{text!r} is not a name for an image",
            hint="name[:tag] of lower-case letters and digits, joined by . _ - or /",
        )
    return f"{name}:{tag}"


def suggested_name(source: str) -> str:
    """Return a name for the image of a directory or file, made of the last part of its path."""
    base = source.rstrip("/").rpartition("/")[2].lower()
    base = re.sub(r"\.(tar(\.\w+)?|tgz|txz|tzst|tbz2?)$", "", base)
    return re.sub(r"[^a-z0-9]+", "-", base).strip("-")


def with_layers_once(layers: Sequence[str]) -> tuple[str, ...]:
    """Return the layers without those that are there again above, which hide them whole.

    overlayfs takes no directory twice.
    """
    return tuple(reversed(dict.fromkeys(reversed(layers))))


def is_digest(text: str) -> bool:
    """Return whether it is a SHA-256 in 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def is_abbreviated_digest(text: str) -> bool:
    """Return whether it can be the beginning of a digest: 12 digits or more."""
    return _ABBREVIATED.fullmatch(text) is not None


def to_document(image: Image) -> dict[str, object]:
    """Turn an image into what JSON can hold."""
    config = {**asdict(image.config), "labels": dict(image.config.labels)}
    return {**asdict(image), "config": config}


def from_document(document: object) -> Image:
    """Read an image from JSON that may come from anywhere.

    Raises:
        ImageError: a field is missing or impossible, or the digest is of another image.

    """
    fields = _object(document, "the image")
    config = _object(fields.get("config"), "config")
    labels = _object(config.get("labels", {}), "config: labels")
    reference = fields.get("reference")
    size = fields.get("size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _impossible("size")
    layers = _texts(fields, "layers")
    if not 0 < len(layers) <= MAX_LAYERS or not all(map(is_digest, layers)):
        raise _impossible("layers")
    if reference is not None:
        try:
            reference = parse_reference(_text(fields, "reference"))
        except UsageError as error:
            raise ImageError(f"the image's description: {error.message}") from error
    image = make(
        reference,
        layers,
        ImageConfig(
            env=_texts(config, "env"),
            cmd=_texts(config, "cmd"),
            entrypoint=_texts(config, "entrypoint"),
            working_dir=_text(config, "working_dir"),
            user=_text(config, "user"),
            labels=tuple((key, _text(labels, key)) for key in sorted(labels)),
            exposed_ports=_texts(config, "exposed_ports"),
            volumes=_texts(config, "volumes"),
            created=_text(config, "created"),
            stop_signal=_text({"stop_signal": "", **config}, "stop_signal"),
            shell=_texts({"shell": (), **config}, "shell"),
        ),
        size,
    )
    if fields.get("digest") != image.digest:
        raise _impossible("digest")
    return image


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _impossible(where)
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or "\0" in value:
        raise _impossible(name)
    return value


def _texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if not isinstance(value, list | tuple):
        raise _impossible(name)
    if not all(isinstance(each, str) and "\0" not in each for each in value):
        raise _impossible(name)
    return tuple(value)


def _impossible(what: str) -> ImageError:
    return ImageError(f"the image's description is damaged: {what}")
