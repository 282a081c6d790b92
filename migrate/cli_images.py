"""The verb ``image``: import, export, bootstrap, ls, inspect, rm and prune; build: cli_build.py."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from pymigrate.migrate import output
from pymigrate.runtime import image_record
from pymigrate.runtime.bootstrap import SUITE, bootstrap
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.host import Host
from pymigrate.runtime.image_record import Image
from pymigrate.runtime.images import Store

_SHORT = 12
_AGE = re.compile(r"(\d{1,9})([smhd]?)")


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``image`` and its own verbs."""
    parser = verbs.add_parser(
        "image",
        help="import, build, list, export and remove images",
        epilog="example: pymigrate image bootstrap --include redis-server redis",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=type(parser))

    importing = actions.add_parser(
        "import",
        help="make an image of a root file system, or take one that others made",
        description="SOURCE is a root file system, an OCI layout, or what docker save wrote.",
        epilog="example: pymigrate image import rootfs.tar.zst web:1",
    )
    importing.add_argument(
        "source",
        metavar="SOURCE",
        help="a directory, or a tar (plain or compressed by gzip, xz, bzip2 or zstd); - is stdin",
    )
    importing.add_argument(
        "--ref", metavar="NAME", help="which image, if SOURCE is an archive of several"
    )
    importing.add_argument(
        "name",
        nargs="?",
        metavar="NAME[:TAG]",
        help="default: its name in SOURCE, or that of SOURCE",
    )
    importing.set_defaults(run=import_image)

    building = actions.add_parser(
        "build",
        help="make an image as a Containerfile says",
        description="RUN runs in containers of ours; nothing is downloaded by FROM or ADD.",
        epilog="example: pymigrate image build -t web:2 --build-arg VERSION=2 .",
    )
    building.add_argument("-f", "--file", metavar="FILE", help="the Containerfile; - is stdin")
    building.add_argument("-t", "--tag", metavar="NAME[:TAG]", help="what to call the image")
    building.add_argument(
        "--build-arg",
        action="append",
        default=[],
        metavar="K=V",
        help="set an ARG; without =V as it is in our environment",
    )
    building.add_argument("--target", metavar="STAGE", help="build up to this stage only")
    building.add_argument("--no-cache", action="store_true", help="do every step again")
    building.add_argument(
        "--net", "--network", default="bridge", metavar="MODE", help="of RUN, as for run"
    )
    building.add_argument("directory", metavar="DIR", help="where COPY and ADD take files from")
    building.set_defaults(run=build_image)

    making = actions.add_parser(
        "bootstrap",
        help="make an image of Debian from packages, by mmdebstrap",
        epilog="example: pymigrate image bootstrap --suite trixie --include nginx-light nginx",
    )
    making.add_argument("--suite", default=SUITE, help=f"which Debian (default: {SUITE})")
    making.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PACKAGE[,PACKAGE]",
        help="what to install beside the minimal system; may be repeated",
    )
    making.add_argument("name", metavar="NAME[:TAG]", help="the name of the image")
    making.set_defaults(run=bootstrap_image)

    listing = actions.add_parser(
        "ls", help="list the images", epilog="example: pymigrate image ls --json"
    )
    listing.set_defaults(run=list_images)

    inspecting = actions.add_parser(
        "inspect",
        help="print all about an image, as JSON",
        epilog="example: pymigrate image inspect redis",
    )
    inspecting.add_argument("name", metavar="IMAGE", help="its name or digest")
    inspecting.set_defaults(run=inspect_image)

    exporting = actions.add_parser(
        "export",
        help="write an image to a file that podman, skopeo and docker load",
        epilog="example: pymigrate image export web:1 -o web.tar",
    )
    exporting.add_argument("name", metavar="IMAGE", help="its name or digest")
    exporting.add_argument(
        "--format",
        choices=("oci", "docker"),
        default="oci",
        help="an OCI layout in a tar (default), or what docker load reads",
    )
    exporting.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where to; - is stdout"
    )
    exporting.set_defaults(run=export_image)

    pruning = actions.add_parser(
        "prune",
        help="remove images without a name, and layers that nothing uses",
        epilog="example: pymigrate image prune --older-than 1d",
    )
    pruning.add_argument(
        "-a", "--all", action="store_true", help="also images that no container is made of"
    )
    pruning.add_argument(
        "--older-than",
        default="1h",
        metavar="TIME",
        help="layers that came later stay (default: 1h), for a move may be about to use them",
    )
    pruning.set_defaults(run=prune_images)

    removing = actions.add_parser(
        "rm", help="remove images", epilog="example: pymigrate image rm redis web:1"
    )
    removing.add_argument("names", nargs="+", metavar="IMAGE", help="names or digests")
    removing.set_defaults(run=remove_images)


def import_image(arguments: argparse.Namespace) -> int:
    """Import a directory or a tar: a root file system, or an archive of an image."""
    from pymigrate.runtime import oci_import

    source: str = arguments.source
    suggested = _suggested_name(source)
    name: str = arguments.name or suggested
    if not name:
        raise UsageError(
            f"no name for an image can be made of {source!r}", hint="give one: SOURCE NAME[:TAG]"
        )
    reference = image_record.parse_reference(name)
    store = _store(arguments)
    output.progress(
        f"importing {source}" + (f" as {reference}" if arguments.name else ""), arguments
    )
    said = "the standard input" if source == "-" else source

    def packed(directory: Path) -> Image | None:
        if not oci_import.is_layout(directory):
            if arguments.ref:
                raise UsageError(f"--ref {arguments.ref}: {said} is no archive of images")
            return None
        return oci_import.import_layout(
            store,
            directory,
            reference=reference if arguments.name else None,
            fallback=suggested,
            wanted=arguments.ref,
            source=said,
        )

    if source == "-":
        # Unbuffered: a buffer's own loop of reads would not notice a signal between two of them.
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stream:
            image = store.import_stream(stream, reference, source=said, packed=packed)
    elif Path(source).is_dir():
        image = packed(Path(source)) or store.import_directory(Path(source), reference)
    else:
        image = store.import_tar(Path(source), reference, packed=packed)
    return _made(image, arguments)


def build_image(arguments: argparse.Namespace) -> int:
    """Build an image from a Containerfile."""
    from pymigrate.migrate import cli_build

    return _made(cli_build.build(arguments), arguments)


def export_image(arguments: argparse.Namespace) -> int:
    """Write an image to a file, which appears complete or not at all."""
    from pymigrate.runtime import oci_export

    store = _store(arguments)
    image = store.get(arguments.name)
    if arguments.output == "-":
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as stream:
            oci_export.write(store, image, stream, arguments.format)
        return 0
    path = Path(arguments.output)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    output.progress(f"exporting {image.reference or arguments.name} to {path}", arguments)
    try:
        with beside.open("xb", buffering=0) as stream:
            oci_export.write(store, image, stream, arguments.format)
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if arguments.json:
        output.emit({"image": image.reference, "file": str(path), "bytes": path.stat().st_size})
    else:
        output.say(f"{path}  {output.size(path.stat().st_size)}")
    return 0


def prune_images(arguments: argparse.Namespace) -> int:
    """Remove what nothing uses."""
    seconds = _age(arguments.older_than)
    pruned = _store(arguments).prune(unused=arguments.all, older_than=seconds)
    if arguments.json:
        images = [image_record.to_document(image) for image in pruned.images]
        output.emit({"images": images, "layers": list(pruned.layers)})
        return 0
    for image in pruned.images:
        output.say(image.reference or image.digest[:_SHORT])
    output.say(f"{len(pruned.images)} images and {len(pruned.layers)} layers removed")
    return 0


def _age(text: str) -> float:
    """Read a time such as ``90s``, ``1h`` or ``2d``, in seconds."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--older-than {text}: not a time; nothing was removed", hint="such as 1h or 2d"
        )
    return float(int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"])


def bootstrap_image(arguments: argparse.Namespace) -> int:
    """Make an image from packages."""
    packages = [name for names in arguments.include for name in names.split(",") if name]
    reference = image_record.parse_reference(arguments.name)
    output.progress(f"making {reference} from Debian {arguments.suite}'s packages", arguments)
    image = bootstrap(_store(arguments), reference, suite=arguments.suite, include=packages)
    return _made(image, arguments)


def list_images(arguments: argparse.Namespace) -> int:
    """Print a line for each name."""
    images = _store(arguments).ls()
    if arguments.json:
        output.emit([image_record.to_document(image) for image in images])
        return 0
    output.table(
        ("REFERENCE", "DIGEST", "CREATED", "SIZE"),
        [
            (
                image.reference or "<none>",
                image.digest[:_SHORT],
                image.config.created,
                output.size(image.size),
            )
            for image in images
        ],
    )
    return 0


def inspect_image(arguments: argparse.Namespace) -> int:
    """Print an image's document, with where its layers are."""
    store = _store(arguments)
    image = store.get(arguments.name)
    paths = [str(store.layer_path(digest)) for digest in image.layers]
    output.emit({**image_record.to_document(image), "layer_paths": paths})
    return 0


def remove_images(arguments: argparse.Namespace) -> int:
    """Remove names, one after the other; what an error stops is still there."""
    store = _store(arguments)
    removed = []
    for name in arguments.names:
        image = store.remove(name)
        removed.append(image_record.to_document(image))
        if not arguments.json:
            output.say(image.reference or image.digest)
    if arguments.json:
        output.emit(removed)
    return 0


def _suggested_name(source: str) -> str:
    if source == "-":
        return ""
    return image_record.suggested_name(str(Path(source).resolve()))


def _store(arguments: argparse.Namespace) -> Store:
    return Store(Host.open(arguments.root))


def _made(image: Image, arguments: argparse.Namespace) -> int:
    if arguments.json:
        output.emit(image_record.to_document(image))
    else:
        name = image.reference or "<none>"
        output.say(f"{name}  {image.digest[:_SHORT]}  {output.size(image.size)}")
    return 0
