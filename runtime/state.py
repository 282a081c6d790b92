"""What is known about a container: its record (never changes) and its state (its supervisor's).

The record is ``container.json``; the state is ``state.json``, written by the supervisor alone,
replaced and never edited. Both are read once, at this edge, into frozen dataclasses.
"""

from __future__ import annotations

import enum
import json
import os
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from pymigrate.runtime import errors, restarting
from pymigrate.runtime.health import Health
from pymigrate.runtime.host import NAME
from pymigrate.runtime.values import asdict, dataclass

BRIDGE = "pymigrate0"


@dataclass(frozen=True)
class Port:
    """A port of the host that leads into the container; ``protocol`` is "tcp" or "udp"."""

    host: int
    container: int
    protocol: str = "tcp"
    host_ip: str | None = None  # only this address of the host; None: all of them


@dataclass(frozen=True)
class Names:
    """How a container finds others by name, beside and in place of what the host knows.

    ``hosts`` are lines of /etc/hosts: "ADDRESS NAME".
    """

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkSettings:
    """How a container is connected; ``mode`` is "bridge", "none", "host" or "ns:PATH"."""

    mode: str = "bridge"
    bridge: str = BRIDGE
    interface: str = "eth0"
    address: str | None = None  # "10.88.0.5/16"
    gateway: str | None = None
    address6: str | None = None  # a second one, "fd00:88::5/64"
    gateway6: str | None = None
    mac: str | None = None
    ports: tuple[Port, ...] = ()
    bandwidth: int | None = None  # bits a second in each direction
    names: Names = Names()

    @property
    def is_own(self) -> bool:
        """Whether the network namespace is made by us for this container."""
        return self.mode in ("bridge", "none")

    @property
    def has_cable(self) -> bool:
        """Whether the container hangs on a bridge by a veth pair of ours."""
        return self.mode == "bridge"

    @property
    def namespace_path(self) -> str | None:
        """The path of the namespace of mode "ns:PATH"."""
        return self.mode[3:] if self.mode.startswith("ns:") else None


@dataclass(frozen=True)
class Volume:
    """A directory or file of the host inside the container; ``local`` does not travel.

    ``name`` is that of a volume of ours, whose ``source`` each host decides: see volumes.py.
    """

    source: str
    destination: str
    readonly: bool = False
    local: bool = False
    name: str | None = None


@dataclass(frozen=True)
class Record:
    """What a container was made from; layers are digests, lowest first."""

    id: str  # 64 hex digits
    name: str
    image: str | None
    image_digest: str | None
    layers: tuple[str, ...]
    created: str  # ISO 8601, UTC
    network: NetworkSettings
    stdin_open: bool = False
    remove_on_exit: bool = False
    rootfs: str | None = None  # --rootfs DIR: the lowest directory of the overlay
    volumes: tuple[Volume, ...] = ()
    log_size: int | None = None  # bytes of a log before it is rotated; None: as is usual
    restart: str = restarting.NEVER  # when its supervisor runs it again: restarting.Policy
    health: Health | None = None  # the command that tells whether it does its work
    cpu_baseline: str | None = None  # what its programs use of a CPU, by name: migrate/cpu.py


class Status(enum.Enum):
    """Where a container is in its life."""

    CREATED = "created"
    PREPARED = "prepared"  # mounts, network and cgroup are there; nothing runs
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"  # it has ended, and its supervisor will run it again
    STOPPED = "stopped"

    @property
    def may_start(self) -> bool:
        """Whether there is nothing that runs or is about to."""
        return self in (Status.CREATED, Status.STOPPED)

    @property
    def is_alive(self) -> bool:
        """Whether it has processes."""
        return self in (Status.RUNNING, Status.PAUSED)

    @property
    def has_supervisor_only(self) -> bool:
        """Whether nothing of it runs, and its supervisor waits for something."""
        return self in (Status.PREPARED, Status.RESTARTING)

    @property
    def may_checkpoint(self) -> bool:
        """Whether there are processes to write down."""
        return self.is_alive

    @property
    def may_remove(self) -> bool:
        """Whether it can be removed without force."""
        return self.may_start


@dataclass(frozen=True)
class Identity:
    """A process, safe against reuse of its PID: see field 22 of proc_pid_stat(5)."""

    pid: int
    started: int  # clock ticks after boot

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Return the identity of a process, or None if it is gone or a zombie."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name may hold blanks and parentheses: fields count from the last one.
        fields = text[text.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self


@dataclass(frozen=True)
class State:
    """What the supervisor last wrote down; times are ISO 8601, UTC.

    ``pid`` is the container's init as the host sees it. ``exit_code`` is 128+N for signal N, and
    None when it never ran, still runs, or ended without anybody who saw it.
    """

    status: Status
    pid: int | None = None
    pid_started: int | None = None
    supervisor_pid: int | None = None
    supervisor_started: int | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    health: str | None = None  # what its health command says: see health.py
    restarts: int = 0  # how often its supervisor has run it again since a person started it
    started: str | None = None
    finished: str | None = None
    failure: str | None = None  # why it was ended, if not by itself or by its people
    boot_id: str | None = None
    cgroup: Mapping[str, object] | None = None  # Cgroup.to_document()

    @property
    def init(self) -> Identity | None:
        """The container's first process."""
        if self.pid is None or self.pid_started is None:
            return None
        return Identity(self.pid, self.pid_started)

    @property
    def supervisor(self) -> Identity | None:
        """The process that looks after the container."""
        if self.supervisor_pid is None or self.supervisor_started is None:
            return None
        return Identity(self.supervisor_pid, self.supervisor_started)


CREATED = State(Status.CREATED)


def boot_id() -> str:
    """Return what tells this boot of the machine from others; see random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def now() -> str:
    """Return the time as ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z"


def record_to_document(record: Record) -> dict[str, object]:
    """Turn a record into what JSON can hold."""
    return asdict(record)


def record_from_document(document: object) -> Record:
    """Read a record from untrusted JSON.

    Raises:
        ContainerError: a field is missing or of the wrong type; the message names it.

    """
    fields = _Fields(document, "container.json")
    network = _Fields(fields.value("network"), "container.json: network")
    return Record(
        id=fields.text("id"),
        name=fields.text("name"),
        image=fields.optional_text("image"),
        image_digest=fields.optional_text("image_digest"),
        layers=tuple(_text(item, "container.json: layers") for item in fields.array("layers")),
        created=fields.text("created"),
        network=NetworkSettings(
            mode=network.text("mode"),
            bridge=network.text("bridge"),
            interface=network.text("interface"),
            address=network.optional_text("address"),
            gateway=network.optional_text("gateway"),
            address6=network.optional_text("address6"),
            gateway6=network.optional_text("gateway6"),
            mac=network.optional_text("mac"),
            ports=tuple(_port(item) for item in network.array("ports")),
            bandwidth=network.optional_number("bandwidth"),
            names=_names(network.value("names")),
        ),
        stdin_open=fields.flag("stdin_open"),
        remove_on_exit=fields.flag("remove_on_exit"),
        rootfs=fields.optional_text("rootfs"),
        volumes=tuple(_volume(item) for item in fields.array("volumes")),
        log_size=fields.optional_number("log_size"),
        restart=_restart(fields.optional_text("restart")),
        health=_health(fields.value("health")),
        cpu_baseline=fields.optional_text("cpu_baseline"),
    )


def _restart(text: str | None) -> str:
    if text is None:
        return restarting.NEVER
    try:
        restarting.Policy.parse(text)
    except ValueError as error:
        raise errors.ContainerError(f"container.json: restart: {error}") from error
    return text


def _health(document: object) -> Health | None:
    if document is None:
        return None
    where = "container.json: health"
    fields = _Fields(document, where)
    command = tuple(_text(word, f"{where}: command") for word in fields.array("command"))
    times = [fields.value(name) for name in ("interval", "timeout")]
    retries = fields.optional_number("retries")
    if not command or retries is None or retries < 1:
        raise errors.ContainerError(f"{where}: has no command, or no number of retries")
    for each in times:
        if isinstance(each, bool) or not isinstance(each, int | float) or not each >= 1:
            raise errors.ContainerError(f"{where}: {each!r} is no time of a second or more")
    interval, timeout = (float(str(each)) for each in times)
    return Health(command, interval, retries, timeout)


def _names(document: object) -> Names:
    if document is None:
        return Names()
    where = "container.json: network: names"
    fields = _Fields(document, where)

    def words(key: str) -> tuple[str, ...]:
        found = tuple(_text(item, f"{where}: {key}") for item in fields.array(key))
        for each in found:
            if not each.isprintable():  # a line of a file
                raise errors.ContainerError(f"{where}: {key}: {each!r} cannot be written")
        return found

    return Names(words("servers"), words("search"), words("options"), words("hosts"))


def _port(document: object) -> Port:
    fields = _Fields(document, "container.json: network: ports")
    host, container = fields.optional_number("host"), fields.optional_number("container")
    protocol, host_ip = fields.text("protocol"), fields.optional_text("host_ip")
    for number in (host, container):
        if number is None or not 0 < number < 65536:
            raise errors.ContainerError(f"container.json: network: ports: {number} is no port")
    if protocol not in ("tcp", "udp"):
        raise errors.ContainerError(f"container.json: network: ports: {protocol!r} is unknown")
    if host_ip is not None:
        try:
            ip_address(host_ip)
        except ValueError as error:
            raise errors.ContainerError(f"container.json: network: ports: {error}") from error
    assert host is not None  # noqa: S101 - looked at above
    assert container is not None  # noqa: S101
    return Port(host, container, protocol, host_ip)


def _volume(document: object) -> Volume:
    fields = _Fields(document, "container.json: volumes")
    name = fields.optional_text("name")
    if name is not None and not NAME.fullmatch(name):
        raise errors.ContainerError(f"container.json: volumes: {name!r} is no name")
    return Volume(
        source=fields.text("source"),
        destination=fields.text("destination"),
        readonly=fields.flag("readonly"),
        local=fields.flag("local"),
        name=name,
    )


def state_to_document(state: State) -> dict[str, object]:
    """Turn a state into what JSON can hold."""
    return {**asdict(state), "status": state.status.value}


def state_from_document(document: object) -> State:
    """Read a state from JSON.

    Raises:
        ContainerError: a field is missing or of the wrong type; the message names it.

    """
    fields = _Fields(document, "state.json")
    try:
        status = Status(fields.text("status"))
    except ValueError as error:
        raise errors.ContainerError(f"state.json: {error}") from error
    cgroup = fields.value("cgroup")
    if cgroup is not None and not isinstance(cgroup, dict):
        raise errors.ContainerError("state.json: cgroup is not an object")
    return State(
        status=status,
        pid=fields.optional_number("pid"),
        pid_started=fields.optional_number("pid_started"),
        supervisor_pid=fields.optional_number("supervisor_pid"),
        supervisor_started=fields.optional_number("supervisor_started"),
        exit_code=fields.optional_number("exit_code"),
        oom_killed=fields.flag("oom_killed"),
        health=fields.optional_text("health"),
        restarts=fields.optional_number("restarts") or 0,
        started=fields.optional_text("started"),
        finished=fields.optional_text("finished"),
        failure=fields.optional_text("failure"),
        boot_id=fields.optional_text("boot_id"),
        cgroup=cgroup,
    )


def read_document(path: Path) -> object:
    """Read one JSON document of ours.

    Raises:
        ContainerError: it is not JSON.

    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise errors.ContainerError(
            f"{path} is damaged: {error}",
            hint=f"make sure that nothing of it runs, then remove {path.parent}",
        ) from error


def write_document(path: Path, document: Mapping[str, object], *, durable: bool = True) -> None:
    """Replace a file by a JSON document: readers see the old one or the new one, never half.

    With ``durable`` it also survives a loss of power as soon as this returns.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            # Not json.dump, which encodes in Python: ten times as slow.
            stream.write(json.dumps(document, separators=(",", ":")) + "\n")
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise errors.ContainerError(f"{where} is not a text")
    return value


class _Fields:
    """Typed access to the fields of one JSON object."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, dict):
            raise errors.ContainerError(f"{where} is not an object")
        self._document = document
        self._where = where

    def value(self, name: str) -> object:
        return self._document.get(name)

    def text(self, name: str) -> str:
        return _text(self._document.get(name), f"{self._where}: {name}")

    def optional_text(self, name: str) -> str | None:
        return None if self._document.get(name) is None else self.text(name)

    def optional_number(self, name: str) -> int | None:
        value = self._document.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise errors.ContainerError(f"{self._where}: {name} is not a number")
        return value

    def flag(self, name: str) -> bool:
        value = self._document.get(name, False)
        if not isinstance(value, bool):
            raise errors.ContainerError(f"{self._where}: {name} is neither true nor false")
        return value

    def array(self, name: str) -> list[object]:
        value = self._document.get(name, [])
        if not isinstance(value, list | tuple):
            raise errors.ContainerError(f"{self._where}: {name} is not a list")
        return list(value)
