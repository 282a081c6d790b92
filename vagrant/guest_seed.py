"""What a guest is given when it starts: the checkout, its keys, its names; as one archive."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

from debian_packages import run
from guests import CLIENT_ADDRESS, GUESTS, SOURCE, VENV, Guest

REPOSITORY = Path(__file__).resolve().parent.parent
CHECKOUT = ("pymigrate", "pyproject.toml", "migrate", "checkpoint", "transport", "runtime")
"""What of the checkout a guest needs to run pymigrate."""
FILTERED = re.compile(r"(^|/)(__pycache__|\..*)($|/)")
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
    """Return an ssh_config(5) with which this machine reaches the guests."""
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
  ConnectTimeout 10
  ServerAliveInterval 20
  ServerAliveCountMax 6
  LogLevel ERROR
"""


def seed(guest: Guest, directory: Path) -> Path:
    """Write the archive that the guest unpacks over its root; return where it is."""
    path = directory / f"{guest.name}.seed"
    names = "".join(f"{each.address} {each.name}\n" for each in GUESTS.values())
    private = (directory / "user").read_text()
    public = (directory / "user.pub").read_text()
    with tarfile.open(path, "w") as archive:
        for name in CHECKOUT:
            archive.add(REPOSITORY / name, f"{SOURCE}/{name}".lstrip("/"), filter=ours)
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


def ours(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out caches, and whose the files are here."""
    if FILTERED.search(member.name.removeprefix(SOURCE.lstrip("/"))):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
