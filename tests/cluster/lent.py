"""Images that are too large to be copied into emulated machines: each on a disk to read from."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from debian_packages import run
from guest_roots import locked
from guests import CACHE, VENV
from tests.cluster.cluster import Machine
from tests.lab import images
from tests.lab.images import CachedImage
from tests.lab.services import IMAGES

BIND = """
set -eu
umask 077
store=$PYMIGRATE_ROOT/images
mkdir -p /mnt/$0 "$store/layers"
mount -o ro LABEL=$0 /mnt/$0
for layer in $(ls /mnt/$0/layers); do
  mkdir "$store/layers/$layer"
  mount --bind /mnt/$0/layers/$layer "$store/layers/$layer"
done
"""
INDEX = """
import sys
from pathlib import Path
from pymigrate.runtime import image_index
own, lent = (image_index.read(Path(name)) for name in sys.argv[1:])
both = image_index.Index(own.images | lent.images, {**own.references, **lent.references})
image_index.write(Path(sys.argv[1]), both)
"""


def bootstrap() -> dict[str, CachedImage]:
    """Return the images of tests/lab/services.py by name, made if need be."""
    return {name: images.bootstrap(name, packages) for name, packages in IMAGES.items()}


def disk(image: CachedImage) -> Path:
    """Return a disk that holds the image's store and has its name, made if need be."""
    final = CACHE / f"lent-{image.root.name}.ext4"
    with locked("lent"):
        if not final.exists():
            for stale in CACHE.glob(f"lent-{image.name}-*.ext4"):  # a guest keeps its own open
                stale.unlink()
            store = image.root / "images"
            used = subprocess.run(
                ["du", "-sm", str(store)], capture_output=True, text=True, check=True
            )
            size = int(used.stdout.split()[0]) * 5 // 4 + 64  # MiB, with what names and inodes take
            fresh = CACHE / f".lent-{image.name}.new"
            fresh.unlink(missing_ok=True)
            make = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
            make += ["-L", image.name, "-d", str(store), str(fresh), f"{size}M"]
            run(make, f"making the disk of {image.name}")
            fresh.rename(final)
    return final


def lend(image: CachedImage, machine: Machine) -> None:
    """Let a guest that has the image's disk have the image: its layers are bound into its store."""
    machine.sh(shlex.join(["sh", "-c", BIND, image.name]))
    index = f'"$PYMIGRATE_ROOT"/images/index.json /mnt/{image.name}/index.json'
    machine.sh(f"umask 077; {VENV}/bin/python -c {shlex.quote(INDEX)} {index}")
