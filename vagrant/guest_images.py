"""Build the guests' disks: a base (guest_roots.py), pymigrate's dependencies, and the guest's init.

What a disk depends on, a digest of it is the name in the cache, so each is built once. The
checkout itself is not on it: a guest gets that when it starts.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import guest_roots
import newer_criu
from debian_packages import run, say
from guest_roots import Base
from guests import CACHE, SOURCE, VENV, Release

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
DISK_SIZE = "3G"  # sparse
PTH = (
    "import sys; from importlib.machinery import ModuleSpec; "
    'namespace = type(sys)("pymigrate"); '
    'namespace.__spec__ = ModuleSpec("pymigrate", None, is_package=True); '
    "namespace.__path__ = namespace.__spec__.submodule_search_locations"
    f" = [{SOURCE!r}]; "
    'sys.modules.setdefault("pymigrate", namespace)\n'
)
"""What an editable install does, without its import hook; as in provision's start_faster()."""


@dataclass(frozen=True)
class Image:
    """A base and the disk made of it, which is only ever read."""

    base: Base
    disk: Path


def find(release: Release) -> Image | None:
    """Return the image if it is built."""
    base = Base(CACHE / f"base-{release.name}-{guest_roots.key(release)}")
    image = Image(base, CACHE / f"disk-{release.name}-{key(release)}.ext4")
    return image if image.disk.exists() and base.directory.exists() else None


def build_all(releases: Iterable[Release]) -> dict[Release, Image]:
    """Return the images, building those that are missing side by side."""
    wanted = list(dict.fromkeys(releases))
    with ThreadPoolExecutor(max_workers=len(wanted) or 1) as pool:
        return dict(zip(wanted, pool.map(build, wanted), strict=True))


def build(release: Release) -> Image:
    """Return the image, building it if need be.

    A disk grows under another name and is renamed. Disks of the same release that are of another
    key are removed then: nobody asks for them again, and a guest that runs from one keeps it open.
    """
    if (found := find(release)) is not None:
        return found
    with guest_roots.locked(release.name):
        if (found := find(release)) is not None:
            return found
        base = guest_roots.build(release)
        say(f"  guest {release.name}: its disk")
        add_python(release, base.root)
        add_guest_files(base.root)
        fresh = CACHE / f".disk-{release.name}.new"
        fresh.unlink(missing_ok=True)
        make = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(base.root)]
        run([*make, str(fresh), DISK_SIZE], f"making the disk of {release.name}")
        for stale in CACHE.glob(f"disk-{release.name}-*"):
            stale.unlink()
        return Image(base, fresh.rename(CACHE / f"disk-{release.name}-{key(release)}.ext4"))


def key(release: Release) -> str:
    """Digest all that decides what is on a disk."""
    parts = [guest_roots.key(release), repr(dependencies())]
    files = [Path(__file__), *sorted((HERE / "guest").iterdir())]
    parts += [file.read_text() for file in files if file.is_file()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def dependencies() -> list[str]:
    """Return what pymigrate imports from the package index."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return sorted(project["dependencies"])


def provide_programs(releases: Iterable[Release]) -> None:
    """Install what building and starting guests needs on this machine, and its .venv."""
    profile = "lab" if all(release.architecture == "amd64" for release in releases) else "lab-arm"
    run([sys.executable, str(HERE / "provision"), "--for", profile], "setting this machine up")


def add_python(release: Release, root: Path) -> None:
    """Make the guest's virtual environment; pip of this machine fetches for the guest's Python."""
    venv = root / VENV.lstrip("/")
    if venv.exists():
        guest_roots.remove(venv)
    if release.is_native:
        create = ["chroot", str(root), "/usr/bin/python3", "-m", "venv", "--without-pip", VENV]
        run(create, "making the guest's virtual environment")
    else:  # its Python cannot run here; this is all that it would make
        (venv / "bin").mkdir(parents=True)
        (venv / "bin/python").symlink_to("/usr/bin/python3")
        (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    packages = venv / f"lib/python{release.python}/site-packages"
    pip = [
        str(REPOSITORY / ".venv/bin/python"),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
    ]
    pip += ["--root-user-action", "ignore", "--target", str(packages), "--only-binary", ":all:"]
    pip += ["--implementation", "cp", "--python-version", release.python]
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[release.architecture]
    for platform in ("manylinux2014", "manylinux_2_28", "manylinux_2_34"):
        pip += ["--platform", f"{platform}_{machine}"]
    hint = "is the package index that pip is configured for reachable from here?"
    run(
        [*pip, *dependencies(), *release.python_packages],
        "fetching the guest's Python packages",
        hint,
    )
    (packages / "pymigrate.pth").write_text(PTH)
    pycriu = (
        newer_criu.CURRENT / "python" if release.newest else Path("/usr/lib/python3/dist-packages")
    )
    (packages / "pycriu").symlink_to(pycriu / "pycriu")
    metadata = packages / "pymigrate-0.dist-info"  # what says the version of an installed package
    metadata.mkdir()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: pymigrate\nVersion: {project['version']}\n"
    )
    if release.is_native:
        # Compiled here once, not under emulation at every start.
        compile_all = ["chroot", str(root), f"{VENV}/bin/python", "-m", "compileall", "-q", VENV]
        run(compile_all, "compiling the guest's Python packages")


def add_guest_files(root: Path) -> None:
    """Make the root start as a guest: busybox is its init."""
    for name, place in (
        ("rc", "etc/lab.rc"),
        ("inittab", "etc/inittab"),
        ("sshd", "etc/lab.sshd"),
        ("clock", "etc/lab.clock"),
        ("sshd_config", "etc/ssh/sshd_config"),
    ):
        shutil.copy(HERE / "guest" / name, root / place)
    (root / "sbin/init").unlink(missing_ok=True)
    (root / "sbin/init").symlink_to("/bin/busybox")
    (root / "etc/fstab").write_text("# The guest's init mounts what there is.\n")
    (root / "etc/passwd").chmod(0o644)
    shadow = (root / "etc/shadow").read_text()
    (root / "etc/shadow").write_text(re.sub(r"(?m)^root:[^:]*:", "root:*:", shadow))
    # Scripts run by name and not through `busybox`.
    for applet in ("udhcpc",):
        link = root / "usr/sbin" / applet
        if not link.exists():
            link.symlink_to("/bin/busybox")
    (root / "usr/local/bin").mkdir(parents=True, exist_ok=True)
    pymigrate = root / "usr/local/bin/pymigrate"
    pymigrate.unlink(missing_ok=True)
    pymigrate.symlink_to(f"{SOURCE}/pymigrate")
