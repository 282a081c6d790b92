"""Unpack a CRIU of a newer Debian release with its own libraries, apart from the system's.

Debian 12's CRIU cannot run on kernels from 6.13 on, and a newer one wants a newer libc. So all
that it loads goes with it below /opt, bound to that place by an ELF interpreter and a search path
of its own. apt resolves and verifies the packages as always, but in a state directory that lives
only as long as the download.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from debian_packages import UNREACHABLE, SetupError, install, mirror, run, say

PREFIX = Path("/opt/pymigrate")
CURRENT = PREFIX / "criu"
SUITES = ("forky", "trixie")  # where to look, best first


def build(suite: str, codename: str, root: Path = Path("/")) -> Path:
    """Build the private prefix, make it current and return its criu.

    It grows beside its final place and is renamed, so an interruption leaves nothing that is
    usable by halves. With another `root` it is put below that, and works where that is the root.
    """
    prefix = root / PREFIX.relative_to("/")
    if shutil.which("patchelf") is None:
        say("  patchelf: binds the newer CRIU to its own loader and libraries")
        install(["patchelf"])
    prefix.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=prefix, prefix=".building-") as name:
        work = Path(name)
        say(f"  criu of {suite}, with its libraries, from the mirror that apt uses")
        archives = download(suite, codename, work)
        unpacked = work / "root"
        for archive in archives:
            extract = ["dpkg-deb", "--extract", str(archive), str(unpacked)]
            run(extract, f"unpacking {archive.name}")
        [package] = [archive for archive in archives if archive.name.startswith("criu_")]
        version = run(["dpkg-deb", "--field", str(package), "Version"], "reading criu's version")
        final = PREFIX / f"criu-{version.strip()}"
        place = prefix / final.name
        built = work / "prefix"
        lay_out(unpacked, built, final)
        (built / "PACKAGES").write_text("".join(f"{archive.name}\n" for archive in archives))
        if place.exists():
            place.rename(work / "replaced")
        built.rename(place)
        link = work / "current"
        link.symlink_to(final.name)
        link.replace(prefix / CURRENT.name)
    return prefix / CURRENT.name / "sbin/criu"


def download(suite: str, codename: str, work: Path) -> list[Path]:
    """Fetch criu with all that it depends on, and pycriu without: the venv has its protobuf."""
    for directory in ("lists/partial", "cache/archives/partial", "sources", "alone", "root"):
        (work / directory).mkdir(parents=True)
    uri, signed_by = mirror(codename)
    (work / "sources/newer.sources").write_text(
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {signed_by}\n"
    )
    # With an empty status file no dependency counts as installed. The file is read after the
    # machine's own configuration: proxies and certificates hold, hooks and preferences do not.
    (work / "status").touch()
    (work / "apt.conf").write_text(
        "#clear APT::Update;\n#clear DPkg::Post-Invoke;\n"
        f'Dir::State "{work}"; Dir::State::status "{work}/status"; Dir::Cache "{work}/cache";\n'
        f'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{work}/sources";\n'
        'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";\n'
        'APT::Default-Release ""; APT::Sandbox::User "root"; Acquire::Languages "none";\n'
    )
    apt = ["apt-get", "-q", "-y", "-c", str(work / "apt.conf")]
    run([*apt, "update"], f"reading the package list of {suite}", UNREACHABLE)
    run(
        [*apt, "install", "--download-only", "--no-install-recommends", "criu"],
        f"downloading criu of {suite}",
        UNREACHABLE,
    )
    run(
        [*apt, "download", "python3-pycriu"],
        f"downloading python3-pycriu of {suite}",
        UNREACHABLE,
        directory=work / "alone",
    )
    return sorted([*work.glob("cache/archives/*.deb"), *work.glob("alone/*.deb")])


def lay_out(root: Path, built: Path, final: Path) -> None:
    """Copy criu, just the libraries that it loads, and pycriu; bind criu to its final place."""
    program = built / "sbin/criu"
    program.parent.mkdir(parents=True)
    shutil.copy2(root / "usr/sbin/criu", program)
    interpreter = run(["patchelf", "--print-interpreter", str(program)], "reading criu's loader")
    [loader, *_] = (p for p in root.rglob(Path(interpreter.strip()).name) if not p.is_symlink())
    loaded = run(
        [str(loader), "--library-path", str(loader.parent), "--list", str(program)],
        "listing criu's libraries",
    )
    (built / "lib").mkdir()
    for library in {loader, *map(Path, re.findall(r"=> (/\S+)", loaded))}:
        if not library.is_relative_to(root):
            raise SetupError(f"criu would load {library} of this system", "please report this")
        shutil.copy2(library, built / "lib" / library.name)
    binding = ["--set-interpreter", f"{final}/lib/{loader.name}"]
    # DT_RPATH, unlike DT_RUNPATH, also holds for the libraries of libraries.
    binding += ["--force-rpath", "--set-rpath", f"{final}/lib"]
    run(["patchelf", *binding, str(program)], "binding criu to its libraries")
    shutil.copytree(root / "usr/lib/python3/dist-packages/pycriu", built / "python/pycriu")
