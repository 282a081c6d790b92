"""SSH by paramiko: connect, be sure who answers, prove who we are, start the agent there.

A host key is accepted only if known_hosts has it; nothing is ever added there. aes128-gcm comes
first, for paramiko's own first choice costs more than twice the CPU. Data is sent in views of
32 KiB: a big ``bytes`` given to ``sendall`` is copied again for each packet.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import paramiko
from paramiko.buffered_pipe import BufferedPipe
from paramiko.pkey import PublicBlob
from paramiko.ssh_exception import IncompatiblePeer

from pymigrate.runtime.errors import (
    AuthenticationFailed,
    ProtocolError,
    PymigrateError,
    TransportError,
    Unreachable,
    UsageError,
)
from pymigrate.transport.agent_failure import after_frames, before_first_frame
from pymigrate.transport.channel import Timeout
from pymigrate.transport.destination import Destination
from pymigrate.transport.frames import Buffer, Decoder, Frame, encode_header
from pymigrate.transport.known_hosts import KnownHosts, check, fingerprint
from pymigrate.transport.limit import RateLimit
from pymigrate.transport.messages import printable
from pymigrate.transport.ssh_settings import Settings, Timeouts, config_text, settle

logger = logging.getLogger(__name__)

CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
PIECE = 32 << 10  # bytes in one packet: what OpenSSH's channels take
WINDOW = 16 << 20  # bytes that the other side may send before we read them
GATHER_LIMIT = 64 << 10  # payloads up to this size travel in one piece with their header
TICK = 0.25  # seconds between looks at a deadline: paramiko has one time-out for both directions
LAST_WORDS = 2.0  # seconds to wait for an exit status and standard error after the end
STDERR_TAIL = 8192  # bytes kept of what the agent said on standard error
KEEPALIVE = 10  # seconds
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
MAX_JUMPS = 4


def resolve(
    destination: Destination,
    *,
    identity: Path | None = None,
    known_hosts: Path | None = None,
    ssh_config: Path | None = None,
) -> Settings:
    """Ask ssh_config(5) about a destination; what the person typed comes first.

    Without ``ssh_config`` it is ~/.ssh/config, if there is one. Raises UsageError.
    """
    text = config_text(destination, ssh_config)
    try:
        options = paramiko.SSHConfig.from_text(text).lookup(destination.host)
    except (paramiko.SSHException, ValueError) as error:
        message = f"the SSH configuration is not understood: {error}"
        raise UsageError(message) from error
    return settle(destination, options, identity=identity, known_hosts=known_hosts)


def connect(
    destination: Destination,
    *,
    identity: Path | None = None,
    known_hosts: Path | None = None,
    ssh_config: Path | None = None,
    timeouts: Timeouts | None = None,
) -> Connection:
    """Reach a host and log in there.

    Raises Unreachable, HostKeyMismatch, AuthenticationFailed, ProtocolError (no SSH there, or no
    common algorithms), UsageError.
    """
    settings = resolve(
        destination, identity=identity, known_hosts=known_hosts, ssh_config=ssh_config
    )
    # Else paramiko's threads print tracebacks of failures that we report ourselves.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    with contextlib.ExitStack() as undo:
        line = _open_line(settings, undo, identity, ssh_config, timeouts or Timeouts())
        transport = _log_in(settings, line, undo, timeouts or Timeouts())
        return Connection(settings, transport, timeouts or Timeouts(), undo.pop_all())


def _open_line(
    settings: Settings,
    undo: contextlib.ExitStack,
    identity: Path | None,
    ssh_config: Path | None,
    timeouts: Timeouts,
) -> socket.socket | paramiko.Channel:
    """Get a way for bytes to the host: a socket, a program's, or through other hosts."""
    if settings.proxy_command is not None:
        return _start_proxy(settings.proxy_command, undo)
    if not settings.jumps:
        return _dial(settings, undo, timeouts)
    if len(settings.jumps) > MAX_JUMPS:
        message = f"{settings.name}: more than {MAX_JUMPS} hosts to jump over"
        raise UsageError(message)
    through: socket.socket | paramiko.Channel | None = None
    for jump, following in zip(settings.jumps, [*settings.jumps[1:], None], strict=True):
        station = replace(
            resolve(Destination.parse(jump.strip()), identity=identity, ssh_config=ssh_config),
            jumps=(),
            proxy_command=None,
        )
        line = _dial(station, undo, timeouts) if through is None else through
        transport = _log_in(station, line, undo, timeouts)
        target = settings
        if following is not None:
            target = resolve(Destination.parse(following.strip()), ssh_config=ssh_config)
        try:
            through = transport.open_channel(
                "direct-tcpip",
                (target.host, target.port),
                ("127.0.0.1", 0),
                timeout=timeouts.connect,
            )
        except (paramiko.SSHException, EOFError) as error:
            message = f"{settings.name} cannot be reached through {station.name}: {error}"
            raise Unreachable(message) from error
    if through is None:
        message = f"{settings.name}: ProxyJump names no host"
        raise UsageError(message)
    return through


def _start_proxy(command: str, undo: contextlib.ExitStack) -> socket.socket:
    """Run ProxyCommand, without a shell, with one end of a socket pair for input and output."""
    ours, theirs = socket.socketpair()
    undo.callback(ours.close)
    with theirs:
        try:
            child = subprocess.Popen(
                shlex.split(command), stdin=theirs.fileno(), stdout=theirs.fileno()
            )
        except (OSError, ValueError) as error:
            message = f"the ProxyCommand {command!r} cannot be run: {error}"
            raise UsageError(message) from error
    undo.callback(child.wait)
    undo.callback(child.terminate)
    return ours


def _dial(settings: Settings, undo: contextlib.ExitStack, timeouts: Timeouts) -> socket.socket:
    try:
        line = socket.create_connection((settings.host, settings.port), timeouts.connect)
    except socket.gaierror as error:
        unknown = Unreachable(
            f"{settings.name}: the name {settings.host} is not known ({error.strerror})",
            hint="check the spelling, /etc/hosts, or HostName in the SSH configuration",
        )
        unknown.temporary = error.errno == socket.EAI_AGAIN
        raise unknown from error
    except TimeoutError as error:
        message = f"{settings.where} did not answer within {timeouts.connect:g} s"
        raise Unreachable(message, hint="is the host up, and does a firewall allow it?") from error
    except OSError as error:
        message = f"{settings.where} cannot be reached: {(error.strerror or str(error)).lower()}"
        raise Unreachable(message, hint=f"does sshd listen on port {settings.port}?") from error
    undo.callback(line.close)
    # Requests are small, and each waits for its answer: Nagle's algorithm would add 40 ms to some.
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What was sent and not acknowledged for so long shows a cut; TCP alone waits 15 minutes.
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return line


def _log_in(
    settings: Settings,
    line: socket.socket | paramiko.Channel,
    undo: contextlib.ExitStack,
    timeouts: Timeouts,
) -> paramiko.Transport:
    try:
        known = KnownHosts.load(settings.known_hosts)
    except OSError as error:
        message = f"known hosts cannot be read: {error}"
        raise UsageError(message) from error
    try:
        transport = paramiko.Transport(line, default_window_size=WINDOW)
    except paramiko.SSHException as error:
        raise _not_ssh(settings, error) from error
    undo.callback(transport.close)
    transport.daemon = True
    transport.banner_timeout = timeouts.banner
    transport.auth_timeout = timeouts.authentication
    options = transport.get_security_options()
    options.ciphers = [cipher for cipher in CIPHERS if cipher in options.ciphers]
    options.key_types = _known_first(options.key_types, known.key_types(settings.host_key_name))
    try:
        # When its time is up it returns as if all were well; then there is no key.
        transport.start_client(timeout=timeouts.banner + timeouts.connect)
        key = transport.get_remote_server_key()
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _not_ssh(settings, error) from error
    name = settings.host_key_name
    check(known, settings.host, settings.port, name, key.get_name(), key.asbytes())
    transport.set_keepalive(KEEPALIVE)
    _authenticate(settings, transport)
    return transport


class _Unread(BufferedPipe):  # type: ignore[type-arg]
    """What has come and was not read yet; paramiko would take as much as a peer cares to send."""

    def feed(self, data: bytes) -> None:
        """Take data; raises SSHException, which ends the connection, beyond the window."""
        if len(self) + len(data) > WINDOW:
            raise paramiko.SSHException("the other side sends more than it was allowed to")
        super().feed(data)


def open_session(transport: paramiko.Transport, timeout: float) -> paramiko.Channel:
    """Open a session that never holds more than WINDOW bytes of each stream in memory."""
    session = transport.open_session(timeout=timeout)
    session.in_buffer, session.in_stderr_buffer = _Unread(), _Unread()
    return session


def _not_ssh(settings: Settings, error: Exception) -> TransportError:
    if isinstance(error, IncompatiblePeer):
        return ProtocolError(f"{settings.where}: no algorithm of SSH in common: {error}")
    if "banner" in str(error) or "protocol version" in str(error):
        return ProtocolError(
            f"{settings.where}: what answers is not SSH ({printable(str(error))})",
            hint="is this the right port, and is sshd still willing (MaxStartups)?",
        )
    return Unreachable(
        f"{settings.where}: connection lost while SSH began ({str(error) or 'hung up'})"
    )


def _known_first(offered: Sequence[str], known: Sequence[str]) -> list[str]:
    """Ask for a host key of a type that we know, so that another one does not look changed."""
    aliases = {"rsa-sha2-512": "ssh-rsa", "rsa-sha2-256": "ssh-rsa"}
    return sorted(offered, key=lambda kind: aliases.get(kind, kind) not in known)


def _authenticate(settings: Settings, transport: paramiko.Transport) -> None:
    """Offer our keys one by one: named ones, the agent's, the usual files."""
    tried: list[str] = []
    locked: list[str] = []
    who = f"{settings.user} on {settings.where}"
    with contextlib.closing(paramiko.Agent()) as agent:
        for name, key in _keys(settings, agent, locked):
            try:
                more = transport.auth_publickey(settings.user, key)
            except paramiko.BadAuthenticationType as error:
                message = f"{who}: keys are not accepted, only {', '.join(error.allowed_types)}"
                raise AuthenticationFailed(message) from error
            except (paramiko.SSHException, EOFError) as error:
                logger.debug("%s: key %s refused: %s", settings.name, name, error)
                tried.append(name)
                if not transport.is_active():
                    break
                continue
            if not more:
                return
            message = f"{who}: the key {name} is not enough, {', '.join(more)} is wanted too"
            raise AuthenticationFailed(message)
    hint = f"put a public key into ~{settings.user}/.ssh/authorized_keys there, or use --identity"
    if locked:
        hint = f"unlock it for the SSH agent: ssh-add {locked[0]}"
        tried += [f"{name} (has a passphrase, and the agent does not hold it)" for name in locked]
    if not transport.is_active() and tried:
        hint = "name the right key with --identity: hosts hang up after a few wrong ones"
    offered = "; offered: " + ", ".join(tried) if tried else ": there is no key to offer"
    message = f"{who}: authentication refused{offered}"
    raise AuthenticationFailed(message, hint=hint)


def _keys(
    settings: Settings, agent: paramiko.Agent, locked: list[str]
) -> Iterator[tuple[str, paramiko.PKey]]:
    for file in settings.identities:
        yield from _read_key(file, locked)
    # A key that needs a passphrase may be held by the agent; IdentitiesOnly allows just that one.
    allowed = {_public_half(Path(name)) for name in locked} if settings.identities_only else None
    for key in agent.get_keys():
        if allowed is None or key.asbytes() in allowed:
            yield f"{key.get_name()} {fingerprint(key.asbytes())} of the agent", key
    if not settings.identities_only:
        for name in DEFAULT_KEYS:
            file = Path("~/.ssh").expanduser() / name
            if file not in settings.identities:
                yield from _read_key(file, locked)


def _public_half(file: Path) -> bytes:
    try:
        return bytes(PublicBlob.from_file(f"{file}.pub").key_blob)
    except (OSError, ValueError):
        return b""


def _read_key(file: Path, locked: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """Give the key in a file, if there is one of a kind that paramiko knows."""
    if not file.is_file():
        return
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key = kind.from_private_key_file(str(file))
        except paramiko.PasswordRequiredException:
            locked.append(str(file))
            return
        except (paramiko.SSHException, ValueError, IndexError):
            continue  # a key of another kind
        except OSError as error:
            message = f"the key {file} cannot be read: {error.strerror}"
            raise UsageError(message) from error
        certificate = Path(f"{file}-cert.pub")
        if certificate.is_file():
            key.load_certificate(str(certificate))
        yield str(file), key
        return
    message = f"{file} is not a private key that can be used"
    raise UsageError(message, hint="Ed25519, ECDSA and RSA keys can, in OpenSSH's or PEM format")


class Connection:
    """A login at a host. Closing it closes the channels that were opened on it."""

    def __init__(
        self,
        settings: Settings,
        transport: paramiko.Transport,
        timeouts: Timeouts,
        undo: contextlib.ExitStack,
    ) -> None:
        """Use ``connect`` instead."""
        self.settings = settings
        self.peer = settings.name
        self._transport = transport
        self._timeouts = timeouts
        self._undo = undo

    @property
    def cipher(self) -> str:
        """Name the cipher that our data is sent with."""
        return self._transport.local_cipher

    @property
    def address(self) -> str | None:
        """Give the host's address; None if it is reached through other hosts or a program."""
        line = self._transport.sock
        through = self.settings.jumps or self.settings.proxy_command is not None
        return None if through else str(line.getpeername()[0])

    def open_agent(self, command: Sequence[str]) -> SshChannel:
        """Run ``command`` there and speak frames with its standard input and output.

        That it does not exist (MissingFeature) or is not our agent (ProtocolError) shows at the
        first ``receive``.
        """
        try:
            session = open_session(self._transport, self._timeouts.start)
            session.exec_command(shlex.join(command))
        except (paramiko.SSHException, EOFError, OSError) as error:
            message = f"{self.peer}: no program can be started there ({str(error) or 'hung up'})"
            raise Unreachable(message) from error
        return SshChannel(self, session, command)

    @property
    def alive(self) -> bool:
        """Say whether the connection still stands, as far as anybody knows."""
        return self._transport.is_active()

    def close(self) -> None:
        """Hang up; may be repeated."""
        self._undo.close()

    def __enter__(self) -> Connection:
        """Hang up at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.close()


class SshChannel:
    """Frames over the standard input and output of a program at the other host."""

    def __init__(
        self, connection: Connection, session: paramiko.Channel, command: Sequence[str]
    ) -> None:
        """Use ``Connection.open_agent`` instead."""
        self.peer = connection.peer
        self.heard = time.monotonic()
        self.limit: RateLimit | None = None
        self._connection = connection
        self._session = session
        self._command = command[0]
        self._decoder = Decoder()
        self._unread = memoryview(b"")
        self._spoken = False  # a frame has arrived: the other side is what we think
        self._sending = threading.Lock()
        self._closing = False
        self._stderr = bytearray()
        session.settimeout(TICK)
        self._listener = threading.Thread(target=self._listen, name="ssh-stderr", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Keep the end of standard error; unread it would fill the window and stop the agent."""
        while True:
            try:
                said = self._session.recv_stderr(PIECE)
            except TimeoutError:
                continue
            if not said:
                return
            self._stderr = (self._stderr + said)[-STDERR_TAIL:]

    @property
    def stderr(self) -> str:
        """Give the end of what the agent wrote to standard error."""
        return printable(self._stderr.decode("utf-8", "replace"))

    def send(self, frame: Frame, *, timeout: float | None = None) -> None:
        """Send the frame in packets of 32 KiB."""
        header = encode_header(frame, sealed=True)
        parts: list[Buffer]
        if frame.size <= GATHER_LIMIT:
            parts = [header + bytes(frame.payload)]
        else:
            parts = [header, frame.payload]
        with self._sending:
            for part in parts:
                self._send_all(memoryview(part).cast("B"), timeout)

    def _send_all(self, view: memoryview, timeout: float | None) -> None:
        if self.limit is None:
            self._send_now(view, timeout)
            return
        for at in range(0, len(view), self.limit.piece):
            piece = view[at : at + self.limit.piece]
            self._wait(self.limit.reserve(len(piece)))
            self._send_now(piece, timeout)

    def _wait(self, seconds: float) -> None:
        """Wait for a turn, unless the channel is closed meanwhile."""
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, TICK))

    def _send_now(self, view: memoryview, timeout: float | None) -> None:
        moved = time.monotonic()
        while view:
            self._check_open()
            try:
                sent = self._session.send(view[:PIECE])  # type: ignore[arg-type] # views are fine
            except TimeoutError:
                if timeout is not None and time.monotonic() - moved >= timeout:
                    message = f"{self.peer} has taken nothing for {timeout:g} s"
                    raise Unreachable(message) from None
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                self._check_open()
                raise Unreachable(f"{self.peer}: connection lost") from error
            if sent == 0:
                self._check_open()
                message = f"{self.peer}: connection lost"
                raise Unreachable(message)
            moved = time.monotonic()
            view = view[sent:]

    def receive(self, *, timeout: float | None = None) -> Frame:
        """Wait for a frame; deadlines are kept to a quarter of a second."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._unread:
                frame = self._decode()
                if frame is not None:
                    self._spoken = True
                    return frame
            self._check_open()
            try:
                arrived = self._session.recv(WINDOW)  # a smaller read moves what is left behind
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    message = f"{self.peer} has sent nothing for {timeout:g} s"
                    raise Timeout(message) from None
                continue
            if not arrived:
                self._check_open()
                raise self._failure()
            self.heard = time.monotonic()
            self._unread = memoryview(arrived)

    def _decode(self) -> Frame | None:
        place = self._decoder.buffer()
        count = min(len(place), len(self._unread))
        place[:count] = self._unread[:count]
        noise = self._unread
        self._unread = self._unread[count:]
        try:
            return self._decoder.filled(count)
        except ProtocolError as error:
            if self._spoken:
                raise
            raise self._failure(bytes(noise[:400])) from error

    def _check_open(self) -> None:
        if self._closing:
            message = f"the connection to {self.peer} is closed"
            raise Unreachable(message)

    def _exit_status(self) -> int | None:
        """Wait a moment for the agent's exit status; None if the line is cut or it still runs."""
        if not self._session.status_event.wait(LAST_WORDS):
            return None
        status = self._session.exit_status
        return status if status >= 0 else None

    def _failure(self, noise: bytes = b"") -> PymigrateError:
        """Find out why nothing more comes, or nothing that can be understood."""
        status = self._exit_status() if self._connection.alive else None
        if not noise:
            self._listener.join(LAST_WORDS)
        if not self._spoken:
            return before_first_frame(self.peer, self._command, status, self.stderr, noise)
        ended = after_frames(self.peer, status, self.stderr)
        return Unreachable(ended.message) if self._decoder.midway else ended

    def close(self) -> None:
        """End the agent's input, which ends the agent; wakes senders and receivers."""
        self._closing = True
        # Saying goodbye needs paramiko's lock, which a sender on a cut line holds for ever.
        if self._sending.acquire(timeout=2 * TICK):
            try:
                self._session.close()
            except (OSError, EOFError, paramiko.SSHException) as error:
                logger.debug("%s: closing the session: %s", self.peer, error)
            finally:
                self._sending.release()
        else:
            self._connection.close()
        if self._listener is not threading.current_thread():
            self._listener.join()
