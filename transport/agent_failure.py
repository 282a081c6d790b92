"""Why there is no agent to talk to: from its exit status, its standard error, its first bytes."""

from __future__ import annotations

from pymigrate.runtime.errors import MissingFeature, PeerError, ProtocolError, PymigrateError
from pymigrate.transport.channel import Ended
from pymigrate.transport.messages import printable

NOT_STARTED = (126, 127)  # what a shell reports of a program it cannot run, or find


def missing(peer: str, command: str, said: str) -> MissingFeature:
    """Say that the program does not exist there."""
    lines = said.splitlines()
    return MissingFeature(
        f"{peer} has no {command}{f' ({lines[-1][:200]})' if lines else ''}",
        hint=f"install pymigrate on {peer}, or say where it is with --remote-command",
    )


def before_first_frame(
    peer: str, command: str, status: int | None, said: str, noise: bytes = b""
) -> PymigrateError:
    """Explain an end, or bytes that are no frame, before anything was understood.

    ``said`` is the end of standard error, ``noise`` the beginning of standard output.
    """
    if status in NOT_STARTED:
        return missing(peer, command, said)
    if noise:
        line = printable(noise.decode("utf-8", "replace")).split("\n")[0]
        return ProtocolError(
            f"{peer}: what answers is not the agent of pymigrate; it says {line[:120]!r}",
            hint="if a shell's start-up file prints this, let it do so only in a terminal;"
            " else --remote-command names the right program",
        )
    if status:
        lines = said.splitlines() or [f"exit status {status}"]
        hints = [x.removeprefix("hint:").strip() for x in lines if x.startswith("hint:")]
        texts = [x for x in lines if not x.startswith("hint:")]
        # One line of our own tool, or the last of a traceback.
        ours = [x.removeprefix("pymigrate:").strip() for x in texts if x.startswith("pymigrate:")]
        text = (ours or texts[-1:] or [""])[0]
        message = f"{peer}: the agent did not start: {text[:400]}"
        return PeerError(message, hint="".join(hints[:1]), peer_code=status)
    return after_frames(peer, status, said)


def after_frames(peer: str, status: int | None, said: str) -> Ended:
    """Explain an end in the middle of a conversation."""
    message = f"{peer}: connection lost"
    if status is not None:
        message += f", the agent ended with status {status}"
    lines = said.splitlines()
    if lines:
        message += f" ({lines[-1][:200]})"
    return Ended(message)
