"""A container's settings as frozen dataclasses, named as in the OCI runtime specification.

``pymigrate.runtime.spec`` reads them from config.json and writes them; code imports all from there.
"""

from __future__ import annotations

from collections.abc import Mapping

from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.values import dataclass, field

OCI_VERSION = "1.2.0"
KINDS = ("mount", "pid", "network", "ipc", "uts", "user", "cgroup", "time")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class User:
    """Whom the command runs as, in numbers of the container's user namespace."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    umask: int = 0o022


@dataclass(frozen=True)
class Capabilities:
    """The five sets of capabilities(7), as names like ``CAP_CHOWN``."""

    bounding: frozenset[str] = frozenset()
    effective: frozenset[str] = frozenset()
    permitted: frozenset[str] = frozenset()
    inheritable: frozenset[str] = frozenset()
    ambient: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rlimit:
    """One limit of getrlimit(2), as ``RLIMIT_NOFILE``."""

    type: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Process:
    """The command, its environment and what it may do."""

    args: tuple[str, ...]
    env: tuple[str, ...] = (f"PATH={DEFAULT_PATH}",)
    cwd: str = "/"
    user: User = User()
    terminal: bool = False
    capabilities: Capabilities = Capabilities()
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = True
    oom_score_adj: int | None = None  # proc_pid_oom_score_adj(5); None leaves the caller's
    console_size: tuple[int, int] | None = None  # rows, columns
    apparmor_profile: str | None = None
    selinux_label: str | None = None


@dataclass(frozen=True)
class Mount:
    """A filesystem or a bind mount inside the container, in mount(8)'s options."""

    destination: str
    type: str = "none"
    source: str = "none"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Namespace:
    """A namespace of its own or, with a path, one to join; a kind not listed is the host's."""

    kind: str
    path: str | None = None


@dataclass(frozen=True)
class IdMapping:
    """A range of user or group ids: ``size`` of them from ``container_id`` on."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True)
class TimeOffset:
    """How far a clock (``monotonic`` or ``boottime``) is moved in the time namespace."""

    clock: str
    secs: int
    nanosecs: int = 0


@dataclass(frozen=True)
class Device:
    """A node under /dev: type ``c``, ``b`` or ``p``."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int = 0o666
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class DeviceRule:
    """One line of the device allow-list; None is any number, access is of ``rwm``."""

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@dataclass(frozen=True)
class IoRate:
    """At most so many bytes or operations a second on one block device; 0 is no limit."""

    major: int
    minor: int
    rate: int


@dataclass(frozen=True)
class HugepageLimit:
    """At most so many bytes in huge pages of one size, named as the kernel does: 2MB."""

    page_size: str
    limit: int


@dataclass(frozen=True)
class Resources:
    """Limits for the cgroup; None is no limit. Bytes, microseconds, cgroup v2's weight 1..10000.

    The weight of block io is OCI's: 10..1000, 100 is usual.
    """

    memory_limit: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    memory_swappiness: int | None = None  # these two are of cgroup v1
    oom_kill_disabled: bool | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpu_burst_us: int | None = None
    cpu_idle: bool | None = None  # runs only when nobody else wants to
    cpu_rt_runtime_us: int | None = None  # of realtime tasks: cgroup v1 alone has these two
    cpu_rt_period_us: int | None = None
    cpu_weight: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids_limit: int | None = None
    io_weight: int | None = None
    io_read_bps: tuple[IoRate, ...] = ()
    io_write_bps: tuple[IoRate, ...] = ()
    io_read_iops: tuple[IoRate, ...] = ()
    io_write_iops: tuple[IoRate, ...] = ()
    hugepages: tuple[HugepageLimit, ...] = ()
    devices: tuple[DeviceRule, ...] = ()
    unified: tuple[tuple[str, str], ...] = ()  # files of cgroup v2 and what is written there


@dataclass(frozen=True)
class Hook:
    """A program to run at a point of a container's life; ``timeout`` in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)


@dataclass(frozen=True)
class Spec:
    """All settings of one container."""

    process: Process
    oci_version: str = OCI_VERSION
    hostname: str | None = None
    root_path: str = "rootfs"
    root_readonly: bool = False
    mounts: tuple[Mount, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    devices: tuple[Device, ...] = ()
    resources: Resources = Resources()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)
    seccomp: Mapping[str, object] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    time_offsets: tuple[TimeOffset, ...] = ()
    domainname: str | None = None
    hooks: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)
    cgroups_path: str | None = None  # only the OCI command line asks; ours are named by us
    rootfs_propagation: str | None = None

    def namespace(self, kind: str) -> Namespace | None:
        """Return the namespace of this kind, or None when the host's is shared."""
        return next((each for each in self.namespaces if each.kind == kind), None)

    def private(self, kind: str) -> bool:
        """Say whether the container gets a new namespace of this kind."""
        found = self.namespace(kind)
        return found is not None and found.path is None


# Which namespace a sysctl belongs to; all others are the whole host's. See namespaces(7).
_SYSCTL_KINDS = (
    ("net.", "network"),
    ("kernel.msg", "ipc"),
    ("kernel.sem", "ipc"),
    ("kernel.shm", "ipc"),
    ("fs.mqueue.", "ipc"),
    ("kernel.domainname", "uts"),
)


def check(spec: Spec) -> None:
    """Refuse settings that contradict one another; UsageError names the JSON path."""
    kinds = [each.kind for each in spec.namespaces]
    for index, kind in enumerate(kinds):
        if kind in kinds[:index]:
            raise UsageError(f"linux.namespaces[{index}]: a second {kind} namespace")
    if spec.hostname and "uts" not in kinds:
        raise UsageError("hostname: can only be set with a uts namespace of its own")
    if spec.domainname and "uts" not in kinds:
        raise UsageError("domainname: can only be set with a uts namespace of its own")
    if spec.private("user") != bool(spec.uid_mappings and spec.gid_mappings):
        raise UsageError("linux.uidMappings, gidMappings: go with a new user namespace, both")
    if spec.time_offsets and not spec.private("time"):
        raise UsageError("linux.timeOffsets: can only be set with a new time namespace")
    if not spec.private("mount"):
        for name, given in (
            ("mounts", spec.mounts),
            ("linux.maskedPaths", spec.masked_paths),
            ("linux.readonlyPaths", spec.readonly_paths),
            ("linux.devices", spec.devices),
            ("root.readonly", spec.root_readonly),
            ("domainname", spec.domainname),
            ("root.path", spec.root_path != "/"),
        ):
            if given:
                raise UsageError(f"{name}: can only be set with a new mount namespace")
    for name in spec.sysctl:
        owner = next((kind for prefix, kind in _SYSCTL_KINDS if name.startswith(prefix)), None)
        if owner is None:
            raise UsageError(f"linux.sysctl.{name}: belongs to the whole host")
        if owner not in kinds:
            raise UsageError(f"linux.sysctl.{name}: needs a {owner} namespace of its own")
