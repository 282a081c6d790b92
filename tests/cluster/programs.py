"""The images of the containers that travel between guests: busybox, or busybox and a Redis.

They are small, since they go through an emulated machine's SSH.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from debian_packages import UNREACHABLE, mirror, run
from guest_roots import alone, codename
from guests import CACHE

SUITE = "bookworm"
PACKAGES = ("busybox-static", "redis-server")
LOADER = "lib64/ld-linux-x86-64.so.2"
IMAGES = {"small": (), "redis": ("usr/bin/redis-server", "usr/bin/redis-cli")}
"""The dynamic programs of each image; busybox is in all."""
APPLETS = (
    "cat",
    "echo",
    "kill",
    "mkfifo",
    "nc",
    "ps",
    "sh",
    "sleep",
    "tail",
    "tr",
    "tty",
    "usleep",
)


def archives() -> dict[str, Path]:
    """Return a tar of each image's root, made if need be."""
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    final = {name: CACHE / f"image-{name}-{key()}.tar" for name in IMAGES}
    if not all(path.exists() for path in final.values()):
        for stale in CACHE.glob("image-*.tar"):
            stale.unlink()
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".image-") as name:
            work = Path(name)
            unpack(work, work / "unpacked")
            for image, programs in IMAGES.items():
                pick(work / "unpacked", work / image, programs)
                with tarfile.open(work / f"{image}.tar", "w") as tar:
                    tar.add(work / image, ".")
                (work / f"{image}.tar").rename(final[image])
    return final


def key() -> str:
    """Digest what decides what is in it."""
    parts = (Path(__file__).read_text(), f"{datetime.now(UTC):%Y-%m}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def unpack(work: Path, root: Path) -> None:
    """Unpack the packages and what they depend on; nothing of them is run."""
    uri, signed_by = mirror(codename())
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={signed_by}] {uri} {SUITE} main\n")
    command = [*alone(), "mmdebstrap", "--mode=root", "--variant=extract"]
    command += [f"--include={','.join(PACKAGES)}", SUITE, str(root), str(sources)]
    run(command, "unpacking the programs", UNREACHABLE)


def pick(unpacked: Path, root: Path, programs: Sequence[str]) -> None:
    """Copy busybox, the programs, and just the libraries that they load."""
    for directory in ("bin", "data", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"):
        (root / directory).mkdir(parents=True)
    busybox = next(path for path in unpacked.glob("**/bin/busybox"))
    shutil.copy2(busybox, root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    wanted = {LOADER, *programs} if programs else set()
    for program in programs:
        said = run(
            ["chroot", str(unpacked), f"/{LOADER}", "--list", f"/{program}"],
            f"listing the libraries of {program}",
        )
        wanted |= {path.lstrip("/") for path in re.findall(r"=> /(\S+)", said)}
    for name in wanted:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(unpacked / name, root / name)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
