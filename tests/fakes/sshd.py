"""A real sshd on a free port of 127.0.0.1, with keys and a configuration of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled into Debian's sshd; it must exist for root


@dataclass(frozen=True)
class Sshd:
    """One that listens, with the keys that go with it."""

    directory: Path
    port: int

    @property
    def user_key(self) -> Path:
        """A key that is let in."""
        return self.directory / "user_key"

    @property
    def other_key(self) -> Path:
        """A key that is refused."""
        return self.directory / "other_key"

    @property
    def locked_key(self) -> Path:
        """A key that would be let in, with the passphrase "secret"."""
        return self.directory / "locked_key"

    @property
    def host_key_line(self) -> str:
        """What belongs into known_hosts."""
        kind, blob = (self.directory / "host_key.pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {blob}\n"

    @property
    def known_hosts(self) -> Path:
        """A file that knows us."""
        file = self.directory / "known_hosts"
        file.write_text(self.host_key_line)
        return file

    @property
    def name(self) -> str:
        """What a person would type."""
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


def missing() -> str | None:
    """Say why there can be no sshd."""
    absent = [name for name in ("sshd", "ssh-keygen", "setpriv") if shutil.which(name) is None]
    return ", ".join(absent) or None


def make_key(file: Path, *, kind: str = "ed25519", passphrase: str = "") -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", file.name, "-f", str(file)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _directory_for_root() -> Iterator[None]:
    """Make what sshd wants if nobody has, and take it away again."""
    if os.geteuid() != 0 or PRIVILEGE_SEPARATION.exists():
        yield
        return
    PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    try:
        yield
    finally:
        PRIVILEGE_SEPARATION.rmdir()


@contextlib.contextmanager
def running(directory: Path, *, settings: str = "") -> Iterator[Sshd]:
    """Start one, with more of sshd_config(5); all its sessions are ended with it."""
    make_key(directory / "host_key")
    make_key(directory / "user_key")
    make_key(directory / "other_key")
    make_key(directory / "locked_key", passphrase="secret")
    allowed = [(directory / f"{name}_key.pub").read_text() for name in ("user", "locked")]
    (directory / "authorized_keys").write_text("".join(allowed))
    server = Sshd(directory, _free_port())
    (directory / "config").write_text(
        f"ListenAddress 127.0.0.1:{server.port}\n"
        f"HostKey {directory}/host_key\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\n"
        f"PidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\nPrintMotd no\nMaxStartups 100\nSetEnv PYTHONUNBUFFERED=1\n"
        f"{settings}\n"
    )
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    with _directory_for_root(), (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            # A test run that is killed takes its sshd along.
            ["setpriv", "--pdeathsig", "TERM", sshd, "-D", "-e", "-f", str(directory / "config")],
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_until_listening(server, process)
            yield server
        finally:
            process.terminate()
            process.wait()


def _wait_until_listening(server: Sshd, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while "Server listening" not in server.log:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"sshd did not start: {server.log}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
