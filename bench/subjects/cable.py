"""A network for peers that are given one by path: a namespace on each host, one of them plugged.

It is what a careful operator would set up by hand: same address and MAC on both hosts, so the
client need not learn anything, and a gratuitous ARP when the cable is plugged, so the switch learns
at once. The kernel sends it when a MAC address is set, also if it is the same, where arp_notify
is on (Documentation/networking/ip-sysctl.rst).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab import Host
from tests.lab.host import PREFIX


@dataclass(frozen=True)
class Cable:
    """One subject's address, on whichever host it is plugged into."""

    name: str
    address: str

    @property
    def namespace(self) -> str:
        """The path of the network namespace, on each host."""
        return f"/run/netns/{self.name}"

    @property
    def mac(self) -> str:
        """A locally administered MAC address made of the IP address."""
        return "02:88:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))

    @property
    def unplugging(self) -> str:
        """The command for it, on the host."""
        return f"ip link set {self.name} nomaster\n"

    @property
    def plugging(self) -> str:
        """The commands that plug it in and announce its address, on the host."""
        return f"""\
ip link set {self.name} master pymigrate0
ip -n {self.name} link set eth0 address {self.mac}
"""

    def lay(self, host: Host) -> None:
        """Make the namespace on a host, not plugged in, in place of one that was used.

        A used one may be locked: CRIU forbids all traffic before it kills what it dumped.
        """
        host.sh(
            f"""\
if [ -e {self.namespace} ]; then ip link delete {self.name}; ip netns delete {self.name}; fi
ip netns add {self.name}
ip link add name {self.name} type veth peer name eth0 address {self.mac} netns {self.name}
ip link set {self.name} up
ip -n {self.name} link set lo up
ip -n {self.name} address add {self.address}/{PREFIX} dev eth0
ip -n {self.name} link set eth0 up
ip netns exec {self.name} sh -c 'echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify'
"""
        )

    def plug(self, host: Host, unplugged: Host) -> None:
        """Take it out of one host and plug it into another."""
        unplugged.sh(self.unplugging)
        host.sh(self.plugging)
