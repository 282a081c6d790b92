"""Each setting of the OCI runtime specification, looked at from inside the container.

The rows follow config.md and config-linux.md of github.com/opencontainers/runtime-spec 1.2. Hooks,
annotations, terminal and consoleSize are in test_oci.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pymigrate.runtime import capabilities, labels
from pymigrate.runtime.cgroups import current_layout
from tests.privileged.oci_tool import Oci

pytestmark = pytest.mark.privileged

Change = Callable[[Any], object]
STATUS = "grep -E '^{}' /proc/self/status | busybox cut -f2"


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Oci]:
    made = Oci(tmp_path)
    yield made
    assert "" == made("list", "-q").stdout


@dataclass(frozen=True)
class Row:
    """A setting, how it is set, what is asked inside and what must come out."""

    name: str
    change: Change
    script: str
    expected: str


def put(path: str, value: Any) -> Change:
    """Set one value; ``path`` is as jq's without the first dot."""

    def change(config: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            config = config.setdefault(name, {})
        config[last] = value

    return change


def add(path: str, value: Any) -> Change:
    """Append to a list."""

    def change(config: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            config = config.setdefault(name, {})
        config.setdefault(last, []).append(value)

    return change


def mount(destination: str, kind: str, *options: str, source: str = "none") -> Change:
    entry = {"destination": destination, "type": kind, "source": source, "options": list(options)}
    return add("mounts", entry)


def both(*changes: Change) -> Change:
    def change(config: Any) -> None:
        for each in changes:
            each(config)

    return change


def caps(**sets: list[str]) -> Change:
    return put("process.capabilities", sets)


MOUNTED = "busybox awk '$2 == \"{}\" {{print $3, $4}}' /proc/self/mounts | busybox head -n 1"
KILL, CHOWN = "CAP_KILL", "CAP_CHOWN"
BIT_KILL = f"{1 << capabilities.NAMES.index(KILL):016x}"
SHARED = ("nosuid", "nodev", "noexec")
ROWS = [
    Row("root.path", put("hostname", "x"), "ls -d /bin/busybox", "/bin/busybox"),
    Row("root.readonly true", put("root.readonly", True), "touch /x 2>&1 | grep -c Read-only", "1"),
    Row("root.readonly false", put("root.readonly", False), "touch /x && echo made", "made"),
    # process
    Row("process.cwd", put("process.cwd", "/etc"), "pwd", "/etc"),
    Row("process.env", add("process.env", "A=b c"), 'echo "$A"', "b c"),
    Row("process.user.uid", put("process.user.uid", 33), "id -u", "33"),
    Row("process.user.gid", put("process.user.gid", 44), "id -g", "44"),
    Row(
        "process.user.additionalGids", put("process.user.additionalGids", [6, 7]), "id -G", "0 6 7"
    ),
    Row("process.user.umask", put("process.user.umask", 0o027), "umask", "0027"),
    Row(
        "process.rlimits",
        put("process.rlimits", [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}]),
        "ulimit -Sn; ulimit -Hn",
        "64 128",
    ),
    Row(
        "process.oomScoreAdj",
        put("process.oomScoreAdj", 500),
        "cat /proc/self/oom_score_adj",
        "500",
    ),
    Row(
        "process.noNewPrivileges true",
        put("process.noNewPrivileges", True),
        STATUS.format("NoNew"),
        "1",
    ),
    Row(
        "process.noNewPrivileges false",
        put("process.noNewPrivileges", False),
        STATUS.format("NoNew"),
        "0",
    ),
    Row("process.capabilities.bounding", caps(bounding=[KILL]), STATUS.format("CapBnd"), BIT_KILL),
    Row(
        "process.capabilities.permitted and effective",
        caps(bounding=[KILL], permitted=[KILL], effective=[KILL]),
        STATUS.format("Cap[PE]"),
        f"{BIT_KILL} {BIT_KILL}",
    ),
    Row(
        "process.capabilities.inheritable and ambient",
        both(
            caps(bounding=[KILL], permitted=[KILL], inheritable=[KILL], ambient=[KILL]),
            put("process.user.uid", 33),
        ),
        STATUS.format("Cap[IEA]"),
        " ".join([BIT_KILL] * 3),
    ),
    # names and namespaces
    Row("hostname", put("hostname", "named"), "hostname", "named"),
    Row("domainname", put("domainname", "of.it"), "cat /proc/sys/kernel/domainname", "of.it"),
    Row(
        "linux.timeOffsets",
        both(
            add("linux.namespaces", {"type": "time"}),
            put("linux.timeOffsets", {"boottime": {"secs": 1_000_000_000}}),
        ),
        "busybox test $(busybox cut -d. -f1 /proc/uptime) -gt 999999999 && echo later",
        "later",
    ),
    Row(
        "linux.uidMappings and gidMappings",
        both(
            add("linux.namespaces", {"type": "user"}),
            put("linux.uidMappings", [{"containerID": 0, "hostID": 100000, "size": 1000}]),
            put("linux.gidMappings", [{"containerID": 0, "hostID": 200000, "size": 1000}]),
        ),
        "echo $(cat /proc/self/uid_map) $(cat /proc/self/gid_map)",
        "0 100000 1000 0 200000 1000",
    ),
    Row(
        "linux.sysctl",
        put("linux.sysctl", {"net.ipv4.ip_forward": "1", "kernel.shmmni": "77"}),
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni",
        "1 77",
    ),
    # mounts
    Row(
        "mounts proc", put("hostname", "x"), "readlink /proc/self >/dev/null && echo there", "there"
    ),
    Row(
        "mounts tmpfs",
        mount("/tmp", "tmpfs", "size=64k", *SHARED),
        MOUNTED.format("/tmp") + " | busybox sed s/,inode64//",  # as the kernel was built
        "tmpfs rw,nosuid,nodev,noexec,relatime,size=64k",
    ),
    Row(
        "mounts mqueue",
        mount("/tmp", "mqueue", *SHARED),
        MOUNTED.format("/tmp"),
        "mqueue rw,nosuid,nodev,noexec,relatime",
    ),
    Row(
        "mounts bind ro",
        mount("/tmp", "bind", "bind", "ro", source="/usr"),
        "touch /tmp/x 2>&1 | grep -c Read-only; ls -d /tmp/bin",
        "1 /tmp/bin",
    ),
    Row(
        "mounts bind of a file",
        mount("/etc/group", "bind", "bind", source="/etc/hostname"),
        "cat /etc/group",
        Path("/etc/hostname").read_text().strip(),
    ),
    Row(
        "mounts tmpcopyup",
        mount("/etc", "tmpfs", "tmpcopyup"),
        "wc -l </etc/passwd; touch /etc/x",
        "2",
    ),
    Row(
        "mounts propagation",
        mount("/tmp", "tmpfs", "shared"),
        "grep -c ' /tmp .*shared:' /proc/self/mountinfo",
        "1",
    ),
    Row(
        "mounts cgroup",
        mount("/sys/fs/cgroup", "cgroup", "ro", *SHARED),
        "cd /sys/fs/cgroup; cat pids/cgroup.procs cgroup.procs 2>/dev/null | grep -c '^1$'",
        "1",
    ),
    Row(
        "linux.rootfsPropagation shared",
        put("linux.rootfsPropagation", "shared"),
        "grep -c ' / r[ow],.*shared:' /proc/self/mountinfo",
        "1",
    ),
    Row(
        "linux.maskedPaths",
        put("linux.maskedPaths", ["/etc/passwd", "/proc/sys", "/nowhere"]),
        "wc -c </etc/passwd; ls /proc/sys | wc -l",
        "0 0",
    ),
    Row(
        "linux.readonlyPaths",
        both(put("root.readonly", False), put("linux.readonlyPaths", ["/etc"])),
        "touch /etc/x 2>&1 | grep -c Read-only; touch /x && echo made",
        "1 made",
    ),
    # devices
    Row(
        "linux.devices",
        add(
            "linux.devices",
            {
                "path": "/dev/mine",
                "type": "c",
                "major": 1,
                "minor": 5,
                "fileMode": 0o640,
                "uid": 5,
                "gid": 6,
            },
        ),
        "ls -ln /dev/mine | busybox awk '{print $1, $3, $4, $5 $6}'",
        "crw-r----- 5 6 1,5",
    ),
    Row(
        "the default devices",
        put("hostname", "x"),
        "for each in null zero full random urandom tty; do test -c /dev/$each && echo -n .; done; "
        "test -L /dev/ptmx && test -L /dev/fd && readlink /dev/stdin",
        "....../proc/self/fd/0",
    ),
    Row(
        "the default devices can be used",
        put("hostname", "x"),
        "echo x >/dev/null && busybox head -c 2 /dev/zero | wc -c",
        "2",
    ),
    Row(
        "linux.resources.devices",
        both(
            put(
                "linux.resources.devices",
                [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
                ],
            ),
            add("linux.devices", {"path": "/dev/disk", "type": "b", "major": 254, "minor": 0}),
        ),
        "cat /dev/disk 2>&1 | grep -c 'not permitted'",
        "1",
    ),
    # seccomp
    Row(
        "linux.seccomp",
        put(
            "linux.seccomp",
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
                ],
            },
        ),
        "mkdir /tmp/x 2>&1 | grep -c 'No space'",
        "1",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_setting_is_as_asked_for_inside(oci: Oci, row: Row) -> None:
    assert row.expected.split() == oci.shell(row.script, row.change).split()


@pytest.mark.parametrize(
    "kind", ["pid", "network", "ipc", "uts", "mount", "cgroup", "time", "user"]
)
def test_each_namespace_is_new_or_the_hosts_or_anothers(oci: Oci, kind: str) -> None:
    file = {"network": "net", "mount": "mnt"}.get(kind, kind)
    inner = f"readlink /proc/self/ns/{file}"
    ours = os.readlink(f"/proc/self/ns/{file}")  # noqa: PTH115 - it is no path

    def new(config: Any) -> None:
        wanted = {each["type"] for each in config["linux"]["namespaces"]} | {kind}
        config["linux"]["namespaces"] = [{"type": each} for each in sorted(wanted)]
        if kind == "user":
            config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = [
                {"containerID": 0, "hostID": 100000, "size": 1000}
            ]

    fresh = oci.shell(inner, new).strip()
    assert fresh.startswith(f"{file}:[")
    assert ours != fresh
    if kind in ("mount", "user"):
        return  # the bundle's root and its owner go with them; isolation/ joins these
    assert ours == oci.shell(inner, _without(kind)).strip()
    holder = subprocess.Popen(
        ["unshare", f"--{file}", *(["--fork"] if kind in ("pid", "time") else []), "--", "sh", "-c",
         "echo; exec sleep 60"], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        pid = holder.pid
        if kind in ("pid", "time"):
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        theirs = os.readlink(f"/proc/{pid}/ns/{file}")  # noqa: PTH115
        joined = {"type": kind, "path": f"/proc/{pid}/ns/{file}"}
        assert (
            theirs
            == oci.shell(inner, both(_without(kind), add("linux.namespaces", joined))).strip()
        )
    finally:
        if kind in ("pid", "time"):
            os.kill(pid, 9)
        else:
            holder.kill()
        holder.wait(10)
        holder.stdout.close()


def _without(kind: str) -> Change:
    def change(config: Any) -> None:
        config["linux"]["namespaces"] = [
            each for each in config["linux"]["namespaces"] if each["type"] != kind
        ]
        if kind == "uts":
            del config["hostname"]
        if kind == "network":
            config["mounts"] = [each for each in config["mounts"] if each["type"] != "sysfs"]

    return change


@pytest.mark.parametrize(
    ("limits", "v1", "v2", "expected"),
    [
        ({"memory": {"limit": 64 << 20}}, "memory/memory.limit_in_bytes", "memory.max", "67108864"),
        (
            {"memory": {"limit": 64 << 20, "reservation": 32 << 20}},
            "memory/memory.soft_limit_in_bytes",
            "memory.low",
            "33554432",
        ),
        ({"cpu": {"quota": 50000, "period": 100000}}, "cpu/cpu.cfs_quota_us", "cpu.max", "50000"),
        ({"cpu": {"cpus": "0"}}, "cpuset/cpuset.cpus", "cpuset.cpus", "0"),
        ({"cpu": {"mems": "0"}}, "cpuset/cpuset.mems", "cpuset.mems", "0"),
        (
            {"memory": {"limit": 64 << 20, "swap": 64 << 20}},
            "memory/memory.memsw.limit_in_bytes",
            "memory.max",
            "67108864",
        ),
        ({"pids": {"limit": 33}}, "pids/pids.max", "pids.max", "33"),
        (
            {"cpu": {"quota": 50000, "period": 100000, "burst": 20000}},
            "cpu/cpu.cfs_burst_us",
            "cpu.max.burst",
            "20000",
        ),
        ({"cpu": {"idle": 1}}, "cpu/cpu.idle", "cpu.idle", "1"),
        (
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]},
            "hugetlb/hugetlb.2MB.limit_in_bytes",
            "hugetlb.2MB.max",
            "4194304",
        ),
    ],
)
def test_a_limit_is_in_force_where_the_container_can_see_it(
    oci: Oci, limits: Any, v1: str, v2: str, expected: str
) -> None:
    def change(config: Any) -> None:
        config["linux"]["resources"] |= limits
        config["linux"]["cgroupsPath"] = "/pymigrate-test/settings"
        mount("/sys/fs/cgroup", "cgroup", "ro")(config)

    # Both places, for it depends on the host's layout in which of them a limit is.
    script = (
        f"cat /sys/fs/cgroup/{v1} /sys/fs/cgroup/{v2} /sys/fs/cgroup/unified/{v2} 2>/dev/null; true"
    )
    assert expected == oci.shell(script, change).split()[0]


@pytest.mark.parametrize(
    ("limits", "version", "file", "expected"),
    [
        ({"memory": {"swappiness": 7}}, "v1", "memory/memory.swappiness", "7"),
        (
            {"memory": {"disableOOMKiller": True}},
            "v1",
            "memory/memory.oom_control",
            "oom_kill_disable 1",
        ),
        ({"cpu": {"realtimeRuntime": 1000}}, "v1", "cpu/cpu.rt_runtime_us", "1000"),
        ({"unified": {"memory.high": "67108864"}}, "v2", "memory.high", "67108864"),
        ({"unified": {"pids.max": "44"}}, "v2", "pids.max", "44"),
    ],
)
def test_a_limit_of_one_version_is_in_force_there_and_refused_by_the_other(
    oci: Oci, limits: Any, version: str, file: str, expected: str
) -> None:
    def change(config: Any) -> None:
        config["linux"]["resources"] |= limits
        # At the top: only there a cgroup of v1 can have realtime.
        config["linux"]["cgroupsPath"] = "/pymigrate-test-of-one-version"
        mount("/sys/fs/cgroup", "cgroup", "ro")(config)

    controller = file.partition("/")[0].partition(".")[0]
    if not _controls(version, controller):
        said = oci("run", "-b", oci.bundle("true", change=change), "one", code=22).stderr
        assert "cgroup v1" in said or "cgroup v2" in said
        return
    assert expected == oci.shell(f"head -n 1 /sys/fs/cgroup/{file}", change).strip()


def _controls(version: str, controller: str) -> bool:
    of_v1 = {name for each in current_layout().hierarchies for name in each.controllers}
    return (controller in of_v1) == (version == "v1")


def test_the_cgroup_is_the_one_of_the_path(oci: Oci) -> None:
    def change(config: Any) -> None:
        config["linux"]["cgroupsPath"] = "/pymigrate-test/of-path"

    assert "/pymigrate-test/of-path" in oci.shell("cat /proc/self/cgroup", change)


def test_the_loopback_of_a_new_network_is_up(oci: Oci) -> None:
    assert "LOOPBACK,UP" in oci.shell("ip link show lo")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("process.apparmorProfile", "two words"), "process.apparmorProfile: must be"),
        (put("process.selinuxLabel", "a\n"), "process.selinuxLabel: must be"),
        (put("process.scheduler", {"policy": "SCHED_FIFO"}), "process.scheduler: is not supported"),
        (put("process.ioPriority", {"class": "IOPRIO_CLASS_RT"}), "process.ioPriority: is not"),
        (put("linux.intelRdt", {"closID": "x"}), "linux.intelRdt: is not supported"),
        (put("linux.mountLabel", "l"), "linux.mountLabel: is not supported"),
        (put("linux.personality", {"domain": "LINUX32"}), "linux.personality: must be"),
        (put("linux.resources.rdma", {"x": {"hcaHandles": 1}}), "linux.resources.rdma"),
        (
            put("linux.resources.hugepageLimits", [{"pageSize": "big", "limit": 0}]),
            "linux.resources.hugepageLimits[0].pageSize: must be",
        ),
        (put("linux.resources.memory", {"kernel": 7}), "linux.resources.memory.kernel"),
        (put("process.execCPUAffinity", {"initial": "0"}), "process.execCPUAffinity: is not"),
        (put("linux.netDevices", {"eth0": {"name": "x"}}), "linux.netDevices: is not supported"),
        (put("linux.sysctl", {"vm.swappiness": "1"}), "belongs to the whole host"),
        (put("process.cwd", "relative"), "process.cwd: must be an absolute path"),
        (put("process.args", []), "process.args: must be"),
        (put("linux.namespaces", [{"type": "made-up"}]), "linux.namespaces[0].type"),
        (put("linux.rootfsPropagation", "wild"), "linux.rootfsPropagation"),
        (put("process.oomScoreAdj", 2000), "process.oomScoreAdj"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(oci: Oci, change: Change, words: str) -> None:
    said = oci("create", "-b", oci.bundle("true", change=change), "one", code=2).stderr

    assert words in said
    assert not oci.root.exists() or [] == list(oci.root.iterdir())


@pytest.mark.parametrize(
    ("setting", "module", "words"),
    [
        ("apparmorProfile", labels.APPARMOR, "the AppArmor profile p: this host has no AppArmor"),
        ("selinuxLabel", labels.SELINUX, "the SELinux label p: this host has no SELinux"),
    ],
)
def test_a_label_of_a_module_that_is_not_here_is_not_left_out_in_silence(
    oci: Oci, setting: str, module: str, words: str
) -> None:
    if module in labels.modules():
        pytest.skip("it is here: see tests/cluster")
    bundle = oci.bundle("true", change=put(f"process.{setting}", "p"))

    assert words in oci("create", "-b", bundle, "one", code=22).stderr
    assert [] == list(oci.root.iterdir())
