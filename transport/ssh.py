"""SSH by paramiko: connect, be sure who answers, prove who we are, start the agent there.

A host key is accepted only if known_hosts has it; nothing is ever added there. aes128-gcm comes
first, for paramiko's own first choice costs more than twice the CPU.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pymigrate.runtime.errors import (
    ProtocolError,
    TransportError,
    Unreachable,
    UsageError,
)
from pymigrate.transport.destination import Destination
from pymigrate.transport.known_hosts import KnownHosts, check
from pymigrate.transport.messages import printable
from pymigrate.transport.ssh_channel import WINDOW, SshChannel, open_session
from pymigrate.transport.ssh_keys import authenticate
from pymigrate.transport.ssh_library import allow_exec, paramiko
from pymigrate.transport.ssh_settings import Settings, Timeouts, config_text, settle

logger = logging.getLogger(__name__)

CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
KEEPALIVE = 10  # seconds
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
    if "exec" in text.lower():
        allow_exec()
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
    authenticate(settings, transport)
    return transport


def _not_ssh(settings: Settings, error: Exception) -> TransportError:
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
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
