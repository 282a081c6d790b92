"""Images with all that only root can make, under overlayfs, on a full disk, and cut short."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime import bootstrap, syscalls, tree
from pymigrate.runtime.errors import BadArchive, NoSpace
from pymigrate.runtime.host import Host
from pymigrate.runtime.images import Store
from tests.fakes.trees import archive, look

pytestmark = pytest.mark.privileged

USER_READS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, number)
    for tag, permissions, number in (
        (1, 6, 0xFFFFFFFF),
        (2, 4, 1000),
        (4, 4, 0xFFFFFFFF),
        (16, 4, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    )
)
"""A POSIX ACL, acl_ea_entry of the kernel's posix_acl_xattr.h: user 1000 may read."""
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""vfs_cap_data of the kernel's capability.h: cap_net_raw=ep."""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host.open(tmp_path / "host")


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """Make a tree with what only root can make."""
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    program = root / "bin" / "ping"
    program.write_bytes(b"program")
    os.chown(program, 0, 1234)
    program.chmod(0o4755)
    os.setxattr(program, "security.capability", NET_RAW)
    os.setxattr(program, "trusted.note", b"kept")
    private = root / "private"
    private.write_text("secret")
    os.chown(private, 3_000_000_000, 70_000)
    os.setxattr(private, "system.posix_acl_access", USER_READS)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(4095, 1048575))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o755)
    os.lchown(root / "socket", 33, 33)
    (root / "link").symlink_to("/nowhere")
    os.lchown(root / "link", 5, 6)
    os.setxattr(root / "link", "trusted.note", b"on a link", follow_symlinks=False)
    root.chmod(0o751)
    return root


@contextlib.contextmanager
def mounted(kind: str, place: Path, options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    syscalls.mount(kind, place, kind, 0, options)
    try:
        yield place
    finally:
        syscalls.umount2(place)


def test_all_that_only_root_can_make_survives(rootfs: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    sent = tree.write(rootfs, stream)
    stream.seek(0)
    for name in ("read", "copied"):
        (tmp_path / name).mkdir()
    assert tree.read(stream, tmp_path / "read", devices=True) == sent
    assert tree.copy(rootfs, tmp_path / "copied") == sent
    assert look(tmp_path / "read") == look(tmp_path / "copied") == look(rootfs)


def test_devices_are_refused_unless_allowed(rootfs: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    tree.write(rootfs, stream)
    stream.seek(0)
    (tmp_path / "into").mkdir()
    with pytest.raises(BadArchive, match="disk: a device node"):
        tree.read(stream, tmp_path / "into")


def overlay(lower: Path, place: Path) -> str:
    for name in ("upper", "work"):
        (place / name).mkdir(parents=True)
    return f"lowerdir={lower},upperdir={place / 'upper'},workdir={place / 'work'}"


def test_an_upper_directory_moves_with_its_whiteouts(host: Host, tmp_path: Path) -> None:
    store = Store(host)
    lower = tmp_path / "lower"
    for name in ("gone", "replaced/old", "kept/file"):
        (lower / name).mkdir(parents=True)
    layer = store.layer_path(store.import_directory(lower, "x").layers[0])
    here, there = tmp_path / "here", tmp_path / "there"
    with mounted("overlay", tmp_path / "merged", overlay(layer, here)) as merged:
        (merged / "gone").rmdir()
        (merged / "replaced" / "old").rmdir()
        (merged / "replaced").rmdir()
        (merged / "replaced").mkdir()
        (merged / "replaced" / "new").write_text("new")
        (merged / "kept" / "added").write_text("added")
        expected = look(merged)
    stream = io.BytesIO()
    sent = tree.write(here / "upper", stream, overlay=True, sparse=True)
    options = overlay(layer, there)
    stream.seek(0)
    assert tree.read(stream, there / "upper", overlay=True) == sent
    with mounted("overlay", tmp_path / "merged", options) as merged:
        assert look(merged) == expected
    stream.seek(0)
    (tmp_path / "strict").mkdir()
    with pytest.raises(BadArchive, match="device"):
        tree.read(stream, tmp_path / "strict")


def test_attributes_of_overlays_do_not_enter_an_image(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "usr").mkdir(parents=True)
    os.setxattr(source / "usr", "trusted.overlay.opaque", b"y")
    store = Store(host)
    image = store.import_directory(source, "x")
    assert os.listxattr(store.layer_path(image.layers[0]) / "usr") == []


def test_what_is_mounted_in_a_directory_is_left_out(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "usr").mkdir(parents=True)
    store = Store(host)
    with mounted("tmpfs", source / "usr", "size=1m"):
        (source / "usr" / "file").write_text("on another disk")
        image = store.import_directory(source, "x")
    assert list(look(store.layer_path(image.layers[0]))) == [".", "usr"]


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(3 << 20))
    packed = tmp_path / "big.tar"
    packed.write_bytes(archive(("big", tarfile.REGTYPE, (source / "big").read_bytes())))
    with mounted("tmpfs", tmp_path / "small", "size=2m") as small:
        store = Store(Host.open(small))
        with pytest.raises(NoSpace):
            store.import_directory(source, "x")
        with pytest.raises(NoSpace):
            store.import_tar(packed, "x")
        assert list((small / "images" / "tmp").iterdir()) == []
        (source / "big").write_bytes(b"small enough")
        store.import_directory(source, "x")


def command(host: Host) -> list[str]:
    return [sys.executable, "-I", "-m", "pymigrate.migrate", "--root", str(host.root)]


def pymigrate(host: Host, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*command(host), *arguments],
        input=data,
        capture_output=True,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def test_images_on_the_command_line(host: Host, rootfs: Path, tmp_path: Path) -> None:
    made = pymigrate(host, "image", "import", str(rootfs), "web:1", "--json")
    image = json.loads(made.stdout)
    assert (made.returncode, made.stderr, image["reference"]) == (0, "", "web:1")
    packed = subprocess.run(
        ["tar", "-c", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", rootfs, "."],
        capture_output=True,
        check=True,
    ).stdout
    again = pymigrate(host, "image", "import", "-", "copy", data=packed)
    assert again.returncode == 0
    assert "importing - as copy:latest" in again.stderr
    listed = json.loads(pymigrate(host, "image", "ls", "--json").stdout)
    assert [each["reference"] for each in listed] == ["copy:latest", "web:1"]
    assert pymigrate(host, "image", "ls").stdout.splitlines()[0].split()[0] == "REFERENCE"
    shown = json.loads(pymigrate(host, "image", "inspect", "web:1").stdout)
    assert look(Path(shown["layer_paths"][0])) == look(rootfs)
    assert pymigrate(host, "image", "rm", "web:1", "copy").returncode == 0
    assert pymigrate(host, "image", "ls", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("import", "nothing"), 11),
        (("import", "/etc/passwd"), 15),
        (("import", "/etc/passwd", "Bad Name"), 2),
        (("inspect", "nothing"), 11),
        (("rm", "nothing"), 11),
        (("bootstrap", "--suite", "no-suite", "x"), 2),
    ],
)
def test_bad_input_is_one_line_a_hint_and_a_code(
    host: Host, arguments: tuple[str, ...], code: int
) -> None:
    done = pymigrate(host, "image", *arguments, "-q")
    assert done.returncode == code
    assert done.stdout == ""
    message, hint = done.stderr.splitlines()
    assert message.startswith("pymigrate: ")
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_import_cut_short_leaves_nothing_that_stays(
    host: Host, rootfs: Path, number: signal.Signals
) -> None:
    temporary = host.images / "tmp"
    packed = archive(("big", tarfile.REGTYPE, bytes(5 << 20)))
    with subprocess.Popen(
        [*command(host), "image", "import", "-", "x"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(packed[: 4 << 20])  # more than a pipe holds: it is reading
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
    assert len(list(temporary.iterdir())) == (1 if number == signal.SIGKILL else 0)
    store = Store(host)
    assert store.ls() == ()
    store.import_directory(rootfs, "x")
    assert list(temporary.iterdir()) == []


@pytest.mark.long
def test_debian_is_made_of_packages(host: Host) -> None:
    store = Store(host)
    image = bootstrap.bootstrap(store, "redis", include=["redis-server"])
    layer = store.layer_path(image.layers[0])
    assert (layer / "usr" / "bin" / "redis-server").exists()
    assert (layer / "etc" / "debian_version").read_text().startswith("12")
    assert image.config.cmd == ("/bin/bash",)
    for leaving in ("etc/resolv.conf", "etc/hostname", "usr/sbin/policy-rc.d", "var/log/dpkg.log"):
        assert not (layer / leaving).exists()
    assert list((host.images / "tmp").iterdir()) == []
