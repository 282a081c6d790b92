"""Options of run: what is good is read, what is bad is refused in one sentence."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate import amounts, limit_options, network_options
from pymigrate.migrate import run_options as options
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import HugepageLimit
from pymigrate.runtime.spec import IdMapping, IoRate, Namespace, Resources, Rlimit
from pymigrate.runtime.state import Port, Volume


def resources(**given: object) -> Resources:
    names = (
        "memory",
        "memory_swap",
        "memory_reservation",
        "cpus",
        "cpu_weight",
        "cpuset_cpus",
        "cpuset_mems",
        "pids_limit",
    )
    return limit_options.resources(**{**dict.fromkeys(names), **given})  # type: ignore[arg-type]


def words(**given: object) -> argparse.Namespace:
    """Return what the parser makes of these limits."""
    single = (*limit_options.LIMITS, "io_weight")
    several: dict[str, object] = {
        name: [] for name in (*limit_options.IO_RATES.values(), "hugetlb")
    }
    return argparse.Namespace(**{**dict.fromkeys(single), **several, **given})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("2G", 2 << 30),
        ("64kb", 65536),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size == amounts.size(text, "--memory")


@pytest.mark.parametrize("text", ["", "m", "-1m", "1x", "1 m", "1e9", "0x10", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="nothing was made"):
        amounts.size(text, "--memory")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("device_read_bps", "1m", "not DEVICE:RATE"),
        ("device_read_bps", "sda:1m", "not DEVICE:RATE"),
        ("device_write_bps", "/dev/null:1m", "no block device"),
        ("device_write_bps", "/dev/nonesuch:1m", "No such file"),
        ("device_write_bps", "/dev/null:fast", "fast"),
        ("device_read_iops", "/dev/null:1m", "no number of operations"),
        ("device_write_iops", "/dev/null:0", "no number of operations"),
    ],
)
def test_what_is_no_limit_of_a_disk_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        limit_options.listed(words(**{name: [text]}))
    assert raised.value.message.startswith(f"--{name.replace('_', '-')} ")


@pytest.mark.parametrize("weight", [9, 1001, -1])
def test_a_weight_of_block_io_is_of_a_range(weight: int) -> None:
    with pytest.raises(UsageError, match="--io-weight"):
        limit_options.listed(words(io_weight=weight))
    assert limit_options.listed(words(io_weight=10)) == {"io_weight": 10}


@pytest.mark.parametrize("text", ["64m", "2MB", "2M:64m", "xMB:1m", "2MB:", "2MB:-2", "2MB:lots"])
def test_what_is_no_limit_of_huge_pages_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--hugetlb"):
        limit_options.listed(words(hugetlb=[text]))


def test_limits_become_resources() -> None:
    limits = resources(
        memory="512m", cpus="1.5", cpu_weight=200, cpuset_cpus="0-1,3", pids_limit=-1
    )

    assert limits == Resources(
        memory_limit=512 << 20,
        cpu_quota_us=150_000,
        cpu_period_us=100_000,
        cpu_weight=200,
        cpuset_cpus="0-1,3",
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"memory": "1k"},
        {"memory": "99999999999g"},
        {"cpus": "1e30"},
        {"pids_limit": 99999999999999999999},
        {"cpus": "0"},
        {"cpus": "many"},
        {"cpus": "nan"},
        {"cpus": "inf"},
        {"cpu_weight": 0},
        {"cpu_weight": 10001},
        {"cpuset_cpus": "a"},
        {"cpuset_cpus": "1-"},
        {"pids_limit": 0},
        {"pids_limit": -2},
    ],
)
def test_bad_limits_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="nothing was made"):
        resources(**bad)


def test_the_environment_comes_from_files_options_and_the_host(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=1\nB=two words\nHOME\n")
    found = options.environment(["B=2", "C=x=y", "GONE"], [str(file)], {"HOME": "/h"})

    assert found == {"A": "1", "B": "2", "HOME": "/h", "C": "x=y"}


@pytest.mark.parametrize(
    ("read", "bad"),
    [
        (lambda text: options.environment([text], [], {}), ["=x", " =1", "A=\0"]),
        (
            limit_options.ulimit,
            [
                "nofile",
                "nofile=",
                "nofile=a",
                "x=1",
                "nofile=9:1",
                "nofile=99999999999999999999",
                "core=-2",
            ],
        ),
        (
            options.volume,
            ["/srv", "srv:x", "s/rv:/x", "/tmp:x", "/tmp:/x:rx", "/no/such:/x", "/tmp:/"],
        ),
        (options.tmpfs, ["tmp", "/", "/a/../.."]),
        (
            lambda text: options.sysctls([text]),
            [
                "",
                "net.core.x",
                "net=1",
                "../x=1",
                "net./etc=1",
                "net..x=1",
                "net.x=ä",
                "net.x=1\n2",
            ],
        ),
        (options.hostname, ["", "-a", "a b", "a" * 65, "ä"]),
        (options.absolute, ["", "x", "./x"]),
        (options.apparmor, ["a b", "a\n"]),
        (lambda text: options.selinux([text]), ["", "type", "type:", "kind:x", "type:a b"]),
        (options.users, ["", "1:2", "a:1:1", "1:1:0", "-1:1:1", "4294967295:0:1", "1:2:3:4"]),
        (
            lambda text: network_options.network(text, None, None, None),
            ["", "bridged", "ns:", "ns:rel"],
        ),
        (
            lambda text: network_options.network("bridge", None, None, text),
            ["x", "01:00:00:00:00:01"],
        ),
        (lambda text: options.namespaces([text], [], "bridge"), ["", "disk"]),
        (lambda text: options.namespaces([], [text], "bridge"), ["ipc", "ipc:", "ipc:x", "x:/y"]),
        (lambda text: options.capability(text, "--cap-add", ["CAP_CHOWN"]), ["", "fly"]),
    ],
)
def test_bad_values_are_refused(read: Callable[[str], object], bad: list[str]) -> None:
    for text in bad:
        with pytest.raises(UsageError):
            read(text)


@given(st.text(max_size=20))
def test_no_text_breaks_a_reader(text: str) -> None:
    readers = (limit_options.ulimit, options.volume, options.tmpfs, options.hostname)
    for read in (*readers, lambda each: options.sysctls([each])):
        with contextlib.suppress(UsageError):
            read(text)


def test_volumes_limits_and_capabilities() -> None:
    assert options.volume("/tmp:/x:ro,local") == Volume("/tmp", "/x", readonly=True, local=True)
    assert options.bind(Volume("/tmp", "/x", readonly=True)).options == ("rbind", "rprivate", "ro")
    named = options.volume("db.1:/x:local")
    assert named == Volume("", "/x", local=True, name="db.1")
    assert options.bind(named).options == ("rbind", "rprivate", "rw", "tmpcopyup")
    assert limit_options.ulimit("nofile=10:20") == Rlimit("RLIMIT_NOFILE", 10, 20)
    assert limit_options.ulimit("core=-1").hard == 2**64 - 1
    assert {"CAP_CHOWN"} == options.capability("chown", "--cap-add", ["CAP_CHOWN", "CAP_KILL"])


def test_sysctls_are_names_and_values() -> None:
    given = ["net.ipv4.ping_group_range=0 0", "net.core.somaxconn=7", "net.core.somaxconn=8"]

    assert options.sysctls(given) == {
        "net.ipv4.ping_group_range": "0 0",
        "net.core.somaxconn": "8",
    }


def test_users_are_ranges_of_the_hosts() -> None:
    assert ((), ()) == options.users(None)
    assert ((IdMapping(0, 7, 9),), (IdMapping(0, 8, 9),)) == options.users("7:8:9")
    assert options.users(options.USERS) == options.users("auto")


def test_a_context_of_selinux_is_podmans_but_for_the_parts_that_are_given() -> None:
    assert options.selinux([]) is None
    assert options.selinux(["type:mine_t", "disable"]) is None
    assert options.selinux(["type:mine_t"]) == "system_u:system_r:mine_t:s0"
    assert options.selinux(["level:s0:c1,c2"]) == "system_u:system_r:container_t:s0:c1,c2"


def test_namespaces_are_new_shared_or_joined() -> None:
    found = options.namespaces(["pid,mnt"], ["ipc:/proc/1/ns/ipc"], "host")
    kinds = {each.kind: each.path for each in found}

    assert kinds == {"ipc": "/proc/1/ns/ipc", "uts": None, "cgroup": None, "time": None}
    assert Namespace("network") in options.namespaces([], [], "none")
    with pytest.raises(UsageError, match="both shared and joined"):
        options.namespaces(["ipc"], ["ipc:/x"], "bridge")


def test_an_address_goes_with_a_bridge() -> None:
    with pytest.raises(UsageError, match="--net bridge only"):
        network_options.network("none", None, "10.0.0.1", None)


def test_ports_are_read_as_podman_reads_them() -> None:
    assert network_options.port("8080:80") == Port(8080, 80)
    assert network_options.port("127.0.0.1:53:5353/udp") == Port(53, 5353, "udp", "127.0.0.1")
    assert network_options.port("[::1]:1:2/tcp") == Port(1, 2, "tcp", "::1")
    assert network_options.port("8080:80").host_ip is None


@pytest.mark.parametrize(
    "bad",
    ["", "80", ":80", "80:", "0:80", "80:65536", "80:80/sctp", "x:80:80", "80:80:80:80", "٣:80"],
)
def test_what_is_no_port_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="-p"):
        network_options.port(bad)


def test_a_port_of_the_host_is_given_once() -> None:
    assert len(network_options.ports(["80:80", "80:80/udp"])) == 2
    with pytest.raises(UsageError, match="twice"):
        network_options.ports(["80:80", "80:81"])


def test_rates_are_bits_a_second() -> None:
    assert amounts.bandwidth("1.5mbit") == 1_500_000
    for bad in ("10", "10mb", "1kbit", "inf", "-1mbit", "999gbit"):
        with pytest.raises(UsageError):
            amounts.bandwidth(bad)


def test_ports_and_rates_need_a_cable() -> None:
    with pytest.raises(UsageError, match="--net bridge only"):
        network_options.network("host", None, None, None, published=["80:80"])
    with pytest.raises(UsageError, match="--net bridge only"):
        network_options.network("none", None, None, None, rate="1mbit")


def changed(old: Resources, **given: object) -> tuple[Resources, Resources]:
    return limit_options.changed_resources(old, words(**given))


def test_an_update_sets_what_is_given_and_keeps_the_rest() -> None:
    old = Resources(memory_limit=64 << 20, cpu_quota_us=50_000, cpu_period_us=100_000)
    to_set, whole = changed(old, pids_limit=7, memory="32m")

    assert to_set == Resources(memory_limit=32 << 20, pids_limit=7)
    assert whole == replace(old, memory_limit=32 << 20, pids_limit=7)


def test_an_update_takes_limits_away() -> None:
    old = Resources(memory_limit=1 << 26, memory_swap=1 << 27, cpu_quota_us=5, cpu_period_us=9)
    to_set, whole = changed(old, memory="-1", cpus="-1")

    assert to_set == Resources(memory_limit=-1, memory_swap=-1, cpu_quota_us=-1)
    assert whole == Resources()


def test_an_update_of_one_size_of_huge_pages_keeps_the_others() -> None:
    small, big = HugepageLimit("2MB", 4 << 20), HugepageLimit("1GB", 1 << 30)
    more = replace(small, limit=8 << 20)
    to_set, whole = changed(Resources(hugepages=(small, big)), hugetlb=["2MB:8m"])
    assert (to_set.hugepages, whole.hugepages) == ((more,), (more, big))

    to_set, whole = changed(whole, hugetlb=["1GB:-1"])
    assert (to_set.hugepages, whole.hugepages) == ((replace(big, limit=-1),), (more,))


def test_an_update_of_one_disk_keeps_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_options, "_block_device", lambda *_: (7, 1))
    old = Resources(io_read_bps=(IoRate(8, 0, 5), IoRate(7, 1, 6)), io_weight=100)
    to_set, whole = changed(old, device_read_bps=["/dev/loop1:9"], io_weight=50)
    assert to_set == Resources(io_read_bps=(IoRate(7, 1, 9),), io_weight=50)
    assert whole == Resources(io_read_bps=(IoRate(8, 0, 5), IoRate(7, 1, 9)), io_weight=50)

    to_set, whole = changed(whole, device_read_bps=["/dev/loop1:-1"])
    assert to_set.io_read_bps == (IoRate(7, 1, 0),)
    assert whole.io_read_bps == (IoRate(8, 0, 5),)


def test_memory_and_swap_are_one_question() -> None:
    old = Resources(memory_limit=64 << 20, memory_swap=128 << 20)

    assert changed(old, memory="32m")[0] == Resources(memory_limit=32 << 20, memory_swap=128 << 20)
    for bad in ({"memory": "256m"}, {"memory_swap": "32m"}, {}):
        with pytest.raises(UsageError):
            changed(old, **bad)
