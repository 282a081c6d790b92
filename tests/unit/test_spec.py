"""config.json: what is right comes back the same, what is wrong is named by its path."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime import spec
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import HugepageLimit
from pymigrate.runtime.spec import (
    Device,
    DeviceRule,
    IdMapping,
    IoRate,
    Mount,
    Namespace,
    Resources,
    Rlimit,
    Spec,
    TimeOffset,
    User,
    default_spec,
)


def rich_spec() -> Spec:
    base = default_spec(["sleep", "1"], hostname="web")
    return replace(
        base,
        process=replace(
            base.process,
            user=User(1000, 100, (5, 6)),
            rlimits=(Rlimit("RLIMIT_NOFILE", 100, 200),),
            terminal=True,
            cwd="/srv",
            apparmor_profile="mine",
            selinux_label="u:r:t:s0",
        ),
        namespaces=(*base.namespaces, Namespace("user")),
        uid_mappings=(IdMapping(0, 100000, 65536),),
        gid_mappings=(IdMapping(0, 100000, 65536),),
        devices=(Device("/dev/fuse", "c", 10, 229),),
        resources=Resources(
            io_weight=300,
            io_read_bps=(IoRate(8, 0, 1 << 20),),
            io_write_iops=(IoRate(8, 16, 100), IoRate(254, 0, 7)),
            hugepages=(HugepageLimit("2MB", 64 << 20), HugepageLimit("1GB", 0)),
            memory_limit=1 << 30,
            memory_swap=2 << 30,
            cpu_quota_us=50000,
            cpu_period_us=100000,
            cpu_weight=100,
            cpuset_cpus="0-1",
            cpuset_mems="0",
            pids_limit=100,
            memory_swappiness=0,
            oom_kill_disabled=False,
            cpu_burst_us=10000,
            cpu_idle=True,
            cpu_rt_runtime_us=5000,
            cpu_rt_period_us=1000000,
            unified=(("memory.high", "1073741824"),),
            devices=(DeviceRule(False), DeviceRule(True, "c", 1, None, "rw")),
        ),
        sysctl={"net.ipv4.ip_forward": "1"},
        annotations={"a": "b"},
        time_offsets=(TimeOffset("boottime", -5, 7),),
    )


def test_settings_survive_being_written_and_read(tmp_path: Path) -> None:
    for settings in (rich_spec(), default_spec(["true"])):
        spec.save(settings, tmp_path / "config.json")
        assert settings == spec.load(tmp_path / "config.json")
    assert ["config.json"] == [each.name for each in tmp_path.iterdir()]


def put(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    place: Any = changed
    *way, last = path.split("/")
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[int(last) if isinstance(place, list) else last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", 1, "ociVersion: must be a string"),
        ("process/args", [], "process.args: must be a command"),
        ("process/args", "sh", "process.args: must be an array"),
        ("process/args/0", 7, "process.args[0]: must be a string, not 7"),
        ("process/args/0", "a\0b", "process.args[0]: must be a string without NUL"),
        ("process/env/0", "PATH", "process.env[0]: must be NAME=VALUE"),
        ("process/cwd", "srv", "process.cwd: must be an absolute path"),
        ("process/user/uid", -1, "process.user.uid: must be between 0 and"),
        ("process/user/uid", True, "process.user.uid: must be an integer"),
        ("process/rlimits/0/type", "NOFILE", "process.rlimits[0].type: must be a name like"),
        ("process/rlimits/0/soft", 300, "process.rlimits[0].soft: must be at most the hard"),
        ("process/capabilities/bounding", ["CAP_X"], "process.capabilities.bounding[0]: must be"),
        ("process/capabilities/ambient", ["CAP_KILL"], "process.capabilities.ambient: must be"),
        ("mounts/0/destination", "proc", "mounts[0].destination: must be an absolute path"),
        ("mounts/0/options", ["bind"], "mounts[0].source: must be an absolute path"),
        ("linux/namespaces/0/type", "net", "linux.namespaces[0].type: must be one of mount, pid"),
        ("linux/namespaces/1/type", "mount", "linux.namespaces[1]: a second mount namespace"),
        ("linux/uidMappings", None, "linux.uidMappings, gidMappings: go with"),
        ("linux/uidMappings/0/size", 0, "linux.uidMappings[0].size: must be between 1"),
        (
            "linux/resources/hugepageLimits",
            [{"pageSize": "2M", "limit": 1}],
            "linux.resources.hugepageLimits[0].pageSize: must be a size such as 2MB",
        ),
        ("linux/resources/blockIO", {"weight": 5}, "linux.resources.blockIO.weight: must be"),
        ("linux/resources/blockIO", {"leafWeight": 5}, "linux.resources.blockIO.leafWeight: this"),
        ("linux/resources/memory/swappiness", 101, "linux.resources.memory.swappiness: must be"),
        ("linux/resources/cpu/idle", 2, "linux.resources.cpu.idle: must be between 0 and 1"),
        ("linux/resources/unified", {"a/b.c": "1"}, "linux.resources.unified: must be files of"),
        ("linux/resources/unified", {"cgroup.kill": "1"}, "linux.resources.unified: must be files"),
        ("linux/resources/unified", {"cpu.weight": "0"}, "linux.resources.unified.cpu.weight: mus"),
        ("linux/resources/memory/kernel", 5, "linux.resources.memory.kernel: this limit"),
        ("linux/resources/devices/0/access", "x", "linux.resources.devices[0].access: must be"),
        ("linux/sysctl", {"vm.swappiness": "1"}, "linux.sysctl.vm.swappiness: belongs to the"),
        ("linux/seccomp", {"x": 1}, "linux.seccomp.defaultAction: is missing"),
        ("root/readonly", "yes", "root.readonly: must be true or false"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(path: str, value: object, message: str) -> None:
    document = put(spec.to_document(rich_spec()), path, value)
    with pytest.raises(UsageError) as raised:
        spec.parse(document)
    assert raised.value.message.startswith(message)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("uts", "hostname:"),
        ("time", "linux.timeOffsets:"),
        ("mount", "mounts:"),
        ("network", "linux.sysctl.net.ipv4.ip_forward:"),
    ],
)
def test_a_setting_needs_its_namespace(without: str, message: str) -> None:
    settings = rich_spec()
    kept = tuple(each for each in settings.namespaces if each.kind != without)
    with pytest.raises(UsageError) as raised:
        spec.check(replace(settings, namespaces=kept))
    assert raised.value.message.startswith(message)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    st.sampled_from(["process", "mounts", "linux", "root", "linux/resources", "process/user"]),
)
def test_no_document_raises_anything_but_usage_error(value: object, path: str) -> None:
    document = put(spec.to_document(DEFAULT), path, value)
    with contextlib.suppress(UsageError):
        spec.parse(document)


DEFAULT = default_spec(["true"])


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        spec.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UsageError, match="must hold a JSON object"):
        spec.load(tmp_path / "config.json")


def test_the_default_makes_all_namespaces_but_the_users() -> None:
    assert set(spec.KINDS) - {"user"} == {each.kind for each in DEFAULT.namespaces}
    assert DEFAULT.process.no_new_privileges
    assert DEFAULT.seccomp is not None


def test_the_default_never_asks_for_what_the_host_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    held = frozenset({"CAP_CHOWN", "CAP_SYS_ADMIN"})
    monkeypatch.setattr("pymigrate.runtime.capabilities.host_bounding", lambda: held)
    assert frozenset({"CAP_CHOWN"}) == default_spec(["true"]).process.capabilities.bounding


def test_another_user_than_root_holds_no_capabilities() -> None:
    process = spec.default_process(["true"], User(1000))
    assert frozenset() == process.capabilities.effective | process.capabilities.permitted
    assert process.capabilities.bounding


def test_a_shared_ipc_namespace_shows_the_hosts_shared_memory() -> None:
    settings = default_spec(["true"], namespaces=(Namespace("mount"), Namespace("pid")))
    shm = next(each for each in settings.mounts if each.destination == "/dev/shm")
    assert Mount("/dev/shm", "bind", "/dev/shm", ("bind", "nosuid", "noexec", "nodev")) == shm


@pytest.mark.parametrize(("shares", "weight"), [(0, 1), (2, 1), (1024, 39), (262144, 10000)])
def test_shares_become_a_weight_as_runc_converts_them(shares: int, weight: int) -> None:
    assert weight == spec.weight_of_shares(shares)
