"""TLS 1.3 between two processes that know each other's certificate, and nobody else's.

Each side makes a key and a certificate for one connection and learns the other's by a way that is
already authenticated (SSH, see direct.py). Names and dates in them mean nothing: a peer is whoever
has the key of exactly that certificate. Keys are never in a file system.

TLS runs on memory (MemoryBIO), and the socket is read and written in large pieces: OpenSSL by
itself makes one system call for each 16 KiB sent, and two for each received.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from pymigrate.runtime.errors import Corrupted, HostKeyMismatch, ProtocolError, Unreachable
from pymigrate.transport.channel import StreamChannel, Timeout
from pymigrate.transport.frames import Buffer, Frame, Kind

PIECE = 256 << 10  # bytes that are encrypted, or read, before the socket is looked at again
MAX_CERTIFICATE = 4096  # bytes; ours have about 300
USER_TIMEOUT_MS = 30_000  # what was sent and not acknowledged for so long shows a cut


@dataclass(frozen=True)
class Identity:
    """A certificate (DER) and the key that nobody else has."""

    certificate: bytes
    _pem: bytes = field(repr=False)

    @classmethod
    def make(cls) -> Identity:
        """Make both up."""
        # Here: it takes 50 ms to load, and who is only given an identity needs none of it.
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.x509.oid import NameOID

        key = ed25519.Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pymigrate")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # It lives as long as the connection; the two hosts' clocks may differ by years.
            .not_valid_before(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
            .sign(key, None)
        )
        return cls(
            certificate.public_bytes(serialization.Encoding.DER),
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def pack(self) -> tuple[bytes, bytes]:
        """Return the certificate and both of them as PEM, to be kept as secret as the key."""
        return self.certificate, self._pem

    @classmethod
    def unpack(cls, certificate: bytes, pem: bytes) -> Identity:
        """Take what `pack` gave."""
        return cls(certificate, pem)

    def context(self, pinned: bytes, *, server: bool) -> ssl.SSLContext:
        """Allow TLS 1.3 with who has the key of ``pinned`` (DER), and nothing else.

        Raises ProtocolError if ``pinned`` is no certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate is compared as a whole, see handshake()
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusted itself, not as an authority
        if server:
            context.num_tickets = 0  # nobody comes back
        if len(pinned) > MAX_CERTIFICATE:
            message = f"a certificate of {len(pinned)} bytes"
            raise ProtocolError(message)
        try:
            context.load_verify_locations(cadata=pinned)
        except (ssl.SSLError, ValueError) as error:
            message = "what the other side sent is not a certificate"
            raise ProtocolError(message) from error
        # The ssl module reads keys from paths only; this one leads to memory.
        memory = os.memfd_create("pymigrate-key", os.MFD_CLOEXEC)
        try:
            os.write(memory, self._pem)
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
        return context


class TlsChannel(StreamChannel):
    """Frames over TLS; owns the socket. Made by ``connect`` and ``accept``."""

    _sealed = True

    def __init__(self, line: socket.socket, tls: Session, *, peer: str) -> None:
        """Use ``connect`` or ``accept``."""
        fd = line.detach()
        super().__init__(fd, fd, peer=peer)
        self._tls = tls
        self._place = memoryview(bytearray(PIECE))

    def _put(self, parts: Sequence[Buffer], timeout: float | None) -> None:
        pieces: list[memoryview] = []
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), PIECE):
                pieces.append(view[start : start + PIECE])
                if len(pieces[-1]) == PIECE:
                    self._seal_and_write(pieces, timeout)
                    pieces = []
        self._seal_and_write(pieces, timeout)

    def _seal_and_write(self, pieces: Sequence[memoryview], timeout: float | None) -> None:
        self._check_open()
        try:
            sealed = self._tls.seal(pieces)
        except ssl.SSLError as error:  # it failed before
            message = f"{self.peer}: connection lost ({_said(error)})"
            raise Unreachable(message) from error
        self._write([sealed], timeout)

    def receive(self, *, timeout: float | None = None) -> Frame:
        """Read until a frame is complete; a later call goes on where a time-out interrupted."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._receiving:
            while True:
                self._check_open()
                count = self._open(self._decoder.buffer())
                if count:
                    frame = self._decoder.filled(count)
                    if frame is not None:
                        return frame
                    continue
                arrived = self._read(self._place, timeout, deadline)
                if arrived == 0:  # no goodbye: somebody cut it
                    message = f"{self.peer}: connection lost"
                    raise Unreachable(message)
                self._tls.incoming.write(self._place[:arrived])

    def _open(self, place: memoryview) -> int:
        """Decrypt into ``place``; 0 if more must arrive first."""
        try:
            count = self._tls.open(place)
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                message = f"{self.peer}: connection lost ({_said(error)})"
                raise Unreachable(message) from error
            message = f"{self.peer}: bytes arrived altered ({_said(error)})"
            raise Corrupted(message) from error
        if count == 0:
            raise self._ended()
        return count

    def _say_goodbye(self) -> None:
        """Tell the other side that this end is no cut; it need not hear it."""
        try:
            os.write(self._write_fd, self._tls.goodbye())
        except OSError:  # also ssl.SSLError, after a failure
            return


@dataclass
class Session:
    """TLS between two buffers. OpenSSL's state is for one thread at a time, so there is a lock."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    _using: threading.Lock = field(default_factory=threading.Lock)

    def seal(self, pieces: Sequence[memoryview]) -> bytes:
        """Encrypt; return what is to be sent."""
        with self._using:
            for piece in pieces:
                done = 0
                while done < len(piece):
                    done += self.tls.write(piece[done:])  # at most one record of 16 KiB
            return self.outgoing.read()

    def open(self, place: memoryview) -> int:
        """Decrypt what has arrived into ``place``; 0 is the other side's goodbye.

        Raises ssl.SSLWantReadError if nothing complete has.
        """
        have = 0
        with self._using:
            try:
                while have < len(place):
                    count = self._read_into(place[have:])
                    have += count
                    if not count:
                        break
            except ssl.SSLWantReadError:
                if not have:
                    raise
        return have

    def _read_into(self, place: memoryview) -> int:
        # With a place to write to it returns a number; typeshed does not know that.
        return cast("int", self.tls.read(len(place), place))

    def goodbye(self) -> bytes:
        """Return what tells the other side that nothing more comes."""
        with self._using:
            with contextlib.suppress(ssl.SSLWantReadError):  # the answer is not waited for
                self.tls.unwrap()
            return self.outgoing.read()


def connect(
    address: tuple[str, int], identity: Identity, pinned: bytes, *, peer: str, timeout: float
) -> TlsChannel:
    """Connect to the one who has the key of ``pinned``; all of it within ``timeout`` seconds.

    Returns when the other side has accepted us too. Raises Unreachable, HostKeyMismatch (it is
    somebody else, or takes us for somebody else), ProtocolError.
    """
    deadline = time.monotonic() + timeout
    where = f"{peer} port {address[1]}"
    if not 0 < address[1] < 65536:
        message = f"{peer} announced the port {address[1]}"
        raise ProtocolError(message)
    try:
        line = socket.create_connection(address, timeout)
    except TimeoutError as error:
        message = f"{where} did not answer within {timeout:g} s"
        raise Unreachable(message, hint="does a firewall allow it?") from error
    except OSError as error:
        message = f"{where} cannot be reached: {(error.strerror or str(error)).lower()}"
        raise Unreachable(message, hint="does a firewall allow it?") from error
    with line:
        session = _handshake(line, identity.context(pinned, server=False), pinned, where, deadline)
        channel = TlsChannel(line, session, peer=peer)
    try:
        # A TLS 1.3 client is done before the server has looked at its certificate.
        welcome = channel.receive(timeout=max(0.0, deadline - time.monotonic()))
        if welcome.kind is not Kind.PING:
            message = f"{where} began with {welcome.kind.name}"
            raise ProtocolError(message)
    except Timeout as error:
        channel.close()
        message = f"{where} did not answer within {timeout:g} s"
        raise Unreachable(message) from error
    except BaseException:
        channel.close()
        raise
    return channel


def accept(
    line: socket.socket, context: ssl.SSLContext, pinned: bytes, *, peer: str, timeout: float
) -> TlsChannel:
    """Take a caller in, if it has the key of ``pinned``; closes ``line`` otherwise.

    ``context`` is Identity.context()'s. Raises Unreachable, HostKeyMismatch (somebody else),
    ProtocolError.
    """
    with line:
        deadline = time.monotonic() + timeout
        session = _handshake(line, context, pinned, "the caller", deadline)
        channel = TlsChannel(line, session, peer=peer)
    try:
        channel.send(Frame(Kind.PING), timeout=timeout)
    except BaseException:
        channel.close()
        raise
    return channel


def _handshake(
    line: socket.socket, context: ssl.SSLContext, pinned: bytes, who: str, deadline: float
) -> Session:
    # Nagle's algorithm would keep the end of each piece back until the last was acknowledged.
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.protocol is ssl.PROTOCOL_TLS_SERVER
    tls = context.wrap_bio(incoming, outgoing, server_side=server)
    try:
        try:
            while not _step(tls):
                _exchange(line, incoming, outgoing, deadline)
        finally:
            _send(line, outgoing, deadline)  # the end of the handshake, or why there is none
    except TimeoutError as error:
        message = f"{who} did not finish the TLS handshake in time"
        raise Unreachable(message) from error
    except ssl.SSLCertVerificationError as error:
        message = f"{who} has another certificate than was agreed"
        raise HostKeyMismatch(message) from error
    except ssl.SSLError as error:
        message = f"{who}: no TLS 1.3 connection: {_said(error)}"
        raise ProtocolError(message) from error
    except OSError as error:
        message = f"{who}: connection lost in the TLS handshake"
        raise Unreachable(message) from error
    # OpenSSL has checked that the certificate is trusted; that it is this very one, we do.
    if tls.getpeercert(binary_form=True) != pinned:
        message = f"{who} has another certificate than was agreed"
        raise HostKeyMismatch(message)
    return Session(tls, incoming, outgoing)


def _step(tls: ssl.SSLObject) -> bool:
    """Go on with the handshake; False if it waits for the other side."""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _exchange(
    line: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, deadline: float
) -> None:
    _send(line, outgoing, deadline)
    line.settimeout(_left(deadline))
    data = line.recv(16 << 10)
    if not data:
        raise ConnectionResetError
    incoming.write(data)


def _send(line: socket.socket, outgoing: ssl.MemoryBIO, deadline: float) -> None:
    if outgoing.pending:
        line.settimeout(_left(deadline))
        line.sendall(outgoing.read())


def _left(deadline: float) -> float:
    """Return the seconds left; TimeoutError if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _said(error: ssl.SSLError) -> str:
    return (error.reason or "unknown error").lower().replace("_", " ")
