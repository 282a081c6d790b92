"""What is judged to stand against a checkpoint, from looks that were made up."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.checkpoint import proc_lines, scan, sight
from pymigrate.checkpoint.findings import Severity
from pymigrate.checkpoint.proc_lines import Mounted, NetlinkSocket, TcpSocket
from pymigrate.checkpoint.requests import GHOST_LIMIT
from pymigrate.checkpoint.scan import judge
from pymigrate.checkpoint.sight import Opened, Process, Sight, Watch
from pymigrate.runtime import sockdiag
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.sockdiag import UnixSocket

OURS = {kind: f"{kind}:[1]" for kind in sight.NAMESPACES}
INIT = Process(10, "init", namespaces=OURS)
ROOT = Mounted(7, 1, 0x20, "/", "/", "overlay")
READ_ONLY = Mounted(7, 1, 0x20, "/", "/", "overlay", read_only=True)
OVER = Mounted(8, 7, 0x21, "/", "/t", "tmpfs")
GROUP = Mounted(9, 7, 0x22, "/", "/sys/fs/cgroup/cpu", "cgroup")
PLAIN = Sight(init=10, processes=(INIT,), mounts=(ROOT,), memory_device=1)
BLOCKS, CHOICE, NOTE = Severity.BLOCKS, Severity.CHOICE, Severity.NOTE


def with_opened(*opened: Opened, **more: object) -> Sight:
    return replace(PLAIN, processes=(replace(INIT, opened=opened),), **more)  # type: ignore[arg-type]


def with_child(**changes: object) -> Sight:
    child = Process(11, "child", parent=10, namespaces=OURS)
    return replace(PLAIN, processes=(INIT, replace(child, **changes)))  # type: ignore[arg-type]


def sock(protocol: str, inode: int = 5) -> Opened:
    return Opened(3, f"socket:[{inode}]", "socket", inode, protocol=protocol)


def character(major: int, minor: int, **more: object) -> Opened:
    return Opened(3, "/dev/x", "character", node=(major, minor), mount=7, **more)  # type: ignore[arg-type]


def file(link: str = "/a", **more: object) -> Opened:
    return Opened(3, link, **{"kind": "file", "mount": 7, **more})  # type: ignore[arg-type]


def tcp(state: int, waiting: int = 0, *, inode: int = 5, outside: bool = False) -> TcpSocket:
    return TcpSocket(inode, state, waiting, "0.0.0.0:80", "10.0.0.9:1", outside)


def inotify(device: int) -> Opened:
    return Opened(4, "anon_inode:inotify", watches=(Watch(99, device),))


FOUND = [
    ("io_uring", BLOCKS, with_opened(Opened(3, "anon_inode:[io_uring]"))),
    ("io_uring", BLOCKS, with_child(mapped=("anon_inode:[io_uring]",))),
    ("descriptor", BLOCKS, with_opened(Opened(3, "anon_inode:[userfaultfd]"))),
    ("descriptor", BLOCKS, with_opened(Opened(3, "anon_inode:[perf_event]"))),
    ("descriptor", BLOCKS, with_opened(Opened(3, "anon_inode:bpf-map"))),
    ("descriptor", BLOCKS, with_opened(Opened(3, "anon_inode:seccomp notify"))),
    ("device", BLOCKS, with_opened(character(10, 232))),
    ("gpu", BLOCKS, with_opened(character(195, 0))),
    ("gpu", BLOCKS, with_opened(Opened(3, "/dev/dri/renderD128", "character", node=(226, 128)))),
    ("gpu", BLOCKS, with_opened(Opened(3, "/dev/kfd", "character", node=(511, 0)))),
    ("gpu", BLOCKS, with_opened(Opened(3, "/dev/nvidia-uvm", "character", node=(510, 0)))),
    ("device", BLOCKS, with_opened(character(10, 200, interface="tun0"))),
    ("device", BLOCKS, with_opened(Opened(3, "/dev/loop0", "block", node=(7, 0), mount=7))),
    ("gpu", BLOCKS, with_child(mapped=("/dev/nvidia0",))),
    ("gpu", BLOCKS, with_child(mapped=("/dev/dri/card0",))),
    ("device", BLOCKS, with_child(mapped=("/dev/mem",))),
    ("deleted-file", BLOCKS, with_opened(file("/a (deleted)", names=0, bytes=GHOST_LIMIT + 1))),
    ("lost-mount", BLOCKS, with_opened(file(mount=8))),
    (
        "cgroup-file",
        BLOCKS,
        with_opened(
            file("/sys/fs/cgroup/cpu/cpu.stat", mount=9),
            mounts=(ROOT, GROUP),
            left_out=("/sys/fs/cgroup",),
        ),
    ),
    ("inotify", BLOCKS, with_opened(inotify(0x20))),
    ("namespace", BLOCKS, with_child(namespaces={**OURS, "uts": "uts:[2]"})),
    ("namespace", BLOCKS, with_child(namespaces={**OURS, "time": "time:[2]"})),
    ("traced", BLOCKS, with_child(tracer=10)),
    ("cgroup", BLOCKS, with_child(own_group=False)),
    ("secret-memory", BLOCKS, with_child(mapped=("/secretmem (deleted)",))),
    ("probes", BLOCKS, with_child(mapped=("[uprobes]",))),
    ("huge-pages", BLOCKS, with_child(mapped=("/anon_hugepage (deleted)",))),
    ("huge-pages", NOTE, replace(with_child(mapped=("/anon_hugepage",)), huge_pages=1)),
    ("shared-memory", BLOCKS, replace(with_child(mapped=("/SYSV00000000",)), own_ipc=False)),
    ("limits", BLOCKS, replace(with_child(user=33), can_read_limits=False)),
    ("users-network", BLOCKS, replace(PLAIN, own_users=True, own_network=False)),
    ("mount", BLOCKS, replace(PLAIN, mounts=(ROOT, Mounted(8, 7, 0x21, "/", "/m", "fuse.sshfs")))),
    ("mount", BLOCKS, replace(PLAIN, mounts=(ROOT, Mounted(8, 7, 0x21, "/", "/m", "overlay")))),
    ("hidden-file", BLOCKS, with_opened(file("/t/f"), mounts=(ROOT, OVER))),
    ("deleted-file", BLOCKS, with_opened(file("/a (deleted)"), mounts=(READ_ONLY,))),
    ("pipe", BLOCKS, with_opened(Opened(3, "pipe:[9]", "fifo", 9, packets=True))),
    ("socket", BLOCKS, with_opened(sock("AF_VSOCK"))),
    ("socket", BLOCKS, with_opened(sock("MPTCP"))),
    ("socket", BLOCKS, with_opened(sock("PING"))),
    ("lost-mount", BLOCKS, with_opened(file(kind="directory", mount=8, path_only=True))),
    ("secret-memory", BLOCKS, with_opened(file("/secretmem (deleted)", mount=8))),
    ("netlink", BLOCKS, with_opened(sock("NETLINK"), netlink=(NetlinkSocket(5, 1, 0, 20),))),
    ("netlink", BLOCKS, with_opened(sock("NETLINK"), netlink=(NetlinkSocket(5, 0, 1, 0),))),
    ("unix-outside", BLOCKS, with_opened(sock("UNIX-STREAM"), unix=(UnixSocket(5, 6),))),
    ("unix-outside", BLOCKS, with_opened(sock("UNIX"), unix=(UnixSocket(5, 0, dangling=True),))),
    ("half-open", CHOICE, with_opened(sock("TCP"), tcp=(tcp(10, 2),))),
    ("tcp", NOTE, with_opened(sock("TCP"), tcp=(tcp(1, outside=True),))),
    ("exec", NOTE, replace(PLAIN, processes=(INIT, Process(12, "sh", parent=1)))),
    ("zombie", NOTE, with_child(state="Z", namespaces={}, own_group=False)),
]  # fmt: skip


@pytest.mark.parametrize(("check", "severity", "seen"), FOUND)
def test_found(check: str, severity: Severity, seen: Sight) -> None:
    assert [(check, severity)] == [(each.check, each.severity) for each in judge(seen)]


FINE = [
    with_opened(Opened(3, "anon_inode:[eventpoll]"), Opened(4, "anon_inode:[pidfd]")),
    with_opened(character(1, 3), character(136, 0), character(5, 2), character(10, 200)),
    with_opened(character(10, 232, path_only=True)),
    with_opened(file("/a (deleted)", names=0, bytes=GHOST_LIMIT)),
    with_opened(Opened(3, "/memfd:x (deleted)", "file", names=0, mount=99, device=1)),
    with_opened(file("/memfd:h (deleted)", names=0, mount=99), huge_pages=1),
    with_opened(inotify(0x20), hinted=frozenset({Watch(99, 0x20)})),
    with_opened(inotify(0x33), mounts=(ROOT, Mounted(8, 7, 0x33, "/", "/tmp", "tmpfs"))),
    with_child(namespaces={**OURS, "mnt": "mnt:[2]", "net": "net:[2]"}),
    with_child(mapped=("/SYSV00000000", "/[aio]", "/dev/zero (deleted)")),
    with_child(user=33),
    with_opened(file("/t/f", mount=8), file("/tx"), mounts=(ROOT, OVER)),
    with_opened(file("/t", kind="directory"), mounts=(ROOT, OVER)),
    with_opened(file("/t/f (deleted)", names=0), mounts=(ROOT, OVER)),
    with_opened(Opened(3, "pipe:[9]", "fifo", 9)),
    with_opened(sock("TCP"), tcp=(tcp(10), tcp(1), tcp(10, 3, inode=6))),
    with_opened(sock("UDP"), sock("RAW"), sock("PACKET")),
    with_opened(sock("UNIX"), sock("UNIX", 6), unix=(UnixSocket(5, 6), UnixSocket(6, 5))),
    with_opened(
        sock("UNIX"), unix=(UnixSocket(5, 0, dangling=True), UnixSocket(6, 0, waiting=(5,)))
    ),
    with_opened(sock("UNIX"), unix=(UnixSocket(5, 0),)),
    with_opened(sock("UNIX"), unix=(UnixSocket(5, 6), UnixSocket(6, 5))),  # it is being passed on
    replace(
        PLAIN,
        mounts=(ROOT, Mounted(8, 7, 0x21, "/", "/data/m", "fuse.sshfs")),
        announced=("/data",),
    ),
    replace(PLAIN, mounts=(ROOT, Mounted(8, 7, 0x20, "/u", "/t", "overlay"))),
    replace(PLAIN, own_users=True),
    replace(PLAIN, init=99),
]


@pytest.mark.parametrize("seen", FINE)
def test_what_criu_can_write_down_is_no_finding(seen: Sight) -> None:
    assert [] == judge(seen)


def test_half_open_connections_are_no_finding_where_they_are_dropped() -> None:
    seen = with_opened(sock("TCP"), tcp=(tcp(10, 2),))
    assert [] == judge(seen, "skip")
    assert ["half-open"] == [each.check for each in judge(seen, "close")]


def test_where_no_connection_may_be_each_one_that_is_there_is_a_finding() -> None:
    """Also one within the container: CRIU asks for --tcp-established in either case."""
    listening = with_opened(sock("TCP"), tcp=(tcp(10),))
    assert [] == judge(listening, "none")
    (found,) = judge(with_opened(sock("TCP"), tcp=(tcp(1),)), "none")
    assert ("tcp", CHOICE) == (found.check, found.severity)
    assert "--tcp-established" in found.remedy


def test_the_other_end_of_a_unix_connection_is_named_where_a_process_outside_holds_it() -> None:
    unix = (UnixSocket(5, 6), UnixSocket(6, 5))  # an accepted one is of the caller's network
    (found,) = judge(with_opened(sock("UNIX"), unix=unix, holders={6: "dockerd (PID 7)"}))
    assert ("unix-outside", True) == (found.check, "to dockerd (PID 7), outside" in found.seen)


def test_a_finding_names_process_descriptor_and_path_and_says_what_to_do() -> None:
    (found,) = judge(with_opened(file("/var/log/x", mount=8)))
    assert (10, 3, "/var/log/x") == (found.pid, found.descriptor, found.path)
    for words in ("init (PID 10)", "descriptor 3", "/var/log/x"):
        assert words in found.seen
    assert found.remedy
    assert "blocks" == found.to_document()["severity"]


def test_what_blocks_comes_before_what_is_only_noted() -> None:
    seen = replace(
        PLAIN,
        processes=(
            INIT,
            Process(12, "sh", parent=1),
            Process(13, "x", 10, tracer=9, namespaces=OURS),
        ),
    )
    assert ["traced", "exec"] == [each.check for each in judge(seen)]


def test_every_check_is_found_by_a_row_of_this_table_and_can_be_skipped_by_name() -> None:
    assert sorted(scan.CHECKS) == sorted({check for check, _, _ in FOUND})
    scan.check_names(scan.CHECKS)
    with pytest.raises(UsageError, match="no such check to skip: moon"):
        scan.check_names(["io_uring", "moon"])


def test_lines_of_the_kernel_are_read() -> None:
    line = (
        "   0: 0100007F:1B58 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0"
        "        0 12345 1 0000000000000000 100 0 0 10 0"
    )
    assert TcpSocket(12345, 10, 2, "127.0.0.1:7000", "0.0.0.0:0", outside=False) == (
        proc_lines.parse_tcp(line)
    )
    outside = proc_lines.parse_tcp(line.replace("00000000:0000 0A", "0900000A:0050 01"))
    assert outside is not None
    assert ("10.0.0.9:80", True) == (outside.remote, outside.outside)
    mapped = line.replace("00000000:0000 0A", "0000000000000000FFFF00000100007F:0050 01")
    assert (found := proc_lines.parse_tcp(mapped)) is not None
    assert not found.outside
    assert proc_lines.parse_tcp("cut off") is None
    netlink = "0000000000000000 0   4242       00000001 20 0 0 2 0 777"
    assert NetlinkSocket(777, 4242, 1, 20) == proc_lines.parse_netlink(netlink)
    mount = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
    assert Mounted(
        36, 35, os.makedev(98, 0), "/mnt1", "/mnt\\0402", "ext3", "/dev/root"
    ) == proc_lines.parse_mount(mount)


def test_this_very_process_is_seen_with_all_that_it_holds(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, (tmp_path / "gone").open("w") as stream:
        stream.write("x" * 5000)
        stream.flush()
        (tmp_path / "gone").unlink()
        process = sight.process(os.getpid(), own_group=True)
        assert process is not None
        opened = {each.number: each for each in process.opened}
        assert opened[left.fileno()].protocol.startswith("UNIX")
        gone = opened[stream.fileno()]
        assert ("file", 0) == (gone.kind, gone.names)
        assert gone.link.endswith("gone (deleted)")
    assert os.getppid() == process.parent
    assert set(process.namespaces) == set(sight.NAMESPACES)


def test_an_answer_of_the_kernel_about_a_unix_socket_is_read() -> None:
    head = bytes([1, 1, 1, 0]) + (5).to_bytes(4, "little") + bytes(8)
    peer = bytes([8, 0, 2, 0]) + (6).to_bytes(4, "little")
    name = bytes([7, 0, 0, 0]) + b"/s\0\0"
    assert UnixSocket(5, 6, "/s") == sockdiag.parse(head + peer + name)
    assert UnixSocket(5, 0, dangling=True) == sockdiag.parse(head)
    shut = bytes([5, 0, 6, 0, 3, 0, 0, 0])
    assert UnixSocket(5, 0) == sockdiag.parse(head + shut)
    listening = bytes([1, 1, 10, 0]) + head[4:]
    icons = bytes([12, 0, 3, 0]) + (7).to_bytes(4, "little") + (8).to_bytes(4, "little")
    assert UnixSocket(5, 0, waiting=(7, 8)) == sockdiag.parse(listening + icons)


def test_who_descends_is_asked_once_more() -> None:
    here, parent = os.getpid(), os.getppid()

    assert True is sight.descends(here, here)
    assert True is sight.descends(here, parent)
    assert False is sight.descends(parent, here)


def test_a_parent_that_ends_meanwhile_leaves_its_child_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parents = iter([{"PPid": "8"}, None, {"PPid": "5"}])

    def told(_path: str) -> dict[str, str]:
        if (fields := next(parents)) is None:
            raise ProcessLookupError
        return fields

    monkeypatch.setattr(sight, "_fields", told)
    assert True is sight.descends(9, 5)


def test_who_has_ended_is_nobody() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert None is sight.descends(process.pid, os.getpid())
