"""CRIU's images on their way: some fifty small files, and pages; sent flat, for clients wait.

Their names and sizes are in the request, which is checked before anything is made of it (see
messages.py); in the stream are their bytes alone. A tar of them took 15 to 25 ms of each blackout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pymigrate.checkpoint.requests import DUMP_LOG
from pymigrate.runtime import tree
from pymigrate.runtime.errors import BadArchive, HostError
from pymigrate.transport.rpc import Writer

CHUNK = 1 << 20


def listed(images: Path) -> dict[str, int]:
    """Return the sizes of the files of a dump that a restore needs, by name."""
    with os.scandir(images) as found:
        return {each.name: each.stat().st_size for each in found if each.name != DUMP_LOG}


def send(images: Path, sizes: Mapping[str, int], stream: Writer) -> None:
    """Write the files of `listed` into a stream, in their order."""
    directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, size in sizes.items():
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            try:
                left = size
                while left:
                    piece = os.read(file, min(left, CHUNK))
                    if not piece:
                        raise HostError(f"{name} of CRIU's images became shorter meanwhile")
                    stream.write(piece)
                    left -= len(piece)
            finally:
                os.close(file)
    finally:
        os.close(directory)


def receive(
    sizes: Mapping[str, int], stream: tree.Readable, into: Path, limits: tree.Limits
) -> None:
    """Make the files in an empty directory; BadArchive for more than is allowed, or less than told.

    The names are plain ones: whoever read the request has seen to that.
    """
    if sum(sizes.values()) > limits.max_bytes or len(sizes) > limits.max_files:
        raise BadArchive(f"images of {sum(sizes.values())} bytes: more than {limits.max_bytes}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with tree.writing(into), tree.opened(into) as directory:
        for name, size in sizes.items():
            file = os.open(name, flags, 0o600, dir_fd=directory)
            try:
                left = size
                while left:
                    piece = stream.read(min(left, CHUNK))
                    if not piece:
                        raise BadArchive(f"{name} of CRIU's images is cut")
                    left -= len(piece)
                    while piece:
                        piece = piece[os.write(file, piece) :]
            finally:
                os.close(file)
        if stream.read(1):
            raise BadArchive("there is more than CRIU's images")
