"""Tell others how a scheduled run went: commands before and after it, and a file for Prometheus."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pymigrate.runtime.errors import HostError, UsageError

HOOK_SECONDS = 600.0
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
