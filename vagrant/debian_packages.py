"""Debian's packages: ask apt for them, let no service start, find the mirror they come from."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = """\
#!/bin/sh
# pymigrate's set-up is running; it removes this file when done.
exit 101
"""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
UNREACHABLE = "are the package sources in /etc/apt reachable from here?"


class SetupError(Exception):
    """Something could not be set up; the hint says what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def say(text: str) -> None:
    """Tell the user about progress, apart from the output of the command that follows."""
    print(f"pymigrate: {text}", file=sys.stderr, flush=True)


def attempt(argv: list[str], directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program that may fail, with nothing to ask and its output in one string."""
    if shutil.which(argv[0]) is None:
        raise SetupError(f"{argv[0]} is not on this machine", "is it Debian 12 or 13?")
    return subprocess.run(
        argv,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        text=True,
        check=False,
    )


def run(
    argv: list[str],
    doing: str,
    hint: str = "the output above says more",
    directory: Path | None = None,
) -> str:
    """Run a program that must succeed and return its output."""
    result = attempt(argv, directory)
    if result.returncode != 0:
        print("\n".join(result.stdout.splitlines()[-15:]), file=sys.stderr)
        raise SetupError(f"{doing} failed: {argv[0]} ended with {result.returncode}", hint)
    return result.stdout


def install(names: list[str]) -> None:
    """Install packages, reading the package lists anew only when that is needed."""
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends"]
    command += ["-o", "DPkg::Lock::Timeout=300"]  # unattended-upgrades may be at work
    command += ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    command += names
    had_sshd = Path("/usr/sbin/sshd").exists()
    with no_service_starts():
        if attempt(command).returncode != 0:
            say("  (reading the package lists anew)")
            run(["apt-get", "update", "-q"], "reading the package lists", UNREACHABLE)
            run(command, f"installing {' '.join(names)}", UNREACHABLE)
    if "openssh-server" in names and not had_sshd and shutil.which("systemctl"):
        # The package enables its service; nobody asked this machine to accept logins.
        run(["systemctl", "disable", "ssh.service", "ssh.socket"], "keeping sshd from starting")


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """Forbid package scripts to start services, unless the machine has a rule of its own."""
    if POLICY.exists() and POLICY.read_text() != POLICY_TEXT:
        yield
        return
    POLICY.write_text(POLICY_TEXT)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def candidate(name: str) -> str | None:
    """Return the version of a package that apt would install, if there is one."""
    policy = run(["apt-cache", "policy", name], f"asking apt about {name}")
    version = re.search(r"Candidate: (\S+)", policy)
    return version[1] if version and version[1] != "(none)" else None


def mirror(codename: str, etc: Path = Path("/etc/apt")) -> tuple[str, str]:
    """Find where a release comes from: the mirror's address and the key that signs it.

    Read both formats of apt's sources: the machine's own choice of a mirror holds for all.
    """
    for file in sorted(etc.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n", "", file.read_text())):
            fields = dict(re.findall(r"(?m)^([\w-]+):[ \t]*(.+(?:\n[ \t].+)*)", stanza))
            if codename in fields.get("Suites", "").split() and fields.get("Enabled") != "no":
                return fields["URIs"].split()[0], fields.get("Signed-By", KEYRING)
    for file in (etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))):
        text = file.read_text() if file.exists() else ""
        line = re.search(rf"(?m)^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+{codename}\s", text)
        if line:
            signed_by = re.search(r"signed-by=(\S+)", line[1] or "")
            return line[2], signed_by[1] if signed_by else KEYRING
    raise SetupError(
        f"no package source for Debian {codename} in {etc}",
        "pymigrate's set-up knows Debian 12 and 13; on others install criu and .venv by hand",
    )
