"""A fresh Debian machine in a directory, to be entered like one; nothing is set up in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from debian_packages import mirror
from tests.lab.host import JOIN
from tests.lab.registry import Entry, subtree

ENTER = Path(__file__).with_name("enter_root.py")
INCLUDED = "ca-certificates,git,python3"  # what the README asks for, and what pip's HTTPS wants
PASSED_ON = re.compile(r"PIP_.*|.*_CA_BUNDLE|SSL_CERT_.*|(https?|no)_proxy", re.IGNORECASE)


@contextmanager
def clean_root(suite: str, shown: list[Path]) -> Iterator[CleanRoot]:
    """Build a minimal root of `suite` and remove it afterwards; `shown` can be read in it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix=f"pymigrate-{suite}-") as name:
        root = Path(name, "root")
        release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text()))
        uri, _ = mirror(release["VERSION_CODENAME"])
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={INCLUDED}"),
                *(suite, str(root), f"deb {uri} {suite} main"),
            ],
            check=True,
        )
        connect_to_the_network_as_here(root)
        entry = Entry.make(0)
        try:
            yield CleanRoot(root, [*map(str, shown), *local_package_indexes()], entry)
        finally:
            entry.remove()


def connect_to_the_network_as_here(root: Path) -> None:
    """Give the root this machine's name servers, proxies, certificates and package indexes.

    They belong to the network that the machine stands in, not to what is installed on it.
    """
    acquire = subprocess.run(
        ["apt-config", "dump", "Acquire"], stdout=subprocess.PIPE, check=True, text=True
    )
    (root / "etc/apt/apt.conf.d/99-network").write_text(acquire.stdout)
    for file in (
        Path("/etc/resolv.conf"),
        Path("/etc/hosts"),
        Path("/etc/ssl/certs/ca-certificates.crt"),
        *pip_settings(),
    ):
        if file.exists():
            target = root / str(file).removeprefix("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(file, target)


def pip_settings() -> list[Path]:
    """List the files in which pip may be told where its packages come from."""
    home = Path.home()
    return [Path("/etc/pip.conf"), home / ".config/pip/pip.conf", home / ".pip/pip.conf"]


def local_package_indexes() -> list[str]:
    """List the directories of this machine that pip is told to look into."""
    told = [file.read_text() for file in pip_settings() if file.exists()]
    told += [value for name, value in os.environ.items() if name.startswith("PIP_")]
    words = " ".join(told).replace("file://localhost", "").replace("file://", "").split()
    places = {Path(word) for word in words if word.startswith("/") and Path(word).is_dir()}
    # The pages of an index in directories ("simple", PEP 503) link to files beside it.
    return sorted({str(place.parent if place.name == "simple" else place) for place in places})


class CleanRoot:
    """A root directory and the way to run something in it, in cgroups of its own."""

    def __init__(self, root: Path, shown: list[str], entry: Entry) -> None:
        self.path = root
        self._shown = shown
        self._entry = entry
        self._processes = [str(each / "cgroup.procs") for each in entry.place("machine")]

    def cgroups(self) -> set[str]:
        """List the cgroups that are there because of it."""
        return {str(path) for top in self._entry.cgroups for path in subtree(top)}

    def run(self, *command: str, directory: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a command as on a machine of its own; what it started ends with it."""
        environment = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
        environment |= {"HOME": str(Path.home()), "LANG": "C.UTF-8", "TERM": "dumb"}
        environment |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(
            [
                *("sh", "-c", JOIN, "enter", *self._processes, "--"),
                *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"),
                *(sys.executable, "-I", str(ENTER), str(self.path), *self._shown),
                *("--", "env", f"--chdir={directory}", *command),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
        )
