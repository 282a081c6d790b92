"""Every error that a person can meet, in one tree, each with its exit code.

::

    PymigrateError                1
    ├── UsageError                2
    ├── ContainerError           10
    │   ├── NotFound             11
    │   ├── AlreadyExists        12
    │   ├── WrongState           13
    │   └── CannotRun           126
    │       └── CommandNotFound 127
    ├── ImageError               15
    ├── HostError                20
    │   ├── IncompatibleHosts    21
    │   ├── MissingFeature       22
    │   ├── NotRoot              23
    │   └── NoSpace              24
    ├── CheckpointError          30
    │   ├── DumpFailed           31
    │   ├── RestoreFailed        32
    │   └── BadArchive           33
    ├── TransportError           40
    │   ├── Unreachable          41
    │   ├── HostKeyMismatch      42
    │   ├── ProtocolError        43
    │   ├── Corrupted            44
    │   ├── PeerError            45
    │   └── AuthenticationFailed 46
    └── MigrationError           50
        ├── MigrationInDoubt     51
        └── RolledBack           52

The message says what failed and what state things are in now, in lower case and without a full
stop; ``hint`` says what to do. 125, 126 and 127 are podman's: the container could not be made, its
command could not be run, its command was not found. 128+N: ended by signal N.
"""

from __future__ import annotations


class PymigrateError(Exception):
    """Something went wrong that a person should read about."""

    exit_code = 1
    temporary = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep the sentence for people and what they can do about it."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PymigrateError):
    """The command line or a configuration file says something impossible."""

    exit_code = 2


class ContainerError(PymigrateError):
    """A container could not do what was asked."""

    exit_code = 10


class NotFound(ContainerError):
    """There is no such container, image or migration."""

    exit_code = 11


class AlreadyExists(ContainerError):
    """The name is in use."""

    exit_code = 12


class WrongState(ContainerError):
    """The container is not in a state in which this can be done."""

    exit_code = 13


class CannotRun(ContainerError):
    """The container's command could not be executed, as podman says it."""

    exit_code = 126


class CommandNotFound(CannotRun):
    """The container's command does not exist in its root, as podman says it."""

    exit_code = 127


class ImageError(PymigrateError):
    """What was given is not an image, or the image is damaged."""

    exit_code = 15


class HostError(PymigrateError):
    """This host, or the other one, cannot do what was asked."""

    exit_code = 20


class IncompatibleHosts(HostError):
    """The two hosts differ in a way that would hurt the container."""

    exit_code = 21


class MissingFeature(HostError):
    """The kernel or CRIU lacks something."""

    exit_code = 22


class NotRoot(HostError):
    """Only root can do this."""

    exit_code = 23


class NoSpace(HostError):
    """A disk is full."""

    exit_code = 24


class CheckpointError(PymigrateError):
    """A checkpoint could not be written or used."""

    exit_code = 30


class DumpFailed(CheckpointError):
    """CRIU could not write the container down."""

    exit_code = 31


class RestoreFailed(CheckpointError):
    """CRIU could not bring the container back."""

    exit_code = 32


class BadArchive(CheckpointError):
    """The file is not a checkpoint, or it was cut, altered or made to do harm."""

    exit_code = 33


class TransportError(PymigrateError):
    """Talking to the other host failed."""

    exit_code = 40


class Unreachable(TransportError):
    """The other host does not answer, or stopped answering."""

    exit_code = 41
    temporary = True


class HostKeyMismatch(TransportError):
    """The other host's key is unknown or is not the one we know."""

    exit_code = 42


class ProtocolError(TransportError):
    """The other side does not speak our protocol, or an older one."""

    exit_code = 43


class Corrupted(TransportError):
    """Bytes arrived altered."""

    exit_code = 44


class PeerError(TransportError):
    """The other host reported an error; ``peer_code`` is its exit code there."""

    exit_code = 45

    def __init__(self, message: str, *, hint: str = "", peer_code: int = 1) -> None:
        """Keep the other side's sentence, hint and exit code."""
        super().__init__(message, hint=hint)
        self.peer_code = peer_code


class AuthenticationFailed(TransportError):
    """The other host refused all our keys."""

    exit_code = 46


class MigrationError(PymigrateError):
    """A migration failed."""

    exit_code = 50


class MigrationInDoubt(MigrationError):
    """Committed, but the target did not answer: the source stays frozen until ``recover``."""

    exit_code = 51


class RolledBack(MigrationError):
    """The migration failed and the container runs on at the source."""

    exit_code = 52
