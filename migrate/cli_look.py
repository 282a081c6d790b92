"""The verbs that only look: ps, inspect, top, path."""

from __future__ import annotations

import argparse
import os
import time
from calendar import timegm
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pymigrate.migrate import output
from pymigrate.runtime import errors, spec
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from pymigrate.runtime.state import State, Status, record_to_document, state_to_document

_COMMAND_WIDTH = 30


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ps, inspect, top and path."""
    listing = verbs.add_parser(
        "ps", help="list the containers that run", epilog="example: pymigrate ps -a"
    )
    listing.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    listing.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="only those: name=PART, id=BEGIN, status=WORD, exited=CODE, image=NAME, network=MODE; "
        "one key twice is either, different keys are both",
    )  # fmt: skip
    listing.add_argument(
        "--format", choices=("table", "json"), default="table", help="json: as --json"
    )
    listing.add_argument("-q", "--quiet", action="store_true", help="print their ids only")
    listing.add_argument("--names", action="store_true", help="print their names only")
    listing.set_defaults(run=list_containers)
    inspecting = verbs.add_parser(
        "inspect",
        help="print all that is known about containers, as JSON",
        epilog="example: pymigrate inspect web | jq .state.pid",
    )
    inspecting.add_argument("names", nargs="+", metavar="NAME", help="a container, or several")
    inspecting.set_defaults(run=inspect)
    top_parser = verbs.add_parser(
        "top",
        help="list a container's processes with their PIDs on the host and inside",
        epilog="example: pymigrate top web",
    )
    top_parser.add_argument("name", metavar="NAME", help="a container that runs")
    top_parser.set_defaults(run=top)
    path_parser = verbs.add_parser(
        "path",
        help="print where a running container's root can be seen on the host",
        epilog='example: ls "$(pymigrate path web)/etc"',
    )
    path_parser.add_argument("name", metavar="NAME", help="a container that runs")
    path_parser.set_defaults(run=path)


def list_containers(arguments: argparse.Namespace) -> int:
    """List the containers."""
    containers, damaged = Container.look(Host.open(arguments.root))
    for error in damaged:
        output.complain(error)
    found = [(each, each.state()) for each in containers]
    filters = _filters(arguments.filter)
    # As podman: who asks for a status asks for all that have it.
    if not arguments.all and not filters.keys() & {"status", "exited"}:
        shown = (Status.RUNNING, Status.PAUSED, Status.RESTARTING)
        found = [(each, now) for each, now in found if now.status in shown]
    found = [(each, now) for each, now in found if _passes(filters, each, now)]
    if arguments.json or arguments.format == "json":
        output.emit([_row(each, now) for each, now in found])
    elif arguments.names:
        for each, _ in found:
            output.say(each.name)
    elif arguments.quiet:
        for each, _ in found:
            output.say(each.record.id[:12])
    else:
        rows = [
            (
                each.name,
                each.record.image or each.record.rootfs or "",
                _shortened(" ".join(each.spec.process.args)),
                describe(each, now),
                each.record.network.address or each.record.network.mode,
                each.record.id[:12],
            )
            for each, now in found
        ]
        output.table(("NAME", "IMAGE", "COMMAND", "STATUS", "ADDRESS", "ID"), rows)
    return 0


def _filters(texts: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in _FILTERS:
            raise errors.UsageError(
                f"--filter {text}: unknown", hint="KEY=VALUE with one of " + ", ".join(_FILTERS)
            )
        if key == "status":
            value = _STATUS.get(value, value)
            if value not in (each.value for each in Status):
                raise errors.UsageError(
                    f"--filter {text}: no such status",
                    hint="one of " + ", ".join(each.value for each in Status),
                )
        found.setdefault(key, []).append(value)
    return found


_STATUS = {"exited": Status.STOPPED.value}  # what podman calls it


def _passes(filters: Mapping[str, list[str]], container: Container, now: State) -> bool:
    """Tell whether a container has one of the values for every key."""
    return all(
        any(_FILTERS[key](container, now, value) for value in values)
        for key, values in filters.items()
    )


def _has_image(container: Container, _now: State, value: str) -> bool:
    image = container.record.image or container.record.rootfs or ""
    return value in (image, image.rpartition(":")[0])


_FILTERS: dict[str, Callable[[Container, State, str], bool]] = {
    "name": lambda container, _, value: value in container.name,
    "id": lambda container, _, value: container.record.id.startswith(value),
    "status": lambda _, now, value: now.status.value == value,
    "health": lambda _, now, value: now.health == value,
    "exited": lambda _, now, value: now.status is Status.STOPPED and str(now.exit_code) == value,
    "image": _has_image,
    "network": lambda container, _, value: container.record.network.mode == value,
}


def _row(container: Container, now: State) -> dict[str, object]:
    record = container.record
    return {
        "id": record.id,
        "name": record.name,
        "image": record.image,
        "rootfs": record.rootfs,
        "command": list(container.spec.process.args),
        "created": record.created,
        "status": now.status.value,
        "pid": now.pid,
        "exit_code": now.exit_code,
        "started": now.started,
        "finished": now.finished,
        "failure": now.failure,
        "health": now.health,
        "restarts": now.restarts,
        "address": record.network.address,
        "address6": record.network.address6,
        "network": record.network.mode,
        "migration": container.fenced_by,
        "supervised": now.supervisor is not None,
    }


def describe(container: Container, now: State) -> str:
    """Say what a container does, for people."""
    holder = container.fenced_by
    if holder is not None:
        return f"{'moving' if now.status.is_alive else 'arriving'} ({holder})"
    if now.status in (Status.STOPPED, Status.RESTARTING):
        code = "?" if now.exit_code is None else str(now.exit_code)
        reason = ", out of memory" if now.oom_killed else ""
        reason += f", {now.failure}" if now.failure else ""
        return f"{now.status.value} ({code}{reason}) {_ago(now.finished)}".rstrip()
    if now.status.is_alive:
        alone = "" if now.supervisor else ", unsupervised"
        health = f" ({now.health})" if now.health else ""
        return f"{now.status.value}{health}{alone} {_since(now.started)}".rstrip()
    return str(now.status.value)


def _since(moment: str | None) -> str:
    if moment is None:
        return ""
    seconds = time.time() - timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(int(seconds), 0)} s"


def _ago(moment: str | None) -> str:
    return f"{_since(moment)} ago" if moment else ""


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _COMMAND_WIDTH else text[: _COMMAND_WIDTH - 1] + "…"


def inspect(arguments: argparse.Namespace) -> int:
    """Print each container's record, state and settings."""
    host = Host.open(arguments.root)
    for container in [Container.open(host, name) for name in arguments.names]:
        now = container.state()
        document = {
            **record_to_document(container.record),
            "state": state_to_document(now),
            "migration": container.fenced_by,
            "directory": os.fspath(container.directory),
            "log": os.fspath(container.log),
            "host_interface": (
                container.host_interface if container.record.network.has_cable else None
            ),
            "spec": spec.to_document(container.spec),
        }
        output.emit(document)
    return 0


def top(arguments: argparse.Namespace) -> int:
    """List the processes."""
    container = Container.open(Host.open(arguments.root), arguments.name)
    now = container.state()
    if not now.status.is_alive:
        raise errors.WrongState(f"{container.name} is {now.status.value}: it has no processes")
    found = [row for row in map(_process, container.cgroup.pids()) if row is not None]
    if arguments.json:
        names = ("pid", "container_pid", "command")
        output.emit([dict(zip(names, row, strict=True)) for row in found])
    else:
        rows = [(str(pid), str(inner), command) for pid, inner, command in found]
        output.table(("PID", "CONTAINER PID", "COMMAND"), rows)
    return 0


def _process(pid: int) -> tuple[int, int, str] | None:
    directory = Path(f"/proc/{pid}")
    try:
        status = (directory / "status").read_text(encoding="utf-8", errors="replace")
        command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended while we looked
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    # One number for each PID namespace, the innermost last; see proc_pid_status(5).
    inner = int(fields["NSpid"].split()[-1])
    return pid, inner, command.strip() or f"[{fields['Name'].strip()}]"


def path(arguments: argparse.Namespace) -> int:
    """Print the path of the root."""
    container = Container.open(Host.open(arguments.root), arguments.name)
    now = container.state()
    if not now.status.is_alive:
        raise errors.WrongState(
            f"{container.name} is {now.status.value}: its root is mounted only while it runs",
            hint=f"what it has changed is in {container.upper}",
        )
    found = f"/proc/{now.pid}/root"
    if arguments.json:
        output.emit({"name": container.name, "path": found})
    else:
        output.say(found)
    return 0
