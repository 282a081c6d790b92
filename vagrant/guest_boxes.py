"""Make Vagrant boxes, for libvirt, of the guests' images: what LAB_BOXES is to name."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import guest_images
from debian_packages import run
from guest_machines import kernel_command_line
from guest_seed import make_keys, seed
from guests import Guest


def make(guests: Sequence[Guest], directory: Path) -> None:
    """Write, for each guest, its box, kernel, RAM disk, kernel command line and seed."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_keys(directory)
    for guest in guests:
        image = guest_images.build(guest.release)
        shutil.copy(image.base.kernel, directory / f"{guest.name}.vmlinuz")
        shutil.copy(image.base.initrd, directory / f"{guest.name}.initrd")
        # Vagrant's own network is on the first card, the hosts' on the second.
        words = kernel_command_line(guest, card="eth1")
        (directory / f"{guest.name}.cmdline").write_text(f"{words}\n")
        seed(guest, image.base, directory)
        pack(image.disk, directory / f"{guest.name}.box")


def pack(disk: Path, box: Path) -> None:
    """Pack a disk as a box; the format is vagrant-libvirt's."""
    with tempfile.TemporaryDirectory(dir=box.parent) as name:
        work = Path(name)
        metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": 3}
        (work / "metadata.json").write_text(json.dumps(metadata))
        convert = ["qemu-img", "convert", "-O", "qcow2", str(disk), str(work / "box.img")]
        run(convert, "converting a disk")
        with tarfile.open(box, "w:gz", compresslevel=1) as archive:
            for file in ("metadata.json", "box.img"):
                archive.add(work / file, file)
