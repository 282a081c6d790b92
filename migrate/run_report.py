"""Tell others how a scheduled run went: commands, a web hook, and a file for Prometheus."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pymigrate.runtime.errors import HostError, UsageError

HOOK_SECONDS = 600.0
POST_SECONDS = 30.0
_TOLD = 300  # characters of what a failed command said


def parse_command(text: str, option: str) -> tuple[str, ...]:
    """Split a command into words, as a shell would; no shell runs it. Raises UsageError."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}; nothing was changed") from error
    if not words:
        raise UsageError(f"{option} is an empty command; nothing was changed")
    return words


def run_command(words: tuple[str, ...], told: Mapping[str, str]) -> None:
    """Run a command of the operator's to its end, with these variables.

    Raises:
        HostError: it failed, or took more than ten minutes; it is killed then.

    """
    name = shlex.join(words)
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **told},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HOOK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{name} took more than {HOOK_SECONDS:.0f} s and was killed") from error
    except OSError as error:
        raise HostError(f"{name} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stdout.decode("utf-8", "replace").strip()[-_TOLD:]
        raise HostError(f"{name} ended with {done.returncode}: {said or 'it said nothing'}")


def read_address(path: Path) -> str:
    """Read the address of a web hook, which is a secret: so it is in a file. Raises UsageError."""
    try:
        address = path.read_text(encoding="utf-8").strip()
        parts = urlsplit(address)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the address in {path}: {error}") from error
    if not good or not address.isprintable():
        raise UsageError(
            f"{path} holds no address of a web hook", hint="a line such as https://example.org/hook"
        )
    return address


def post(path: Path, document: Mapping[str, object]) -> None:
    """Post JSON to the web hook whose address a file has; redirections are not followed.

    Raises:
        HostError: it did not take it. The message has no more of the address than its host.
        UsageError: the file has no address.

    """
    parts = urlsplit(read_address(path))
    host = parts.hostname or ""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, parts.port, timeout=POST_SECONDS)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        body = json.dumps(document).encode()
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise HostError(f"the web hook at {host} cannot be reached: {error}") from error
    finally:
        connection.close()
    if status >= 300:
        raise HostError(f"the web hook at {host} answered {status}")


def metrics(container: str, values: Mapping[str, float]) -> str:
    """Write gauges in Prometheus' text format, each with the container as its label. Pure."""
    label = container.replace("\\", r"\\").replace('"', r"\"")
    lines = []
    for name, value in values.items():
        number = f"{value:.0f}" if abs(value) >= 1e6 else f"{value:g}"
        lines.append(f"# TYPE pymigrate_snapshot_{name} gauge")
        lines.append(f'pymigrate_snapshot_{name}{{container="{label}"}} {number}')
    return "\n".join(lines) + "\n"


def write_metrics(path: Path, text: str) -> None:
    """Replace a file for node_exporter's textfile collector; raises HostError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            draft.write_text(text, encoding="utf-8")
            draft.chmod(0o644)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"cannot write the metrics {path}: {error.strerror}") from error
