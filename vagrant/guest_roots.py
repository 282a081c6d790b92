"""Build what guests' images are made of from Debian's packages: a root, a kernel, a first RAM disk.

These take the most time, and change least: they are cached apart from the images, as directories.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import newer_criu
from debian_packages import UNREACHABLE, SetupError, mirror, run, say
from guests import CACHE, NEWEST_CRIU, PACKAGES, Release

HERE = Path(__file__).resolve().parent
EXTRACTED = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "diffutils", "findutils", "gawk"),
    *("grep", "gzip", "sed", "tar", "util-linux"),
)
"""What a root needs to have beyond PACKAGES where Debian does not put it there by itself."""
FIRST_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4")


@dataclass(frozen=True)
class Base:
    """The files of a base; the root is of a guest that has neither pymigrate nor an init."""

    directory: Path

    @property
    def root(self) -> Path:
        """The root directory."""
        return self.directory / "root"

    @property
    def kernel(self) -> Path:
        """The kernel, as QEMU starts it without a boot loader."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The first RAM disk."""
        return self.directory / "initrd"

    @property
    def criu(self) -> str:
        """The version of CRIU in it."""
        return (self.directory / "criu").read_text().strip()

    @property
    def release(self) -> str:
        """The kernel's own name for itself, such as 6.1.0-56-cloud-amd64."""
        return (self.directory / "release").read_text().strip()


def key(release: Release) -> str:
    """Digest all that decides what is in a base; packages are taken anew each month."""
    parts = [repr(release), repr(PACKAGES), NEWEST_CRIU, f"{datetime.now(UTC):%Y-%m}"]
    files = (Path(__file__), HERE / "newer_criu.py", HERE / "guest/init")
    parts += [file.read_text() for file in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def build(release: Release) -> Base:
    """Return the base, building it if need be; the caller holds the lock of the release.

    It grows beside its place and is renamed when it is complete.
    """
    final = CACHE / f"base-{release.name}-{key(release)}"
    if final.exists():
        return Base(final)
    for stale in CACHE.glob(f".base-{release.name}-*"):  # of a build that was killed
        remove(stale)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".base-{release.name}-") as name:
        say(f"  guest {release.name}: Debian {release.suite}, kernel of {release.kernel_suite}")
        fresh = Base(Path(name) / "base")
        fresh.directory.mkdir(mode=0o755)
        (bootstrap if release.is_native else extract)(release, Path(name), fresh.root)
        version = take_kernel(fresh)
        make_initrd(fresh, version, Path(name) / "initrd")
        criu = add_criu(release, fresh.root) if release.is_native else packaged_criu(fresh.root)
        # Only what a running guest needs to have: its memory, too, holds what it reads.
        for directory in ("kernel", "var/cache/apt", "var/lib/apt/lists", "usr/share/doc"):
            shutil.rmtree(fresh.root / directory, ignore_errors=True)
        (fresh.directory / "criu").write_text(f"{criu}\n")
        (fresh.directory / "release").write_text(f"{version}\n")
        packages = sorted(path.stem for path in fresh.root.glob("var/lib/dpkg/info/*.list"))
        (fresh.directory / "PACKAGES").write_text("".join(f"{name}\n" for name in packages))
        for stale in CACHE.glob(f"base-{release.name}-*"):
            remove(stale)
        fresh.directory.rename(final)
    return Base(final)


def remove(directory: Path) -> None:
    """Remove a directory in which nothing is mounted.

    Raises SetupError if something is: then it would be removed, too.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4])
        if point.is_relative_to(directory):
            raise SetupError(f"{point} is mounted below {directory}", f"umount {point}")
    shutil.rmtree(directory)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a place in the cache, such as a release's, for the time of the with block."""
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bootstrap(release: Release, work: Path, root: Path) -> None:
    """Install a Debian, and fetch and unpack a kernel without installing it.

    Installed, it would bring the tools of a boot that this guest does not have.
    """
    fetch = (
        'chroot "$1" apt-get install -q -y --download-only --no-install-recommends '
        f"-t {release.kernel_suite} linux-image-cloud-amd64"
    )
    unpack = (
        'mkdir "$1/kernel" && for archive in "$1"/var/cache/apt/archives/linux-*.deb; '
        'do dpkg-deb --extract "$archive" "$1/kernel" || exit; done'
    )
    include = ",".join((*PACKAGES, *release.criu_packages))
    command = [*alone(), "mmdebstrap", "--mode=root", "--variant=apt", f"--include={include}"]
    command += ["--aptopt=Acquire::Languages none", "--skip=cleanup/apt"]
    command += [f"--customize-hook={fetch}", f"--customize-hook={unpack}"]
    command += [release.suite, str(root), str(write_sources(release, work))]
    run(command, f"installing Debian {release.suite}", UNREACHABLE)


def write_sources(release: Release, work: Path) -> Path:
    """Write the package sources of a release, from the mirror that this machine uses."""
    uri, signed_by = mirror(codename())
    suites = dict.fromkeys((release.suite, release.kernel_suite))
    sources = work / "sources.list"
    sources.write_text(
        "".join(f"deb [signed-by={signed_by}] {uri} {suite} main\n" for suite in suites)
    )
    return sources


def extract(release: Release, work: Path, root: Path) -> None:
    """Unpack a Debian of another architecture, of which nothing can be run here.

    So no package is configured; what their scripts would have made is made here, as far as a
    guest needs it.
    """
    include = ",".join((*PACKAGES, *EXTRACTED, *release.criu_packages))
    kernel = f"linux-image-cloud-{release.architecture}"
    command = [*alone(), "mmdebstrap", "--mode=root", "--variant=extract"]
    command += [f"--architectures={release.architecture}", f"--include={include},{kernel}"]
    command += ["--aptopt=Acquire::Languages none"]
    command += [release.suite, str(root), str(write_sources(release, work))]
    run(command, f"unpacking Debian {release.suite} of {release.architecture}", UNREACHABLE)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write("sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("dash")
    (root / "etc/shadow").write_text("root:*:20000:0:99999:7:::\n")
    (root / "etc/shadow").chmod(0o600)
    # Where a kernel that was fetched by itself is unpacked to; its modules move from there.
    (root / "kernel/boot").mkdir(parents=True)
    for file in (root / "boot").glob("vmlinuz-*"):
        file.rename(root / "kernel/boot" / file.name)
    (root / "usr/lib/modules").rename(root / "kernel/modules")


def packaged_criu(root: Path) -> str:
    """Return the version of a root's CRIU without running it, as its changelog begins."""
    with gzip.open(root / "usr/share/doc/criu/changelog.Debian.gz", "rt") as changelog:
        first = changelog.readline()  # criu (4.1.1-1) unstable; urgency=medium
    found = re.search(r"\((?:\d+:)?([\d.]+)", first)
    if found is None:
        raise SetupError(f"CRIU's changelog begins with {first!r}", "please report this")
    return found[1]


def alone() -> list[str]:
    """Return the words before a command that is to mount things, so that it does so alone.

    What it mounts never shows on this machine, and goes with us if we are killed: whoever removes
    what is left then must not meet /proc or /dev there.
    """
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", *unshare, "--propagation", "private", "--"]


def codename() -> str:
    """Return the code name of this machine's Debian, whose mirror has the others too."""
    text = Path("/etc/os-release").read_text()
    found = re.search(r"(?m)^VERSION_CODENAME=(\w+)", text)
    if found is None:
        raise SetupError("this is not a Debian release", "build the guests on Debian 12 or 13")
    return found[1]


def take_kernel(base: Base) -> str:
    """Move the unpacked kernel's modules into the root and its vmlinuz into the image."""
    root = base.root
    unpacked = root / "kernel"
    # Kernels of Debian have it in /boot, from 7.0 on beside their modules.
    [vmlinuz] = [*unpacked.glob("boot/vmlinuz-*"), *unpacked.glob("usr/lib/modules/*/vmlinuz")]
    shutil.copy(vmlinuz, base.kernel)
    [built_in] = unpacked.glob("**/modules/*/modules.builtin")
    version = built_in.parent.name
    modules = root / "usr/lib/modules" / version
    for part in unpacked.glob(f"**/modules/{version}"):  # more than one from 7.0 on, or /usr/lib
        shutil.copytree(
            part,
            modules,
            symlinks=True,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("vmlinuz"),
        )
    run(["depmod", "--basedir", str(root), version], "indexing the modules")
    return version


def make_initrd(base: Base, version: str, stage: Path) -> None:
    """Pack busybox, the modules that lead to the disk and the network, and init."""
    root = base.root
    for directory in ("bin", "dev", "modules", "proc", "root"):
        (stage / directory).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", stage / "bin/busybox")
    shutil.copy(HERE / "guest/init", stage / "init")
    order: dict[str, None] = {}
    for module in FIRST_MODULES:
        depends = ["modprobe", "--dirname", str(root), "-S", version, "--show-depends", module]
        said = subprocess.run(depends, capture_output=True, text=True, check=False)
        if said.returncode and module in FIRST_MODULES[:2]:
            raise SetupError(f"kernel {version} has no {module}: {said.stderr}", "please report")
        # "insmod FILE" for each, first what the others need; "builtin NAME" needs nothing.
        for file in re.findall(r"(?m)^insmod (\S+)", said.stdout):
            source = Path(file)
            name = source.name.partition(".ko")[0] + ".ko"
            data = source.read_bytes()
            data = lzma.decompress(data) if source.suffix == ".xz" else data
            (stage / "modules" / name).write_bytes(data)
            order[name] = None
    (stage / "order").write_text("".join(f"{name}\n" for name in order))
    names = "".join(f"{path.relative_to(stage)}\n" for path in sorted(stage.rglob("*")))
    with base.initrd.open("wb") as output:
        subprocess.run(
            ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"],
            cwd=stage,
            input=names.encode(),
            stdout=output,
            check=True,
        )


def add_criu(release: Release, root: Path) -> str:
    """Put the newest CRIU below /opt; return the version of the one that pymigrate will find.

    It looks below /opt first, so that link stays only where there is no other CRIU.
    """
    shutil.copytree(
        newest_criu() / newer_criu.PREFIX.relative_to("/"),
        root / newer_criu.PREFIX.relative_to("/"),
        symlinks=True,
    )
    program = newer_criu.CURRENT / "sbin/criu"
    if not release.newest:
        (root / newer_criu.CURRENT.relative_to("/")).unlink()
        program = Path("/usr/sbin/criu")
    said = run(["chroot", str(root), str(program), "--version"], "asking criu for its version")
    return said.split()[1]


def newest_criu() -> Path:
    """Return a root in which the newest CRIU lies below /opt, made once for all images."""
    source = (HERE / "newer_criu.py").read_text()
    parts = (NEWEST_CRIU, f"{datetime.now(UTC):%Y-%m}", source)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    final = CACHE / f"criu-{key}"
    with locked("criu"):
        if not final.exists():
            for stale in CACHE.glob("criu-*"):
                remove(stale)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=".criu-") as name:
                root = Path(name) / "root"
                newer_criu.build(NEWEST_CRIU, codename(), root)
                root.rename(final)
    return final
