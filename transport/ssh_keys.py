"""Prove to an SSH server who we are: which keys are offered, in which order."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from pymigrate.runtime.errors import AuthenticationFailed, UsageError
from pymigrate.transport.known_hosts import fingerprint
from pymigrate.transport.ssh_library import paramiko
from pymigrate.transport.ssh_settings import Settings

logger = logging.getLogger(__name__)

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")


def authenticate(settings: Settings, transport: paramiko.Transport) -> None:
    """Offer our keys one by one: named ones, the agent's, the usual files.

    Raises AuthenticationFailed, or UsageError for a file that is no key.
    """
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
        return bytes(paramiko.pkey.PublicBlob.from_file(f"{file}.pub").key_blob)
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
