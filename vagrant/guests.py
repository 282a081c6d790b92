"""What guests there are: which Debian, kernel, CRIU, cgroup version and CPU each one has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("PYMIGRATE_LAB_CACHE", "/var/cache/pymigrate-kernels"))
STATE = Path("/run/pymigrate-kernels")
NETWORK = "10.88"  # /16; the client's end of it is 10.88.0.1, guests are 10.88.255.NUMBER
CLIENT_ADDRESS = f"{NETWORK}.0.1"
PREFIX = 16
SOURCE = "/opt/pymigrate/source"  # where a guest has the checkout
VENV = "/opt/pymigrate/venv"
NEWEST_CRIU = "forky"  # the suite that has it
CPU = "max,-mpx,-pku,-la57"
"""All that QEMU can emulate, but for what few real machines have together."""
BARE_CPU = "SandyBridge,-avx"
"""A CPU of x86-64-v2. No Nehalem: CRIU wants XSAVE wherever the source had it."""
ARM_CPU = "cortex-a72"

PACKAGES = (
    "busybox-static",
    "hostname",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libseccomp2",
    "mount",
    "nftables",
    "openssh-client",
    "openssh-server",
    "procps",
    "python3",
)


@dataclass(frozen=True)
class Release:
    """What an image is made of: a Debian suite, and where its kernel and its CRIU come from.

    Every image of x86 has the newest CRIU below /opt, too; `newest` says that this is the one in
    use. `python_packages` are those beyond what pymigrate needs.
    """

    name: str
    suite: str
    python: str
    kernel_suite: str
    criu_packages: tuple[str, ...]
    newest: bool = False
    architecture: str = "amd64"
    python_packages: tuple[str, ...] = ()

    @property
    def is_native(self) -> bool:
        """Whether its programs run on this machine, too."""
        return self.architecture == {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)


@dataclass(frozen=True)
class Guest:
    """A virtual machine: `number` makes its addresses, `cgroup` is v1, v2 or hybrid.

    `lacks` is a capability, as setpriv(1) names it, that its root has not: so on rented machines.
    """

    name: str
    release: Release
    number: int
    cgroup: str = "v2"
    cpu: str = CPU
    lacks: str = ""

    @property
    def address(self) -> str:
        """Its address on the lab's network."""
        return f"{NETWORK}.255.{self.number}"

    @property
    def mac(self) -> str:
        """Its card's address."""
        return f"02:88:0a:58:ff:{self.number:02x}"


OLD = Release("6.1", "bookworm", "3.11", "bookworm", ("criu",))
MIDDLE = Release("6.12", "trixie", "3.13", "trixie", ("criu", "python3-pycriu"))
# The 4.1.1 of Debian 13 cannot dump a network namespace of a kernel without UDP-Lite.
NEW = Release("7.3", "trixie", "3.13", "trixie-backports", ("criu", "python3-pycriu"), newest=True)

ARM = Release(
    *("arm", "trixie", "3.13", "trixie", ("criu", "python3-pycriu")),
    architecture="arm64",
    python_packages=("hypothesis", "pyroute2", "pytest", "pytest-timeout"),
)

RELEASES = {release.name: release for release in (OLD, MIDDLE, NEW, ARM)}
GUESTS = {
    guest.name: guest
    for guest in (
        Guest("old", OLD, 1),
        Guest("middle", MIDDLE, 2),
        Guest("new", NEW, 3),
        Guest("old-v1", OLD, 4, cgroup="v1"),
        Guest("middle-hybrid", MIDDLE, 5, cgroup="hybrid"),
        Guest("new-bare", NEW, 6, cpu=BARE_CPU, lacks="sys_resource"),
        Guest("arm", ARM, 7, cpu=ARM_CPU),
        Guest("arm-other", ARM, 8, cpu=ARM_CPU),
    )
}
DEFAULT = ("old", "new")
