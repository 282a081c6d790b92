"""What a maintainer needs to understand a failure, and nothing that is nobody's business.

Every value is taken in because it is wanted, none is left out because it looks secret: of commands
the program's name, of environments and annotations the names, of volumes the places inside, of
journals the events and numbers. So what is new stays out until somebody wants it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pymigrate.checkpoint import diagnosis, dump, probe, scan
from pymigrate.checkpoint.findings import Obstacle
from pymigrate.migrate import facts, outgoing
from pymigrate.migrate.journal import History, read
from pymigrate.runtime import features
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import PymigrateError
from pymigrate.runtime.host import Host
from pymigrate.runtime.settings import Spec
from pymigrate.runtime.version import VERSION

FORMAT = 1
PACKAGES = ("cryptography", "paramiko", "protobuf", "pycriu", "zstandard")
JOURNALS = 20  # the newest
LOG_BYTES = 256 << 10
_PLAIN = (str, int, float, bool, type(None))
_FACTS = (
    *("role", "name", "mode", "tcp", "lazy", "data", "streams"),
    *("phase", "seconds", "bytes", "abandoned"),
)
_REPORT = (
    *("result", "mode", "data", "streams", "seconds", "blackout_seconds"),
    *("bytes_sent", "bytes", "phases"),
)


def collect(host: Host, container: Container | None) -> dict[str, object]:
    """Gather the report; with a container, what concerns it, else all that happened here."""
    return {
        "format": FORMAT,
        "versions": _versions(),
        "host": _host(host),
        "checks": [asdict(each) for each in (*features.findings(), *probe.findings())],
        "container": None if container is None else _container(container),
        "migrations": _migrations(host, None if container is None else container.name),
    }


def _versions() -> dict[str, str]:
    found = {"pymigrate": VERSION, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def _host(host: Host) -> dict[str, object]:
    seen = facts.host_facts(host)
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {
        "system": release.get("PRETTY_NAME", ""),
        "kernel": seen.kernel,
        "kernel_version": os.uname().version,
        "machine": seen.machine,
        "criu": seen.criu_version,
        "cgroup": seen.cgroup,
        "features": sorted(seen.features),
        "cpu_features": sorted(seen.cpu_features),
        "memory_available": seen.memory_available,
        "disk_available": seen.disk_available,
        "page_size": seen.page_size,
    }


def _container(container: Container) -> dict[str, object]:
    record, state = container.record, container.state()
    found: dict[str, object] = {
        "name": record.name,
        "status": state.status.value,
        "created": record.created,
        "image_digest": record.image_digest,
        "layers": len(record.layers),
        "network": record.network.mode,
        "volumes": [volume.destination for volume in record.volumes],
        "cpu_baseline": record.cpu_baseline,
        "fenced_by": container.fenced_by,
        "spec": _spec(container.spec),
        "criu_log": _tail(container.directory / dump.KEPT_LOG),
        "restore_log": _tail(container.directory / "criu" / "restore.log"),
    }
    try:
        found["scan"] = [_obstacle(each) for each in scan.scan(container)]
    except PymigrateError as error:
        found["scan"] = f"failed: {type(error).__name__}"
    return found


def _obstacle(each: Obstacle) -> dict[str, object]:
    # A path may say whose file it is, and a command what it is told: what kind it is, is enough.
    return {"check": each.check, "severity": each.severity.value, "descriptor": each.descriptor}


def _spec(spec: Spec) -> dict[str, object]:
    process = spec.process
    return {
        "program": Path(process.args[0]).name if process.args else "",
        "arguments": max(len(process.args) - 1, 0),
        "environment": sorted(each.partition("=")[0] for each in process.env),
        "terminal": process.terminal,
        "user": asdict(process.user),
        "capabilities": sorted(process.capabilities.bounding),
        "namespaces": sorted(each.kind for each in spec.namespaces),
        "mounts": [
            {"destination": each.destination, "type": each.type, "options": _words(each.options)}
            for each in spec.mounts
        ],
        "devices": [each.path for each in spec.devices],
        "resources": asdict(spec.resources),
        "seccomp": spec.seccomp is not None,
        "read_only": spec.root_readonly,
        "sysctl": sorted(spec.sysctl),
        "annotations": sorted(spec.annotations),
        "hooks": {kind: len(hooks) for kind, hooks in spec.hooks.items()},
    }


def _words(options: Sequence[str]) -> list[str]:
    """Name mount options; their values (passwords of network file systems) stay out."""
    return [option.partition("=")[0] for option in options]


def _migrations(host: Host, name: str | None) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for migration_id in reversed(outgoing.all_ids(host)):
        if len(found) == JOURNALS:
            break
        try:
            history = read(host.migrations / migration_id / "journal")
        except PymigrateError as error:
            found.append({"id": migration_id, "unreadable": type(error).__name__})
            continue
        if name is None or history.facts().get("name") == name:
            found.append(_migration(migration_id, history))
    return found


def _migration(migration_id: str, history: History) -> dict[str, object]:
    report = history.facts().get("report")
    return {
        "id": migration_id,
        "state": outgoing.describe(history),
        "lines": [
            {"event": line.event, "phase": line.phase.label, **_plain(line.facts, _FACTS)}
            for line in history.lines
        ],
        "cause": _class_of(history.facts().get("cause")),
        "report": _plain(report, _REPORT) if isinstance(report, Mapping) else None,
    }


def _plain(document: Mapping[str, object], wanted: Sequence[str]) -> dict[str, object]:
    """Return what is wanted, of plain values and of numbers by name."""
    return {
        key: value
        for key, value in document.items()
        if key in wanted
        and (
            isinstance(value, _PLAIN)
            or (
                isinstance(value, Mapping)
                and all(isinstance(n, int | float) for n in value.values())
            )
        )
    }


def _class_of(cause: object) -> str:
    """Say what kind of failure a message tells of, by the table that explains CRIU's lines."""
    return diagnosis.explain(f"Error (x.c:1): {cause}").name if isinstance(cause, str) else ""


_VALUE = re.compile(r"(?i)\b(\w*(?:pass(?:word|wd)?|secret|token|key|credential)\w*\s*[=:]\s*)\S+")


def _tail(path: Path) -> str:
    """Return the end of a log of CRIU, with what looks like a secret in a path taken out."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - LOG_BYTES))
            text = stream.read(LOG_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    return _VALUE.sub(r"\1…", text)
