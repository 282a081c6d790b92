"""Every namespace: new, shared with the host, or joined."""

from __future__ import annotations

import os
import signal

import pytest

from pymigrate.runtime import namespaces
from pymigrate.runtime.settings import (
    KINDS,
    Namespace,
    Spec,
    TimeOffset,
)
from pymigrate.runtime.spec import default_spec
from pymigrate.runtime.stdio import Stdio
from tests.privileged.isolation.box import (
    LIST_NAMESPACES,
    MAPPINGS,
    Box,
    link,
    listed,
    own_namespaces,
)

pytestmark = [pytest.mark.privileged, pytest.mark.requires("root")]


def test_every_namespace_is_its_own(box: Box) -> None:
    spec = default_spec(
        ["true"],
        namespaces=tuple(Namespace(kind) for kind in KINDS),
        uid_mappings=MAPPINGS,
        gid_mappings=MAPPINGS,
    )
    inside = listed(box.run(LIST_NAMESPACES, spec))
    ours = own_namespaces()

    assert set(inside) == set(ours)
    assert {} == {name: value for name, value in inside.items() if value == ours[name]}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mount", "user")])
def test_each_namespace_can_be_shared(box: Box, kind: str) -> None:
    kept = tuple(Namespace(each) for each in KINDS if each not in (kind, "user"))
    inside = listed(box.run(LIST_NAMESPACES, default_spec(["true"], namespaces=kept)))
    ours = own_namespaces()

    same = {name for name, value in inside.items() if value == ours[name]}
    assert {"user", namespaces.FILES[kind]} == same


@pytest.mark.parametrize("kind", ["pid", "network", "ipc", "uts", "cgroup", "time"])
def test_each_namespace_can_be_joined(box: Box, sleeper: tuple[int, Spec], kind: str) -> None:
    path = f"/proc/{sleeper[0]}/ns/{namespaces.FILES[kind]}"
    given = tuple(
        Namespace(each, path if each == kind else None) for each in KINDS if each != "user"
    )
    inside = listed(box.run(LIST_NAMESPACES, default_spec(["true"], namespaces=given)))

    assert link(path) == inside[namespaces.FILES[kind]]


def test_a_network_namespace_comes_by_descriptor(box: Box, sleeper: tuple[int, Spec]) -> None:
    path = f"/proc/{sleeper[0]}/ns/net"
    fd = os.open(path, os.O_RDONLY)
    try:
        assert link(path) == box.run("readlink /proc/self/ns/net", netns_fd=fd)
    finally:
        os.close(fd)


def test_the_lightest_container_is_a_process_of_the_host(box: Box) -> None:
    spec = default_spec(["true"], namespaces=(Namespace("pid"),), root_path="/")
    text = box.run("echo $$; ls -d /proc/1", spec, rootfs="/")
    assert ["1", "/proc/1"] == text.split()


def test_the_hosts_root_can_be_the_containers(box: Box) -> None:
    spec = default_spec(["true"], hostname="light", root_path="/")
    text = box.run(f"hostname; ls {box.root}; cat /proc/1/comm", spec, rootfs="/")
    assert ["light", "bin", "sh"] == text.split()


def test_a_user_namespace_maps_root_to_somebody(box: Box) -> None:
    (box.root / "mine").touch()
    spec = default_spec(
        ["true"],
        hostname="web",
        namespaces=tuple(Namespace(kind) for kind in KINDS),
        uid_mappings=MAPPINGS,
        gid_mappings=MAPPINGS,
    )
    text = box.run("id -u; cat /proc/self/uid_map; stat -c %u /mine; touch /new; hostname", spec)

    assert ["0", "0", "100000", "65536", "0", "web"] == text.split()
    # The idmapped mount writes root's files as root's, so that the disk needs no chown.
    assert 0 == (box.root / "new").stat().st_uid


def test_clocks_can_be_moved(box: Box) -> None:
    offsets = (TimeOffset("boottime", 10_000_000, 0),)
    text = box.run("cat /proc/uptime", default_spec(["true"], time_offsets=offsets))
    assert float(text.split()[0]) > 10_000_000


def test_the_mount_namespace_can_be_joined(box: Box, sleeper: tuple[int, Spec]) -> None:
    path = f"/proc/{sleeper[0]}/ns/mnt"
    given = (Namespace("mount", path), Namespace("pid", f"/proc/{sleeper[0]}/ns/pid"))
    spec = default_spec(["true"], namespaces=given, root_path="/")
    text = box.run("readlink /proc/self/ns/mnt; cat /proc/1/comm; ls -d /bin/busybox", spec)

    assert [link(path), "sleep", "/bin/busybox"] == text.split()


def test_the_users_namespace_can_be_joined(box: Box) -> None:
    spec = default_spec(
        ["sleep", "1000"],
        namespaces=tuple(Namespace(kind) for kind in KINDS),
        uid_mappings=MAPPINGS,
        gid_mappings=MAPPINGS,
    )
    other = box.start(spec, Stdio(None, None, None))
    try:
        given = tuple(
            Namespace(kind, f"/proc/{other.pid}/ns/{namespaces.FILES[kind]}") for kind in KINDS
        )
        text = box.run(
            "id -u; readlink /proc/self/ns/user; cat /proc/1/comm",
            default_spec(["true"], namespaces=given, root_path="/"),
        )
        assert ["0", link(f"/proc/{other.pid}/ns/user"), "sleep"] == text.split()
    finally:
        os.kill(other.pid, signal.SIGKILL)
        os.waitpid(other.pid, 0)
