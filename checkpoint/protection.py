"""What keeps a checkpoint file from being read, and from being altered unnoticed.

An encrypted file is, behind one line and a header, the archive in blocks of 1 MiB, each sealed by
AES-256-GCM under a random key of this file, which lies in the header wrapped by what scrypt makes
of the secret (sealing.py). The number of a block is its nonce; that of the last is odd, so a cut is
noticed. The header is bound to each block. What is signed is said in signing.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pymigrate.checkpoint.sealing import NAME_BYTES, TAG_BYTES, Keys, Sealer
from pymigrate.checkpoint.seekable import Writable
from pymigrate.checkpoint.signing import Signer
from pymigrate.runtime.compressed import Readable
from pymigrate.runtime.errors import BadArchive, UsageError
from pymigrate.runtime.values import dataclass

MAGIC = b"pymigrate sealed checkpoint 1\n"
BLOCK = 1 << 20
_LENGTH = 4  # bytes, big-endian, of the length of the header
_MAX_HEADER = 1 << 12
_PURPOSE = "checkpoint file"


@dataclass(frozen=True)
class Protection:
    """How a file is written: encrypted if there is a secret, signed if there is a signer."""

    secret: bytes | None = None
    signer: Signer | None = None

    @contextmanager
    def sealing(self, stream: BinaryIO) -> Iterator[Writable]:
        """Give a stream whose bytes go into another one, encrypted if they are to be."""
        if self.secret is None:
            yield stream
            return
        sink = _Sealed(stream, self.secret)
        yield sink
        sink.finish()


@dataclass(frozen=True)
class Trust:
    """What is known to whoever reads: a secret, and the public keys whose signatures count.

    Without keys any signature, or none, will do: then it only finds damage.
    """

    secret: bytes | None = None
    signers: frozenset[bytes] | None = None


NOBODY = Trust()


class _Sealed:
    """Seals what is written, block by block."""

    def __init__(self, stream: BinaryIO, secret: bytes) -> None:
        self._stream = stream
        self._held = bytearray()
        self._number = 0
        keys, name = Keys.make(), os.urandom(NAME_BYTES)
        header = json.dumps({"key": keys.to_document(secret), "name": name.hex()}).encode()
        self._sealer = keys.sealer(_PURPOSE, name, MAGIC + header)
        stream.write(MAGIC + len(header).to_bytes(_LENGTH, "big") + header)

    def write(self, data: bytes, /) -> int:
        """Take it; the last block is held back until `finish`."""
        self._held += data
        while len(self._held) > BLOCK:
            self._write(bytes(memoryview(self._held)[:BLOCK]), last=False)
            del self._held[:BLOCK]
        return len(data)

    def _write(self, plain: bytes, *, last: bool) -> None:
        self._stream.write(self._sealer.seal(2 * self._number + last, plain))
        self._number += 1

    def finish(self) -> None:
        """Write the last block."""
        self._write(bytes(self._held), last=True)


def unsealed(stream: BinaryIO, secret: bytes | None) -> Readable:
    """Return what an archive's stream holds, decrypted if need be.

    Raises:
        UsageError: the secret is missing, wrong, or given for a file that has none.
        BadArchive: the header is damaged; or, when it is read, a block was altered or is missing.

    """
    head = stream.read(len(MAGIC))
    if head != MAGIC:
        if secret is not None:
            # Whoever may replace the file must not get round the secret by one that needs none.
            raise UsageError(
                "a key file was given, but the file is not encrypted; nothing was changed",
                hint="leave --key-file out if you know where the file comes from",
            )
        stream.seek(0)
        return stream
    if secret is None:
        raise UsageError(
            "the file is encrypted, and no key file was given; nothing was changed",
            hint="--key-file FILE, which it was encrypted with",
        )
    length = int.from_bytes(stream.read(_LENGTH), "big")
    header = stream.read(length) if length <= _MAX_HEADER else b""
    return _Unsealed(stream, _sealer(header, secret))


def _sealer(header: bytes, secret: bytes) -> Sealer:
    try:
        document = json.loads(header)
        key, name = document["key"], bytes.fromhex(document["name"])
        if key["kind"] != "scrypt" or len(name) != NAME_BYTES:
            raise ValueError("it has no wrapped key")
        keys = Keys.from_document(key, secret)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadArchive(f"its header is damaged: {error!r}") from error
    except UsageError as error:
        raise UsageError(
            "the key file does not open this checkpoint; nothing was changed",
            hint="is it the --key-file that it was encrypted with?",
        ) from error
    return keys.sealer(_PURPOSE, name, MAGIC + header)


class _Unsealed:
    """Opens one block after the other; nothing of one is given before its tag was compared."""

    def __init__(self, stream: BinaryIO, sealer: Sealer) -> None:
        self._stream = stream
        self._sealer = sealer
        self._number = 0
        self._next = self._block()
        self._plain = memoryview(b"")

    def _block(self) -> bytes:
        pieces, wanted = [], BLOCK + TAG_BYTES
        while wanted and (piece := self._stream.read(wanted)):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def read(self, size: int, /) -> bytes:
        """Return between 1 and ``size`` bytes, or none at the end."""
        if not self._plain:
            if self._number and not self._next:
                return b""
            sealed, self._next = self._next, self._block()
            number = 2 * self._number + (not self._next)
            self._plain = memoryview(self._sealer.open(number, sealed))
            self._number += 1
        found, self._plain = self._plain[:size], self._plain[size:]
        return bytes(found)
