"""Mounts: decided as values, made inside the root only, nothing left of a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.runtime import mounting, mounts, rootfs, syscalls
from pymigrate.runtime.errors import HostError, MissingFeature, UsageError
from pymigrate.runtime.mount_options import Options, options
from pymigrate.runtime.mounts import Bind, Filesystem, Link, Mask, Node, ReadOnly, Sysctl
from pymigrate.runtime.settings import IdMapping, Mount, Namespace, Spec
from pymigrate.runtime.spec import default_spec
from tests.fakes.kernel import RecordingKernel, open_descriptors

SPEC = default_spec(["true"])


@pytest.fixture
def root() -> Iterator[int]:
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), Options()),
        (("ro", "nosuid"), Options(attr_set=3)),
        (("ro", "rw"), Options(attr_clr=1)),
        (("rro",), Options(recursive_set=1)),
        (("noatime",), Options(attr_set=0x10, attr_clr=0x70)),
        (("noatime", "strictatime"), Options(attr_set=0x20, attr_clr=0x70)),
        (
            ("rslave",),
            Options(propagation=syscalls.MS_SLAVE, recursive_propagation=True),
        ),
        (("shared",), Options(propagation=syscalls.MS_SHARED)),
        (
            ("mode=755", "newinstance", "gid=5"),
            Options(parameters=(("mode", "755"), ("newinstance", None), ("gid", "5"))),
        ),
        (("rbind", "defaults"), Options()),
    ],
)
def test_options_are_sorted_by_who_takes_them(words: tuple[str, ...], expected: Options) -> None:
    assert expected == options(words)


def with_mount(*given: Mount) -> Spec:
    return replace(SPEC, mounts=(*SPEC.mounts, *given))


def test_the_plan_follows_the_spec_then_restricts() -> None:
    plan = mounts.plan(replace(SPEC, sysctl={"net.ipv4.ip_forward": "1"}, root_readonly=True))

    assert "/proc" == plan[0].destination if isinstance(plan[0], Filesystem) else None
    kinds = [type(each) for each in plan]
    assert kinds.index(Node) > max(i for i, kind in enumerate(kinds) if kind is Filesystem)
    assert kinds.index(Sysctl) < kinds.index(ReadOnly) < kinds.index(Mask)
    assert Link("/dev/ptmx", "pts/ptmx") in plan
    assert isinstance(plan[-1], mounts.ReadOnlyRoot)


def test_root_of_a_user_namespace_gets_the_hosts_nodes_for_it_can_make_none() -> None:
    one = (IdMapping(0, 1000, 1),)
    namespaces = (*SPEC.namespaces, Namespace("user"))
    spec = replace(SPEC, namespaces=namespaces, uid_mappings=one, gid_mappings=one)
    plan = mounts.plan(spec)

    assert Bind("/dev/null", "/dev/null") in plan
    assert not any(isinstance(each, Node) for each in plan)


def test_without_a_mount_namespace_nothing_is_mounted() -> None:
    assert () == mounts.plan(replace(SPEC, namespaces=(Namespace("pid"),), mounts=()))


@pytest.mark.parametrize("root_path", ["/", "rootfs"])
def test_a_dev_from_outside_keeps_its_own_nodes(root_path: str) -> None:
    dev = Mount("/dev", "bind", "/dev", ("rbind",))
    bound = mounts.plan(replace(SPEC, mounts=(dev,), root_path=root_path))
    assert not any(isinstance(each, Node | Link) for each in bound)


def test_the_hosts_own_root_gets_no_nodes() -> None:
    plan = mounts.plan(replace(SPEC, mounts=(), root_path="/"))
    assert not any(isinstance(each, Node | Link) for each in plan)


@pytest.mark.parametrize(
    ("mount", "error", "message"),
    [
        (Mount("/", "tmpfs", "tmpfs"), UsageError, "mounts[6].destination: cannot be the root"),
        (Mount("/x/..", "tmpfs", "tmpfs"), UsageError, "mounts[6].destination: cannot be the"),
        (
            Mount("/proc/sys", "bind", "/tmp"),
            UsageError,
            "mounts[6].destination: nothing can be mounted inside /proc",
        ),
        (
            Mount("/a/../proc/sys", "tmpfs", "tmpfs"),
            UsageError,
            "mounts[6].destination: nothing can be mounted inside /proc",
        ),
        (Mount("/proc", "tmpfs", "tmpfs"), UsageError, "mounts[6].type: only proc"),
        (
            Mount("/data", "bind", "/tmp", ("size=1",)),
            UsageError,
            "mounts[6].options: size is not for bind mounts",
        ),
        (
            Mount("/sys/fs/cgroup", "cgroup", "cgroup"),
            MissingFeature,
            "mounts[6]: there is no cgroup",
        ),
    ],
)
def test_an_impossible_mount_is_refused_before_anything_is_made(
    mount: Mount, error: type[UsageError], message: str
) -> None:
    with pytest.raises(error) as raised:
        mounts.plan(with_mount(mount))
    assert raised.value.message.startswith(message)


def test_failure_of_any_call_leaves_no_descriptor(root: int) -> None:
    spec = with_mount(Mount("/data", "bind", "/", ("rbind", "ro", "rslave")))
    plan = mounts.plan(replace(spec, root_readonly=True))
    before = open_descriptors()
    missing = frozenset({"dev", "data", "dev/pts", "proc/acpi"})

    whole = RecordingKernel(missing=missing)
    for operation in plan:
        mounting.execute(operation, root, None, whole)
    assert before == open_descriptors()
    assert "move_mount" in whole.names()

    for number in range(len(whole.calls)):
        kernel = RecordingKernel(missing=missing, fails_at=number)
        try:
            for operation in plan:
                mounting.execute(operation, root, None, kernel)
        except OSError as error:
            assert "injected" in str(error)  # noqa: PT017 - a miss also raises, and is handled
        assert before == open_descriptors()


def test_a_mount_is_attached_to_the_place_that_was_found_in_the_root(root: int) -> None:
    kernel = RecordingKernel()
    mounting.execute(Filesystem("/dev/shm", "tmpfs", "shm"), root, None, kernel)

    opened = [arguments for name, arguments in kernel.calls if name == "openat2"]
    assert [(root, "dev/shm", os.O_PATH | os.O_CLOEXEC, 0, 0x10)] == opened
    moved = [arguments for name, arguments in kernel.calls if name == "move_mount"]
    assert [("", "")] == [(each[1], each[3]) for each in moved]


def test_destinations_are_made_inside_the_root_whatever_links_it_holds(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    inside = tmp_path / "root"
    inside.mkdir()
    (inside / "data").symlink_to(outside)
    (inside / "up").symlink_to("../../..")
    fd = os.open(inside, os.O_PATH)
    try:
        with pytest.raises(HostError, match="/data in the container's root leads nowhere"):
            mounting.make_destination(fd, "/data", directory=True)
        with pytest.raises(HostError, match="leads nowhere"):
            mounting.make_destination(fd, "/data/sub", directory=True)
        os.close(mounting.make_destination(fd, "/up/new/deep", directory=True))
        os.close(mounting.make_destination(fd, "/../file", directory=False))
    finally:
        os.close(fd)

    assert [] == list(outside.iterdir())
    assert (inside / "new" / "deep").is_dir()
    assert (inside / "file").is_file()
    assert {"outside", "root"} == {each.name for each in tmp_path.iterdir()}


def test_a_mask_refuses_a_null_device_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "null").touch()
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(HostError, match="is not the null device"):
            mounting.execute(Mask(("/proc/keys",)), fd)
    finally:
        os.close(fd)


def test_each_operation_says_what_it_does() -> None:
    plan = mounts.plan(with_mount(Mount("/data", "bind", "/srv")))
    said = [mounts.describe(each) for each in plan]
    assert "mount proc on /proc" in said
    assert "mount /srv on /data" in said
    assert "make /dev/null" in said


def test_an_overlay_is_one_mount_of_all_layers_highest_first() -> None:
    kernel = RecordingKernel()
    rootfs.overlay([Path("/l/1"), Path("/l/2:x,y")], Path("/u"), Path("/w"), Path("/t"), kernel)
    (name, (source, target, kind, flags, data)) = kernel.calls[0]
    assert ("mount", "overlay", "/t", "overlay", 0) == (name, source, target, kind, flags)
    assert isinstance(data, str)
    assert data.startswith(r"lowerdir=/l/2\:x\,y:/l/1,upperdir=/u,workdir=/w,redirect_dir=off")


def test_many_layers_are_named_by_descriptors(tmp_path: Path) -> None:
    layers = [tmp_path / f"{number:064d}" for number in range(60)]
    for layer in layers:
        layer.mkdir()
    before = open_descriptors()
    kernel = RecordingKernel()
    rootfs.overlay(layers, Path("/u"), Path("/w"), Path("/t"), kernel)

    assert "lowerdir=/proc/self/fd/" in str(kernel.calls[0][1][4])
    assert before == open_descriptors()


def test_identity_replaces_links_and_never_follows_them(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("the host's")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc" / "resolv.conf").symlink_to(target)
    (inside / "etc" / "hosts").write_text("old")

    rootfs.write_identity(inside, "web", None, "nameserver 10.88.0.1\n")

    assert "the host's" == target.read_text()
    assert "nameserver 10.88.0.1\n" == (inside / "etc" / "resolv.conf").read_text()
    assert not (inside / "etc" / "resolv.conf").is_symlink()
    assert "web\n" == (inside / "etc" / "hostname").read_text()
    assert "old" == (inside / "etc" / "hosts").read_text()
    assert {"hostname", "hosts", "resolv.conf"} == {
        each.name for each in (inside / "etc").iterdir()
    }


def test_identity_makes_etc_if_there_is_none(tmp_path: Path) -> None:
    rootfs.write_identity(tmp_path, "web")
    assert "web\n" == (tmp_path / "etc" / "hostname").read_text()
