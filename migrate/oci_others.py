"""The other verbs of ``oci``: they look at containers, signal, limit and remove them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymigrate.migrate import output
from pymigrate.migrate.amounts import size
from pymigrate.migrate.oci_verbs import FLAG, NAME, Verb, opened
from pymigrate.runtime import errors, spec
from pymigrate.runtime.oci_container import OciContainer


def _state(given: argparse.Namespace) -> int:
    container = opened(given)
    rootfs = Path(container.bundle) / container.spec.root_path
    output.say(
        json.dumps(
            {**container.document(), "rootfs": os.fspath(rootfs), "created": container.created},
            indent=2,
        )
    )
    return 0


def _list(given: argparse.Namespace) -> int:
    found = OciContainer.all(given.root)
    if given.quiet:
        for each in found:
            output.say(each.id)
        return 0
    documents = [{**each.document(), "created": each.created} for each in found]
    if given.format == "json":
        output.say(json.dumps(documents or None))
        return 0
    output.table(
        ("ID", "PID", "STATUS", "BUNDLE", "CREATED"),
        [
            tuple(str(each[key]) for key in ("id", "pid", "status", "bundle", "created"))
            for each in documents
        ],
    )
    return 0


def _ps(given: argparse.Namespace) -> int:
    pids = opened(given).cgroup.pids()
    if given.format == "json":
        output.say(json.dumps(pids))
        return 0
    output.table(("PID", "CMD"), [(str(pid), _command_line(pid)) for pid in pids])
    return 0


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):  # it ended while we looked
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()
    return ""


def _features(given: argparse.Namespace) -> int:
    from pymigrate.runtime import oci_features

    del given
    output.say(json.dumps(oci_features.document(), indent=2))
    return 0


def _kill(given: argparse.Namespace) -> int:
    from pymigrate.migrate.cli_lifecycle import signal_number

    number = signal_number(given.signal)
    opened(given).kill(number, everything=given.all)
    return 0


def _delete(given: argparse.Namespace) -> int:
    try:
        opened(given).delete(force=given.force)
    except errors.NotFound:
        if not given.force:
            raise
    return 0


def _pause(given: argparse.Namespace) -> int:
    opened(given).pause()
    return 0


def _resume(given: argparse.Namespace) -> int:
    opened(given).resume()
    return 0


def _update(given: argparse.Namespace) -> int:
    container = opened(given)
    if given.resources:
        try:
            text = sys.stdin.read() if given.resources == "-" else Path(given.resources).read_text()
            document = json.loads(text)
        except (OSError, ValueError) as error:
            raise errors.UsageError(f"--resources {given.resources}: {error}") from error
    else:
        document = _resources(given)
    container.update(spec.resources_from_document(document))
    return 0


def _resources(given: argparse.Namespace) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for group, key, value in (
        ("memory", "limit", _bytes(given.memory, "--memory")),
        ("memory", "swap", _bytes(given.memory_swap, "--memory-swap")),
        ("memory", "reservation", _bytes(given.memory_reservation, "--memory-reservation")),
        ("cpu", "quota", given.cpu_quota),
        ("cpu", "period", given.cpu_period),
        ("cpu", "burst", given.cpu_burst),
        ("cpu", "shares", given.cpu_share),
        ("cpu", "idle", given.cpu_idle),
        ("cpu", "realtimePeriod", given.cpu_rt_period),
        ("cpu", "realtimeRuntime", given.cpu_rt_runtime),
        ("cpu", "cpus", given.cpuset_cpus),
        ("cpu", "mems", given.cpuset_mems),
        ("blockIO", "weight", given.blkio_weight),
        ("pids", "limit", given.pids_limit),
    ):
        if value is not None:
            document.setdefault(group, {})[key] = value
    return document


def _bytes(text: str | None, option: str) -> int | None:
    return None if text is None else -1 if text == "-1" else size(text, option)


VERBS: Sequence[Verb] = (
    ("state", "print a container's state as JSON", _state, (NAME,)),
    ("kill", "send a signal", _kill, (
        (("-a", "--all"), {**FLAG, "help": "to every process"}),
        NAME,
        (("signal",), {"nargs": "?", "default": "TERM", "metavar": "SIGNAL"}),
    )),
    ("delete", "remove what is left of a container", _delete, (
        (("-f", "--force"), {**FLAG, "help": "end it first"}), NAME,
    )),
    ("ps", "list a container's processes", _ps, (
        (("-f", "--format"), {"choices": ("table", "json"), "default": "table"}),
        NAME,
        (("options",), {"nargs": argparse.REMAINDER, "help": "for runc's callers; not used"}),
    )),
    ("list", "list the containers", _list, (
        (("-f", "--format"), {"choices": ("table", "json"), "default": "table"}),
        (("-q", "--quiet"), {**FLAG, "help": "names only"}),
    )),
    ("pause", "freeze a container", _pause, (NAME,)),
    ("resume", "let a frozen container go on", _resume, (NAME,)),
    ("update", "change limits", _update, (
        (("-r", "--resources"), {"metavar": "FILE", "help": "JSON; - is stdin"}),
        (("--memory",), {"metavar": "SIZE"}),
        (("--memory-swap",), {"metavar": "SIZE"}),
        (("--memory-reservation",), {"metavar": "SIZE"}),
        (("--cpu-quota",), {"type": int, "metavar": "MICROSECONDS"}),
        (("--cpu-period",), {"type": int, "metavar": "MICROSECONDS"}),
        (("--cpu-burst",), {"type": int, "metavar": "MICROSECONDS"}),
        (("--cpu-share",), {"type": int, "metavar": "N"}),
        (("--cpu-idle",), {"type": int, "choices": (0, 1)}),
        (("--cpu-rt-period",), {"type": int, "metavar": "MICROSECONDS"}),
        (("--cpu-rt-runtime",), {"type": int, "metavar": "MICROSECONDS"}),
        (("--cpuset-cpus",), {"metavar": "LIST"}),
        (("--cpuset-mems",), {"metavar": "LIST"}),
        (("--blkio-weight",), {"type": int, "metavar": "N"}),
        (("--pids-limit",), {"type": int, "metavar": "N"}),
        NAME,
    )),
    ("features", "print what this runtime can do", _features, ()),
)  # fmt: skip
