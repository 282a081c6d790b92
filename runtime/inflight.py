"""Packets on their way to a container whose cable is out: caught here, delivered where it wakes up.

A client that sends into the silence of a move gets no acknowledgement and doubles its waiting time
with each attempt (RFC 6298, 5.5): after a move of half a second it would look again after one. So
what it sent is caught while the cable is out, and put on the container's wire at the target, where
the container answers at once. To deliver an old packet, or one twice, does no harm: to IP a packet
may always be late or come again.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pymigrate.runtime import syscalls

MAX_FRAMES = 512
MAX_BYTES = 1 << 20
"""What is kept at most, the newest: a client repeats what is missing."""

_ETH_P_ALL = 3
_RECEIVE_BUFFER = 4 << 20
_SNAP = 1 << 18

# Each frame has struct virtio_net_hdr before it: whether its checksum is still to be computed, and
# where it is to be cut. Between virtual interfaces both are left to whoever needs them.
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_HEAD = 10


class Capture:
    """Listens on every interface of this network namespace for frames to one MAC address."""

    def __init__(self, mac: str) -> None:
        """Begin to listen; packet(7)."""
        self._mac = bytes.fromhex(mac.replace(":", ""))
        # To receive from every interface it must be born receiving: so what it takes before the
        # filter is in place is sorted out later.
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            syscalls.attach_filter(self._socket.fileno(), to_mac(mac))
        except BaseException:
            self._socket.close()
            raise

    def frames(self) -> list[bytes]:
        """Return what has come since, each frame once, in order; the newest if it is too much."""
        return newest(self._received())

    def _received(self) -> Iterable[bytes]:
        # The buffer is bounded, and so is this: a frame that comes meanwhile is one of the next.
        for _ in range(MAX_FRAMES * 16):
            try:
                frame, address = self._socket.recvfrom(_SNAP)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # one of the interfaces went down meanwhile
                    continue
                raise
            # What a bridge passes on is seen again as it leaves.
            if address[2] != socket.PACKET_OUTGOING and frame.startswith(self._mac, _HEAD):
                yield frame

    def close(self) -> None:
        """Stop; may be repeated."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Stop at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.close()


def deliver(host_interface: str, frames: Iterable[bytes]) -> int:
    """Put frames on a container's cable, at the host's end; returns how many went.

    Frames that the kernel does not take (the cable is out again, the queue is full) are dropped,
    as a network may.
    """
    delivered = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as cable:
        cable.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        cable.bind((host_interface, 0))
        for frame in frames:
            with contextlib.suppress(OSError):
                cable.send(frame)
                delivered += 1
    return delivered


def newest(frames: Iterable[bytes]) -> list[bytes]:
    """Keep the newest frames within the bounds, in order, repetitions left out."""
    kept: deque[bytes] = deque()
    seen: set[bytes] = set()
    size = 0
    for frame in frames:
        if frame in seen:
            continue
        kept.append(frame)
        seen.add(frame)
        size += len(frame)
        while len(kept) > MAX_FRAMES or size > MAX_BYTES:
            dropped = kept.popleft()
            seen.discard(dropped)
            size -= len(dropped)
    return list(kept)


def to_mac(mac: str) -> bytes:
    """Return a classic BPF program that accepts frames whose destination is `mac`.

    The instructions are those of linux/bpf_common.h: code, jump if true, jump if false, constant.
    """
    high, low = struct.unpack("!IH", bytes.fromhex(mac.replace(":", "")))
    load_word, load_half, jump_equal, give = 0x20, 0x28, 0x15, 0x06
    program = (
        (load_word, 0, 0, 0),
        (jump_equal, 0, 3, high),
        (load_half, 0, 0, 4),
        (jump_equal, 0, 1, low),
        (give, 0, 0, _SNAP),
        (give, 0, 0, 0),
    )
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
