"""What a guest is given when it starts: the checkout, its keys, its names; as one archive."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from debian_packages import run
from guest_roots import Base, alone
from guests import CACHE, CLIENT_ADDRESS, GUESTS, SOURCE, VENV, Guest, Release

REPOSITORY = Path(__file__).resolve().parent.parent
CHECKOUT = ("pymigrate", "pyproject.toml", "migrate", "checkpoint", "transport", "runtime")
"""What of the checkout a guest needs to run pymigrate."""
CACHES = shutil.ignore_patterns("__pycache__", ".*")
COMPILE = """\
mount --bind "$1" "$2/mnt"
exec chroot "$2" /usr/bin/python3 -m compileall -q -s /mnt -p "$3" /mnt
"""
CHOOSE_CRIU = """\
#!/bin/sh
# Let pymigrate use the release's "own" CRIU or the "newest", with the messages that belong to it.
prefix=$(echo /opt/pymigrate/criu-*)
case $1 in
  newest) ln -sfn "$prefix" /opt/pymigrate/criu; messages=$prefix/python/pycriu ;;
  own) rm -f /opt/pymigrate/criu; messages=/usr/lib/python3/dist-packages/pycriu ;;
  *) exit 2 ;;
esac
for packages in /opt/pymigrate/venv/lib/python3.*/site-packages; do
  ln -sfn "$messages" "$packages/pycriu"
done
"""
LEASE = """\
#!/bin/sh
# What a guest that Vagrant started does with the address that its first card is given.
case $1 in
  deconfig) ip link set "$interface" up ;;
  bound | renew) ip address replace "$ip/$mask" dev "$interface" ;;
esac
"""


def make_keys(directory: Path) -> None:
    """Make a key for the user, which is root everywhere, and one for all guests' sshd."""
    for name in ("user", "host"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name}@guests"]
        run([*make, "-f", str(directory / name)], "making SSH keys")
    (directory / "known_hosts").write_text(known_hosts(directory))


def known_hosts(directory: Path) -> str:
    """Return the host key under all names, and under the third machine's address."""
    public = " ".join((directory / "host.pub").read_text().split()[:2])
    names = [f"{guest.name},{guest.address}" for guest in GUESTS.values()]
    return "".join(f"{name} {public}\n" for name in (*names, CLIENT_ADDRESS))


def ssh_config(directory: Path) -> str:
    """Return an ssh_config(5) with which this machine reaches the guests.

    Where there is a connection to a guest already, it is used; otherwise one is made.
    """
    hosts = "".join(
        f"Host {guest.name}\n  HostName {guest.address}\n  HostKeyAlias {guest.name}\n"
        for guest in GUESTS.values()
    )
    return f"""\
{hosts}Host *
  User root
  IdentityFile {directory}/user
  IdentitiesOnly yes
  UserKnownHostsFile {directory}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 30
  ServerAliveInterval 20
  ServerAliveCountMax 15
  LogLevel ERROR
  ControlPath {control_socket(directory, "%n")}
"""


def control_socket(directory: Path, name: str) -> Path:
    """Return where the connection to a guest is shared."""
    return directory / f"{name}.ssh"


def seed(guest: Guest, base: Base, directory: Path) -> Path:
    """Write the archive that the guest unpacks over its root; return where it is."""
    path = directory / f"{guest.name}.seed"
    names = "".join(f"{each.address} {each.name}\n" for each in GUESTS.values())
    private = (directory / "user").read_text()
    public = (directory / "user.pub").read_text()
    with checkout(guest.release, base) as copy, tarfile.open(path, "w") as archive:
        archive.add(copy, SOURCE.lstrip("/"), filter=ours)
        link = tarfile.TarInfo(f"{SOURCE}/.venv".lstrip("/"))
        link.type, link.linkname = tarfile.SYMTYPE, VENV
        archive.addfile(link)
        for name, content, mode in (
            ("usr/local/bin/choose-criu", CHOOSE_CRIU, 0o755),
            ("usr/share/udhcpc/default.script", LEASE, 0o755),
            ("etc/hostname", f"{guest.name}\n", 0o644),
            ("etc/hosts", f"127.0.0.1 localhost\n{names}", 0o644),
            ("etc/ssh/lab_host_key", (directory / "host").read_text(), 0o600),
            ("root/.ssh/authorized_keys", public, 0o600),
            ("root/.ssh/id_ed25519", private, 0o600),
            ("root/.ssh/id_ed25519.pub", public, 0o644),
            ("root/.ssh/known_hosts", known_hosts(directory), 0o644),
        ):
            member = tarfile.TarInfo(name)
            data = content.encode()
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return path


@contextlib.contextmanager
def checkout(release: Release, base: Base) -> Iterator[Path]:
    """Copy what a guest needs of the checkout, and compile it, for the time of the with block.

    The guest's own Python does this where it runs on this machine: that is quicker than under
    emulation, and a peer that is compiling looks like one that is gone.
    """
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".checkout-") as name:
        copy = Path(name) / "source"
        copy.mkdir(mode=0o755)
        for part in CHECKOUT:
            if (REPOSITORY / part).is_dir():
                shutil.copytree(REPOSITORY / part, copy / part, ignore=CACHES)
            else:
                shutil.copy2(REPOSITORY / part, copy / part)
        if release.is_native:
            words = [*alone(), "sh", "-ec", COMPILE, "compile", str(copy), str(base.root), SOURCE]
            run(words, "compiling pymigrate for the guests")
        yield copy


def ours(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out whose the files are here."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
