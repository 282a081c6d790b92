"""A container whose root is somebody else on the host: seen from inside and from outside."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime import namespaces, rootfs, syscalls, userns
from pymigrate.runtime.errors import HostError, MissingFeature
from pymigrate.runtime.settings import KINDS, IdMapping, Namespace, Spec
from pymigrate.runtime.spec import default_spec
from tests.fakes.kernel import RecordingKernel, open_descriptors
from tests.fakes.offspring import offspring
from tests.privileged.tool import Tool, read_link, until

pytestmark = pytest.mark.privileged

UID, GID, SIZE = 231072, 331072, 65536
USERNS = f"--userns={UID}:{GID}:{SIZE}"


def mapped(*maps: IdMapping) -> Spec:
    return default_spec(
        ["true"],
        namespaces=tuple(Namespace(kind) for kind in KINDS),
        uid_mappings=maps,
        gid_mappings=maps,
    )


def owners(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_root_inside_is_nobody_in_particular_outside(tool: Tool) -> None:
    script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map"
    found = tool.run("--rm", USERNS, "sh", "-c", script).stdout.split()
    assert ["0", "0", "0", str(UID), str(SIZE), "0", str(GID), str(SIZE)] == found

    tool.run("-d", "--name", "web", USERNS, "sleep", "1000")
    status = Path(f"/proc/{tool.state('web')['pid']}/status").read_text().splitlines()
    ids = {line.split()[0]: line.split()[1:] for line in status if line.startswith(("Uid", "Gid"))}
    assert {"Uid:": [str(UID)] * 4, "Gid:": [str(GID)] * 4} == ids
    assert "0\n" == tool("exec", "web", "id", "-u").stdout


def test_every_namespace_is_new_and_owned_by_the_users(tool: Tool) -> None:
    script = "for n in /proc/self/ns/*; do echo ${n##*/} $(readlink $n); done"
    text = tool.run("--rm", USERNS, "sh", "-c", script).stdout
    inside = dict(line.split() for line in text.splitlines())

    ours = {name: read_link(f"/proc/self/ns/{name}") for name in inside}
    assert {} == {name: inode for name, inode in inside.items() if inode == ours[name]}
    assert set(namespaces.FILES.values()) <= set(inside)


def test_files_look_roots_inside_and_are_the_mapped_users_on_the_disk(tool: Tool) -> None:
    (tool.rootfs / "others").mkdir()
    os.chown(tool.rootfs / "others", 33, 34)
    (tool.rootfs / "changed").write_text("before")
    script = (
        "stat -c '%n %u:%g' / /bin /bin/busybox /others /etc /etc/hostname;"
        "echo after > /changed; touch /new; mkdir /others/dir; chown 33:34 /new; "
        "touch /proc/self/root/bin/added"
    )
    tool("image", "import", str(tool.rootfs), "busy:1")
    found = tool("run", "--name", "web", "--net", "none", USERNS, "busy:1", "sh", "-c", script)

    assert [
        "/ 0:0", "/bin 0:0", "/bin/busybox 0:0", "/others 33:34", "/etc 0:0", "/etc/hostname 0:0",
    ] == found.stdout.splitlines()  # fmt: skip
    upper = tool.root / "containers/web/upper"
    assert (UID, GID) == owners(upper)
    assert (UID, GID) == owners(upper / "changed") == owners(upper / "bin/added")
    assert (UID + 33, GID + 34) == owners(upper / "new") == owners(upper / "others")
    assert (UID, GID) == owners(upper / "others/dir") == owners(upper / "etc/hostname")
    # The image and other containers are as before.
    assert (0, 0) == owners(tool.rootfs / "changed")
    again = tool.run("--rm", "cat", "/changed").stdout
    assert "before" == again


def test_the_hosts_own_root_can_be_what_it_builds_on(tool: Tool) -> None:
    script = "stat -c %u / /etc/passwd; touch /etc/mine && stat -c %u /etc/mine"
    arguments = ("--net", "none", "--rootfs", "/", "--", "/bin/busybox", "sh", "-c", script)
    found = tool("run", "--name", "web", USERNS, *arguments)
    assert ["0", "0", "0"] == found.stdout.split()
    assert not Path("/etc/mine").exists()
    directory = tool.root / "containers/web"
    assert (UID, GID) == owners(directory / "upper/etc/mine")
    assert not (directory / "lower").exists()


def test_what_it_wrote_is_its_own_at_the_next_start(tool: Tool) -> None:
    tool.run("--name", "web", USERNS, "sh", "-c", "echo x >> /mine; cat /mine")
    tool("start", "web")
    tool("wait", "web")
    assert "x\nx\nx\n" == tool("logs", "web").stdout


def test_a_volume_shows_its_owners_on_the_host_and_roots_files_are_safe(
    tool: Tool, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    secret, own = volume / "secret", volume / "own"
    secret.write_text("hidden")
    secret.chmod(0o600)
    own.write_text("x")
    os.chown(own, UID, GID)
    script = (
        "stat -c %u /v/secret /v/own; cat /v/secret || echo no; echo y > /v/secret || echo no;"
        "chown 0 /v/secret || echo no; touch /v/new || echo no; echo z > /v/own"
    )
    found = tool.run("--rm", USERNS, "-v", f"{volume}:/v", "sh", "-c", script)

    assert ["65534", "0", "no", "no", "no", "no"] == found.stdout.split()
    assert "hidden" == secret.read_text()
    assert "z\n" == own.read_text()
    assert (0, 0) == owners(secret)


def test_the_network_belongs_to_the_containers_root(tool: Tool) -> None:
    script = (
        "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu; stat -c %u /sys/class/net/lo/mtu;"
        "stat -c %u /proc/sys/net/ipv4/ip_forward"
    )
    granted = tool.run("--rm", USERNS, "--cap-add", "net_admin", "sh", "-c", script)
    assert ["1400", "0", "0"] == granted.stdout.split()
    refused = tool.run("--rm", USERNS, "sh", "-c", script)
    assert ["0", "0"] == refused.stdout.split()
    with_the_host = ("--net", "host", "--cap-add", "net_admin")
    hosts = tool.run("--rm", USERNS, *with_the_host, "sh", "-c", "ip link set lo mtu 1400 || :")
    assert "not permitted" in hosts.stderr


def test_no_privilege_of_the_container_reaches_the_host(tool: Tool) -> None:
    script = (
        "mknod /d b 254 0 || echo no; hostname other && hostname;"
        "echo 1 > /proc/sys/kernel/sysrq || echo no; mount -t tmpfs t /tmp && echo mounted;"
        "cat /proc/kcore > /dev/null || echo no"
    )
    found = tool.run("--rm", USERNS, "--privileged", "sh", "-c", "mkdir -p /tmp; " + script)

    # Over its own namespaces it has every right, over the host's none.
    assert ["no", "other", "no", "mounted", "no"] == found.stdout.split()
    assert "other" != os.uname().nodename


def test_a_filesystem_that_cannot_shift_owners_is_named_and_nothing_is_left(
    tool: Tool, tmp_path: Path
) -> None:
    # An overlay is one of those that cannot.
    lower, upper, work, merged = (tmp_path / name for name in ("l", "u", "w", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    rootfs.overlay([tool.rootfs, lower], upper, work, merged)
    try:
        found = tool("run", "--rm", "--net", "none", USERNS, "--rootfs", str(merged), "id", code=22)
    finally:
        syscalls.umount2(str(merged), syscalls.MNT_DETACH)
    assert f"the filesystem of {merged} cannot show its files as other users'" in found.stderr
    assert "hint: " in found.stderr
    assert "" == tool("ps", "-aq").stdout


def test_failure_of_any_call_of_a_shifted_overlay_leaves_none(tmp_path: Path) -> None:
    made = userns.make(mapped(IdMapping(0, UID, SIZE)), network=False)
    places = [tmp_path / name for name in ("one", "two", "upper", "work", "target")]
    for place in places:
        place.mkdir()
    one, two, upper, work, target = places
    mounted, before = Path("/proc/self/mountinfo").read_text(), open_descriptors()
    number = 0
    try:
        while True:
            kernel = RecordingKernel(real=syscalls, fails_at=number)
            try:
                rootfs.overlay([one, two], upper, work, target, kernel, users=made.users)
            except OSError:
                # An unmount that fails is reported, and its mount goes with the namespace.
                if kernel.names()[number] == "umount2":
                    syscalls.umount2(str(kernel.calls[number][1][0]), syscalls.MNT_DETACH)
                    if "mount" in kernel.names():
                        syscalls.umount2(str(target), syscalls.MNT_DETACH)
                assert mounted == Path("/proc/self/mountinfo").read_text()
                assert before == open_descriptors()
                number += 1
                continue
            break
        syscalls.umount2(str(target), syscalls.MNT_DETACH)
        assert mounted == Path("/proc/self/mountinfo").read_text()
    finally:
        os.close(made.users)
    assert 9 == number


def test_a_mapping_that_the_kernel_refuses_leaves_nothing() -> None:
    before = open_descriptors()
    overlapping = mapped(IdMapping(0, 100, 10), IdMapping(5, 200, 10))
    with pytest.raises(HostError, match="refuses to map the container's users"):
        userns.make(overlapping, network=True)
    for number in (0, 1):
        kernel = RecordingKernel(real=syscalls, fails_at=number)
        with pytest.raises(MissingFeature, match=r"this host makes no (user|network) namespace"):
            userns.make(mapped(IdMapping(0, 100, 10)), network=True, kernel=kernel)
    assert before == open_descriptors()
    assert offspring() == []


# Written down and continued


COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done"


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a directory to which everybody may go, as pytest's are not."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.criu
@pytest.mark.parametrize("option", ["-d", "-dt"])
def test_it_is_written_down_and_continued_again_and_again(
    tool: Tool, tmp_path: Path, place: Path, option: str
) -> None:
    volume, archive = place / "volume", str(tmp_path / "web.tar")
    volume.mkdir()
    os.chown(volume, UID, GID)
    options = (option, "--name", "web", USERNS, "--cap-add", "net_admin", "-v", f"{volume}:/v")
    begin = "exec 5>/v/open; mkdir /own; busybox chown 33:33 /own; "
    tool.run(*options, "sh", "-c", begin + COUNT)
    count = tool.root / "containers/web/upper/count"

    def counts_beyond(number: int) -> bool:
        return count.exists() and int(count.read_text() or 0) > number

    number = 3
    for _ in range(2):
        until(lambda: counts_beyond(number))  # noqa: B023 - called at once
        tool("checkpoint", "web", "-o", archive)
        number = int(count.read_text() or number)  # it may have stood still between two writes
        tool("restore", archive)
        Path(archive).unlink()
    until(lambda: counts_beyond(number))
    script = (
        "id -u; cat /proc/self/uid_map; stat -c %u:%g /own /count /dev /proc/1/fd/5;"
        "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu; readlink /proc/1/fd/5;"
        "wc -c < /proc/timer_list; dd if=/dev/zero bs=2 count=1 2>/dev/null | wc -c"
    )
    found = tool("exec", "web", "sh", "-c", script).stdout.split()
    assert ["0", "0", str(UID), str(SIZE)] == found[:4]
    assert ["33:33", "0:0", "0:0", "0:0", "1400", "/v/open", "0", "2"] == found[4:]
    assert (UID, GID) == owners(count)


@pytest.mark.criu
def test_with_the_hosts_network_it_is_refused_before_the_freeze(tool: Tool, tmp_path: Path) -> None:
    # CRIU would have to mount a sysfs that is not the container's users'.
    tool.run("-d", "--name", "web", USERNS, "--net", "host", "sleep", "1000")
    archive = tmp_path / "web.tar"
    found = tool("checkpoint", "web", "-o", str(archive), code=31)
    assert "has users of its own and a network that is not" in found.stderr
    assert not archive.exists()
    assert "running" == tool.state("web")["status"]


@pytest.mark.criu
def test_a_volume_that_its_users_cannot_reach_is_refused_before_the_freeze(
    tool: Tool, place: Path
) -> None:
    place.chmod(0o700)
    (place / "volume").mkdir()
    tool.run("-d", "--name", "web", USERNS, "-v", f"{place}/volume:/v", "sleep", "1000")
    found = tool("checkpoint", "web", "-o", str(place / "web.tar"), code=31)
    assert f"may not pass through {place}" in found.stderr
    assert "running" == tool.state("web")["status"]
