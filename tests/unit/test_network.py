"""The codecs of the network, and which addresses and names a container gets."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from pymigrate.runtime import addresses, arp, digests, rtnetlink
from pymigrate.runtime.errors import HostError, UsageError
from pymigrate.runtime.network import mac_of
from pymigrate.runtime.state import NetworkSettings

macs = some.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
ips = some.ip_addresses(v=4).map(str)
packets = some.builds(arp.Packet, some.integers(0, 65535), macs, ips, macs, ips)

# tcpdump -xx of "arping -U 10.88.0.5": Ethernet, then ARP.
ANNOUNCEMENT = bytes.fromhex(
    "ffffffffffff 02700a580005 0806"  # everybody, us, ARP
    "0001 0800 06 04 0001"  # Ethernet, IPv4, lengths, request
    "02700a580005 0a580005"  # sender: MAC, 10.88.0.5
    "000000000000 0a580005"  # target: nobody, 10.88.0.5
)


class TestArp:
    """Packets as RFC 826 draws them."""

    def test_an_announcement_is_what_arping_sends(self) -> None:
        request, reply = arp.announcements("02:70:0a:58:00:05", "10.88.0.5")

        assert request.frame() == ANNOUNCEMENT
        assert reply.operation == arp.REPLY
        assert reply.sender_address == reply.target_address == "10.88.0.5"

    def test_a_probe_leaves_no_trace_in_caches(self) -> None:
        assert arp.probe("02:00:00:00:00:01", "10.0.0.1").sender_address == "0.0.0.0"

    @given(packets)
    def test_decode_undoes_encode(self, packet: arp.Packet) -> None:
        assert arp.decode(packet.frame()) == packet
        assert arp.decode(packet.frame() + bytes(18)) == packet  # padded to 60 bytes

    @given(some.binary(max_size=64))
    def test_anything_else_is_none_or_a_packet(self, frame: bytes) -> None:
        packet = arp.decode(frame)

        assert packet is None or len(frame) >= 42

    @pytest.mark.parametrize("changed", [12, 14, 16, 18, 19])
    def test_other_protocols_are_not_arp(self, changed: int) -> None:
        frame = bytearray(ANNOUNCEMENT)
        frame[changed] ^= 0xFF

        assert arp.decode(bytes(frame)) is None


class TestAddresses:
    """What a container is given."""

    def test_the_mac_follows_from_the_address(self) -> None:
        assert addresses.mac_for("10.88.0.5/16") == "02:70:0a:58:00:05"
        assert addresses.mac_for("fd00::5/64").startswith("02:70:")

    def test_a_second_address_is_of_ipv6_and_our_bridge_has_the_first_of_its_network(self) -> None:
        found = addresses.parse_second("fd00:88::5")
        assert str(found) == "fd00:88::5/64"
        assert addresses.second_gateway(found) == "fd00:88::1"
        assert addresses.second_gateway(addresses.parse_second("fd00:88::1")) is None
        assert addresses.second_gateway(addresses.parse_second("fd00:88::5/127")) is None
        with pytest.raises(UsageError, match="no IPv6 address"):
            addresses.parse_second("10.88.0.5/16")

    def test_a_mac_that_is_asked_for_wins(self) -> None:
        assert mac_of(NetworkSettings(address="10.88.0.5/16", mac="0A:00:00:00:00:01")) == (
            "0a:00:00:00:00:01"
        )
        assert mac_of(NetworkSettings()) is None

    @pytest.mark.parametrize(
        "mac", ["", "02:00:00:00:00", "01:00:5e:00:00:01", "00:00:00:00:00:00", "x2:00:00:00:00:01"]
    )
    def test_a_mac_of_no_interface_is_refused(self, mac: str) -> None:
        with pytest.raises(UsageError):
            addresses.check_mac(mac)

    def test_addresses_of_no_machine_are_refused(self) -> None:
        assert str(addresses.parse_for_container("10.88.0.5/16")) == "10.88.0.5/16"
        bad = "10.88.0.0/16 10.88.255.255/16 10.88.0.1/16 127.0.0.1/8 0.0.0.0/0 224.0.0.1/4 ::1/128"
        for text in bad.split():
            with pytest.raises(UsageError):
                addresses.parse_for_container(text)

    @pytest.mark.parametrize("address", ["10.88.0.5", "10.88.0.500/16", "", "10.88.0.5/33"])
    def test_a_wrong_address_is_refused(self, address: str) -> None:
        with pytest.raises(UsageError, match="prefix length"):
            addresses.parse(address)

    def test_a_wrong_gateway_is_refused(self) -> None:
        with pytest.raises(UsageError, match="gateway"):
            addresses.parse_gateway("10.88.0.1/16")

    def test_interface_names_fit_and_differ_by_host_and_container(self) -> None:
        name = addresses.interface_name("0123456789ab", "a" * 63)

        assert len(os.fsencode(name)) < 16  # IFNAMSIZ, with the zero at the end
        assert name == addresses.interface_name("0123456789ab", "a" * 63)
        assert name != addresses.interface_name("0123456789ab", "a" * 62)
        assert name != addresses.interface_name("0123456789ac", "a" * 63)

    def test_the_lowest_free_address_is_chosen(self) -> None:
        assert addresses.choose_address([]) == "10.88.0.2/16"
        assert addresses.choose_address(["10.88.0.2/16", None, "10.88.0.4"]) == "10.88.0.3/16"

    def test_a_full_subnet_is_an_error(self) -> None:
        assert addresses.choose_address([], "10.0.0.1/30") == "10.0.0.2/30"
        with pytest.raises(HostError, match="taken"):
            addresses.choose_address(["10.0.0.2"], "10.0.0.1/30")


def decoded(kind: type[ifinfmsg | ifaddrmsg | rtmsg | tcmsg], body: bytes) -> dict[str, object]:
    """Let pyroute2 read a body of ours; attributes as a dictionary beside the fixed fields."""
    message = kind(rtnetlink.message(16, 0, 1, body))
    message.decode()
    return {**{key: message[key] for key in message if key != "attrs"}, **dict(message["attrs"])}


class TestRtnetlink:
    """Messages, against pyroute2."""

    def test_a_bridge(self) -> None:
        found = decoded(ifinfmsg, rtnetlink.bridge_body("pymigrate0", "02:00:00:00:00:01"))

        assert found["flags"] == found["change"] == 0
        assert found["IFLA_IFNAME"] == "pymigrate0"
        assert found["IFLA_ADDRESS"] == "02:00:00:00:00:01"
        assert dict(found["IFLA_LINKINFO"]["attrs"])["IFLA_INFO_KIND"] == "bridge"  # type: ignore[index]

    def test_a_veth_pair(self) -> None:
        body = rtnetlink.veth_body(
            "pm1", master=7, mtu=1400, peer="eth0", peer_mac="02:00:00:00:00:05", peer_netns_fd=9
        )
        found = decoded(ifinfmsg, body)
        details = dict(found["IFLA_LINKINFO"]["attrs"])  # type: ignore[index]
        peer = dict(dict(details["IFLA_INFO_DATA"]["attrs"])["VETH_INFO_PEER"]["attrs"])

        assert (found["IFLA_IFNAME"], found["IFLA_MASTER"], found["IFLA_MTU"]) == ("pm1", 7, 1400)
        assert details["IFLA_INFO_KIND"] == "veth"
        assert peer["IFLA_IFNAME"] == "eth0"
        assert peer["IFLA_ADDRESS"] == "02:00:00:00:00:05"
        assert peer["IFLA_NET_NS_FD"] == 9

    def test_an_address(self) -> None:
        found = decoded(ifaddrmsg, rtnetlink.address_body(3, IPv4Interface("10.88.0.5/16")))

        assert (found["family"], found["prefixlen"], found["index"]) == (socket.AF_INET, 16, 3)
        assert found["IFA_LOCAL"] == found["IFA_ADDRESS"] == "10.88.0.5"
        assert found["IFA_BROADCAST"] == "10.88.255.255"

    @pytest.mark.parametrize("text", ["10.88.0.5/16", "10.0.0.1/32", "fd00::5/64"])
    def test_addresses_can_be_read_back(self, text: str) -> None:
        address = IPv6Interface(text) if ":" in text else IPv4Interface(text)

        assert rtnetlink.parse_address(rtnetlink.address_body(4, address)) == (4, address)

    def test_a_default_route(self) -> None:
        body = rtnetlink.default_route_body(3, IPv4Address("10.88.0.1"))
        found = decoded(rtmsg, body)

        assert (found["dst_len"], found["table"], found["type"]) == (0, 254, 1)
        assert (found["RTA_GATEWAY"], found["RTA_OIF"]) == ("10.88.0.1", 3)

    def test_a_token_bucket(self) -> None:
        body = rtnetlink.tbf_body(7, rate=1_250_000, burst=70_000, limit=195_000)
        found = decoded(tcmsg, body)

        assert (found["index"], found["parent"]) == (7, 0xFFFFFFFF)
        assert found["TCA_KIND"] == "tbf"
        options = rtnetlink.attributes(rtnetlink.attributes(body[20:])[rtnetlink.TCA_OPTIONS])
        parameters = options[rtnetlink.TCA_TBF_PARMS]
        assert len(parameters) == 36
        assert struct.unpack_from("=I", parameters, 8) == (1_250_000,)
        assert struct.unpack_from("=I", parameters, 24) == (195_000,)

    def test_a_link_can_be_read(self) -> None:
        message = ifinfmsg()
        message["index"], message["flags"] = 5, rtnetlink.IFF_UP | rtnetlink.IFF_LOWER_UP
        message["attrs"] = [
            ("IFLA_IFNAME", "eth0"),
            ("IFLA_ADDRESS", "02:00:00:00:00:05"),
            ("IFLA_MTU", 1500),
            ("IFLA_LINK", 12),
            ("IFLA_LINK_NETNSID", 0),
            ("IFLA_OPERSTATE", "UP"),
            ("IFLA_MASTER", 3),
            ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
        ]
        message.encode()

        (found,) = rtnetlink.messages(bytes(message.data))
        assert rtnetlink.parse_link(found.body) == rtnetlink.Link(
            index=5,
            name="eth0",
            kind="veth",
            mac="02:00:00:00:00:05",
            mtu=1500,
            up=True,
            carrier=True,
            forwards=True,
            master=3,
            peer_index=12,
            peer_netns=0,
            alias="",
        )

    @given(some.dictionaries(some.integers(1, 0x3FFF), some.binary(max_size=40)))
    def test_attributes_can_be_read_back(self, row: dict[int, bytes]) -> None:
        data = b"".join(rtnetlink.attribute(kind, payload) for kind, payload in row.items())

        assert rtnetlink.attributes(data) == row

    @given(some.binary(max_size=200))
    def test_nonsense_ends_and_does_not_throw(self, data: bytes) -> None:
        for message in rtnetlink.messages(data):
            rtnetlink.attributes(message.body)

    def test_an_error_has_the_kernel_own_words(self) -> None:
        words = rtnetlink.text(rtnetlink.NLMSGERR_ATTR_MSG, "Invalid prefix")
        body = struct.pack("=i", -errno.EINVAL) + rtnetlink.message(24, 0, 1, b"")[:16] + words
        error = rtnetlink.failure(rtnetlink.Message(2, rtnetlink.NLM_F_ACK_TLVS, 1, body))

        assert error is not None
        assert error.errno == errno.EINVAL
        assert error.strerror == "Invalid argument: Invalid prefix"

    def test_no_error_is_none(self) -> None:
        body = struct.pack("=i", 0) + bytes(16)

        assert rtnetlink.failure(rtnetlink.Message(2, 0x100, 1, body)) is None


def test_what_names_are_hashed_by_is_the_hash_of_all_others() -> None:
    assert hashlib.sha256(b"name").hexdigest() == digests.sha256(b"name").hexdigest()
    assert hashlib.sha256(b"").digest() == digests.sha256(b"").digest()
