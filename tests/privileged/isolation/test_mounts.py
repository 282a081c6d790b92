"""The root, mounts and devices, as the container sees them."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.runtime import rootfs, syscalls
from pymigrate.runtime.errors import (
    HostError,
)
from pymigrate.runtime.settings import (
    Device,
    Mount,
)
from pymigrate.runtime.spec import default_spec
from tests.privileged.isolation.box import (
    Box,
)

pytestmark = [pytest.mark.privileged, pytest.mark.requires("root")]


def test_the_root_is_changed_and_the_hosts_mounts_are_gone(box: Box) -> None:
    (box.root / "etc").mkdir()
    text = box.run("cat /proc/self/mountinfo; ls -a /..")
    points = [line.split()[4] for line in text.splitlines() if " - " in line]

    assert points[0] == "/"
    wanted = {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/proc/sys"}
    assert wanted <= set(points)
    allowed = ("/proc/", "/sys/")
    assert all(point in wanted or point.startswith(allowed) for point in points)
    assert not any("shared:" in line or "master:" in line for line in text.splitlines())
    assert "work" not in text.splitlines()[-5:]


def test_secrets_are_masked_and_settings_read_only(box: Box) -> None:
    text = box.run(
        "wc -c < /proc/timer_list; ls /sys/firmware | wc -l; touch /sys/firmware/x 2>&1;"
        " echo 1 2>&1 > /proc/sys/kernel/shmmni || echo refused; touch /sys/x 2>&1"
    )
    lines = text.splitlines()
    assert ["0", "0"] == [line.strip() for line in lines[:2]]
    assert text.count("Read-only file system") + text.count("refused") >= 3


def test_devices_are_nodes_and_no_descriptor_is_the_hosts(box: Box) -> None:
    spec = default_spec(["x"], devices=(Device("/dev/sub/tun", "c", 10, 200, 0o600, 5, 6),))
    text = box.run(
        "stat -c '%n %F %t:%T %a' /dev/null /dev/tty /dev/urandom;"
        # No pipe here: the shell, which is PID 1, would hold its ends for a moment.
        " stat -c '%u %g %a %t' /dev/sub/tun; ls /proc/1/fd;"
        " readlink /proc/1/fd/0; readlink /dev/fd; readlink /dev/ptmx",
        spec,
    )
    assert [
        "/dev/null character special file 1:3 666",
        "/dev/tty character special file 5:0 666",
        "/dev/urandom character special file 1:9 666",
        "5 6 600 a",
        "0",
        "1",
        "2",
        "/dev/null",
        "/proc/self/fd",
        "pts/ptmx",
    ] == [line.strip() for line in text.splitlines()]


def test_the_root_can_be_read_only_and_sysctls_set(box: Box) -> None:
    spec = default_spec(
        ["x"], root_readonly=True, sysctl={"net.ipv4.ip_forward": "1", "kernel.msgmax": "4242"}
    )
    (box.root / "proc").mkdir()
    for name in ("dev", "sys"):
        (box.root / name).mkdir()
    text = box.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; touch /x 2>&1", spec)
    assert ["1", "4242", "touch: /x: Read-only file system"] == text.splitlines()


def test_volumes_are_what_they_say(box: Box, tmp_path: Path) -> None:
    source = tmp_path / "volume"
    source.mkdir()
    (source / "file").write_text("content")
    spec = default_spec(["x"])
    mounts = (
        Mount("/data", "bind", str(source), ("rbind",)),
        Mount("/ro", "bind", str(source), ("rbind", "rro")),
        Mount("/one/file", "bind", str(source / "file"), ("bind", "ro")),
    )
    text = box.run(
        "echo new > /data/new; cat /ro/new /one/file; touch /ro/x 2>&1",
        replace(spec, mounts=(*spec.mounts, *mounts)),
    )
    assert ["new", "contenttouch: /ro/x: Read-only file system"] == text.splitlines()
    assert "new\n" == (source / "new").read_text()


@pytest.mark.parametrize("link", ["/", "../../../../../..", "/proc/1/root", "/etc"])
def test_a_link_in_the_image_leads_no_mount_onto_the_host(
    box: Box, tmp_path: Path, link: str
) -> None:
    source = tmp_path / "volume"
    source.mkdir()
    (box.root / "data").symlink_to(link)
    spec = default_spec(["x"])
    mount = Mount("/data/sub", "bind", str(source), ("rbind",))
    with contextlib.suppress(HostError):  # where it leads nothing can be made
        box.run("true", replace(spec, mounts=(*spec.mounts, mount)))
    assert not Path("/sub").exists()
    assert not Path("/etc/sub").exists()


@pytest.mark.parametrize("count", [1, 3, 60])
def test_an_overlay_shows_all_layers_and_keeps_the_upper_self_contained(
    tmp_path: Path, count: int
) -> None:
    layers = [tmp_path / f"{number:064d}" for number in range(count)]
    for number, layer in enumerate(layers):
        (layer / "moved").mkdir(parents=True)
        (layer / f"file{number}").touch()
        (layer / "same").write_text(str(number))
    upper, work, target = (tmp_path / name for name in ("upper", "work", "target"))
    for directory in (upper, work, target):
        directory.mkdir()
    pid = os.fork()
    if pid == 0:  # the mount goes with the child's mount namespace
        status = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            rootfs.overlay(layers, upper, work, target)
            (target / "seen").write_text(
                f"{len(list(target.iterdir()))} {(target / 'same').read_text()}"
            )
            status = 0
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert f"{count + 2} {count - 1}" == (upper / "seen").read_text()
    assert [] == list(target.iterdir())
    shutil.rmtree(work)
