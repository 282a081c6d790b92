"""Scripts that turn fresh namespaces into the lab's switch, hosts and client."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.host import PREFIX, REPOSITORY, Host, Place, script

ROUTER = "10.88.0.1"  # the switch's own address, the gateway of the lab's network
OWN_FILE_SYSTEMS = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # /run last: it holds the lab


def switch(directory: Path, hosts: Sequence[str], disk_size: str) -> str:
    """Make the lab's file system at `directory`, with a disk for each host."""
    commands: list[list[str | Path]] = [
        ["mount", "-n", "-t", "tmpfs", "-o", "mode=755", "lab", directory]
    ]
    for name in hosts:
        disk = directory / name / "disk"
        commands += [
            ["mkdir", "-p", disk],
            [
                "mount",
                "-n",
                "-t",
                "tmpfs",
                "-o",
                f"mode=755,size={disk_size}",
                f"{name}-disk",
                disk,
            ],
        ]
    return script(*commands)


def kept(point: str) -> list[str]:
    """List what of the machine must stay visible although the place has its own `point`."""
    needed = {str(REPOSITORY), os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)}
    return sorted(path for path in needed if Path(path).is_relative_to(point))


def own_file_system(place: Place, point: str) -> list[list[str | Path]]:
    """Mount a tmpfs at `point`, with what must stay visible bound into it."""
    stage = place.directory / "stage"
    mode = "755" if point == "/run" else "1777"
    commands: list[list[str | Path]] = [
        ["mkdir", "-p", stage],
        ["mount", "-n", "-t", "tmpfs", "-o", f"mode={mode}", place.name, stage],
    ]
    binds = [("--rbind", path) for path in kept(point)]
    if point == "/run":
        binds.append(("--bind", str(place.entry.directory)))
    for how, path in binds:
        inside = stage / os.path.relpath(path, point)
        commands += [["mkdir", "-p", inside], ["mount", "-n", how, path, inside]]
    commands.append(["mount", "-n", "--move", stage, point])
    return commands


def machine(place: Place) -> list[list[str | Path]]:
    """Give a place its name, its own /etc, a /sys of its network, and temporary file systems."""
    own = place.directory
    etc = f"lowerdir=/etc,upperdir={own}/etc,workdir={own}/etc.work"
    commands: list[list[str | Path]] = [
        ["mkdir", "-p", own / "etc", own / "etc.work", own / "cgroup"],
        ["mount", "-n", "-t", "overlay", "-o", etc, "etc", "/etc"],
        ["mount", "-n", "--rbind", "/sys/fs/cgroup", own / "cgroup"],
        ["mount", "-n", "-t", "sysfs", "sysfs", "/sys"],
        ["mount", "-n", "--rbind", own / "cgroup", "/sys/fs/cgroup"],
        ["umount", "-n", "-R", own / "cgroup"],
        ["sh", "-c", 'echo "$1" > /proc/sys/kernel/hostname', "sh", place.name],
    ]
    if isinstance(place, Host):
        commands.append(["mount", "-n", "--bind", own / "disk", "/srv"])
    for point in OWN_FILE_SYSTEMS:
        commands += own_file_system(place, point)
    return commands


def network(place: Place) -> str:
    """Write the ip(8) batch of a place whose interface is `uplink`."""
    if not isinstance(place, Host):
        return f"""\
link set lo up
address add {place.address}/{PREFIX} dev uplink
link set uplink up
"""
    # An address set by hand stays; otherwise the bridge takes its lowest port's, and containers
    # that come and go would change it under the neighbours.
    return f"""\
link set lo up
link add name pymigrate0 address {mac(place.address)} type bridge
link set uplink master pymigrate0
link set uplink up
link set pymigrate0 up
address add {place.address}/{PREFIX} dev pymigrate0
"""


def mac(address: str | None) -> str:
    """Return a locally administered MAC address for an IPv4 address."""
    return "02:88:" + ":".join(f"{int(part):02x}" for part in (address or "0.0.0.0").split("."))


def sshd_config(host: Host) -> str:
    """Write the configuration of a host's sshd."""
    shown = ("PATH", "PYMIGRATE_ROOT")
    environment = " ".join(f"{name}={host.environment[name]}" for name in shown)
    return f"""\
ListenAddress {host.address}
HostKey {host.directory}/host_key
PidFile none
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
MaxStartups 100
SetEnv {environment}
Subsystem sftp internal-sftp
"""


def sshd(host: Host) -> str:
    """Start sshd and wait until it listens on port 22."""
    return f"""\
mkdir -p /run/sshd
setsid "$(command -v sshd)" -D -e -f {host.directory}/sshd_config \\
  < /dev/null > {host.directory}/sshd.log 2>&1 &
tries=0
until grep -q ':0016 00000000:0000 0A' /proc/net/tcp; do
  tries=$((tries + 1))
  if [ $tries -gt 1000 ] || ! kill -0 $!; then cat {host.directory}/sshd.log >&2; exit 1; fi
  sleep 0.005
done
"""


def files(host: Host, keys: Mapping[str, str], addresses: Mapping[str, str]) -> dict[Path, str]:
    """Lay out the files of a host below its directory: name -> content.

    `keys` holds `NAME` and `NAME.pub` of each host key, and of `user`, the users' key.
    """
    known = "".join(
        f"{name},{address} {' '.join(keys[f'{name}.pub'].split()[:2])}\n"
        for name, address in addresses.items()
        if f"{name}.pub" in keys
    )
    names = "".join(f"{address} {name}\n" for name, address in addresses.items())
    passwd = [line for line in Path("/etc/passwd").read_text().splitlines() if line]
    others = [line for line in passwd if not line.startswith("root:")]
    return {
        Path("host_key"): keys[host.name],
        Path("sshd_config"): sshd_config(host),
        Path("bin/pymigrate"): f'#!/bin/sh\nexec {REPOSITORY}/pymigrate "$@"\n',
        Path("etc/hostname"): f"{host.name}\n",
        Path("etc/hosts"): f"127.0.0.1 localhost\n{names}",
        Path("etc/resolv.conf"): "",
        Path("etc/passwd"): "\n".join([f"root:x:0:0:root:{host.home}:/bin/sh", *others, ""]),
        Path("etc/shadow"): "root:*:1::::::\n",  # "!" would be a locked account, refused by sshd
        Path("disk/home/.ssh/id_ed25519"): keys["user"],
        Path("disk/home/.ssh/id_ed25519.pub"): keys["user.pub"],
        Path("disk/home/.ssh/authorized_keys"): keys["user.pub"],
        Path("disk/home/.ssh/known_hosts"): known,
    }
