"""ARP packets in Ethernet frames; no I/O. RFC 826, RFC 5227 (probes and announcements)."""

from __future__ import annotations

import struct

from pymigrate.runtime.values import dataclass

ETHERTYPE = 0x0806
REQUEST = 1
REPLY = 2
BROADCAST = "ff:ff:ff:ff:ff:ff"
NO_MAC = "00:00:00:00:00:00"
NO_ADDRESS = "0.0.0.0"  # noqa: S104 nobody, not everybody

_FRAME = struct.Struct("!6s6sH")  # Ethernet: destination, source, type
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET, _IPV4 = 1, 0x0800


@dataclass(frozen=True)
class Packet:
    """What one host says or asks about an address: MACs with colons, addresses with dots."""

    operation: int
    sender_mac: str
    sender_address: str
    target_mac: str
    target_address: str

    def frame(self, destination: str = BROADCAST) -> bytes:
        """Encode it as an Ethernet frame from the sender."""
        packet = _PACKET.pack(
            _ETHERNET,
            _IPV4,
            6,
            4,
            self.operation,
            _mac(self.sender_mac),
            _address(self.sender_address),
            _mac(self.target_mac),
            _address(self.target_address),
        )
        return _FRAME.pack(_mac(destination), _mac(self.sender_mac), ETHERTYPE) + packet


def decode(frame: bytes) -> Packet | None:
    """Decode an Ethernet frame; None if it is not a whole ARP packet for IPv4 on Ethernet."""
    if len(frame) < _FRAME.size + _PACKET.size:
        return None
    _destination, _source, ethertype = _FRAME.unpack_from(frame)
    fields = _PACKET.unpack_from(frame, _FRAME.size)
    if ethertype != ETHERTYPE or fields[:4] != (_ETHERNET, _IPV4, 6, 4):
        return None
    operation, *ends = fields[4:]
    return Packet(operation, *(_written(end) for end in ends))


def announcements(mac: str, address: str) -> tuple[Packet, Packet]:
    """Return the two forms of "this address is here now".

    The request is what RFC 5227 wants; some systems update their cache only on the reply.
    """
    return (
        Packet(REQUEST, mac, address, NO_MAC, address),
        Packet(REPLY, mac, address, BROADCAST, address),
    )


def probe(mac: str, address: str) -> Packet:
    """Return the question who has the address, which leaves no trace in anyone's cache."""
    return Packet(REQUEST, mac, NO_ADDRESS, NO_MAC, address)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _address(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def _written(end: bytes) -> str:
    if len(end) == 4:
        return ".".join(str(byte) for byte in end)
    return ":".join(f"{byte:02x}" for byte in end)
