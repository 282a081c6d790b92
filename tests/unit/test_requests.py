"""What CRIU is asked for, as plain values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pymigrate.checkpoint.requests import (
    DumpOptions,
    Inherited,
    RestoreOptions,
    Subject,
    dump_fields,
    node_mounts,
    restore_fields,
    stdio_links,
)
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import IdMapping, Namespace
from pymigrate.runtime.spec import default_spec

SUBJECT = Subject(pid=7, network_inode=42, mounts=("/data",), freezer="/sys/fs/cgroup/x")


def test_dump_knows_what_is_outside_of_the_container() -> None:
    fields = dump_fields(SUBJECT, 3, DumpOptions())
    assert ["mnt[/data]:/data", "net[42]:network"] == fields["external"]
    assert "/sys/fs/cgroup/x" == fields["freeze_cgroup"]
    assert (True, 0) == (fields["manage_cgroups"], fields["manage_cgroups_mode"])


def test_what_is_made_anew_is_left_out() -> None:
    subject = replace(SUBJECT, left_out=("/sys/fs/cgroup", "/sys/fs/cgroup/cpu"))

    assert ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu"] == dump_fields(subject, 3, DumpOptions())[
        "skip_mnt"
    ]
    assert "skip_mnt" not in dump_fields(SUBJECT, 3, DumpOptions())


def test_shared_network_is_not_outside() -> None:
    shared = Subject(pid=7, network_inode=None, mounts=(), freezer="x")
    assert [] == dump_fields(shared, 3, DumpOptions())["external"]


def test_a_criu_inside_the_network_leaves_it_out_and_what_it_restores_inherits_it() -> None:
    inside = Subject(pid=7, network_inode=42, mounts=(), freezer="x", cut_off=True, inside=True)
    inherited = Inherited(4, {}, cut_off=True, inside=True)

    dumped = dump_fields(inside, 3, DumpOptions(inside=True))
    restored = restore_fields("/root", 3, 4, inherited, RestoreOptions(inside=True))

    assert [] == dumped["external"]
    assert [] == restored["inherit_fd"]


def test_network_is_locked_unless_the_cable_is_unplugged() -> None:
    cut = Subject(pid=7, network_inode=42, mounts=(), freezer="x", cut_off=True)
    assert 2 == dump_fields(SUBJECT, 3, DumpOptions())["network_lock"]
    assert 3 == dump_fields(cut, 3, DumpOptions())["network_lock"]


@pytest.mark.parametrize(
    ("tcp", "asked"),
    [
        ("established", {"tcp_established"}),
        ("close", {"tcp_close"}),
        ("skip", {"tcp_established", "tcp_skip_in_flight"}),
    ],
)
def test_connections(tcp: str, asked: set[str]) -> None:
    fields = dump_fields(SUBJECT, 3, DumpOptions(tcp=tcp))
    assert asked == {name for name in fields if name.startswith("tcp_")}


def test_unknown_wish_for_connections_is_refused() -> None:
    with pytest.raises(UsageError):
        DumpOptions(tcp="maybe")


def test_stdio_and_network_are_inherited_under_the_names_of_the_dump() -> None:
    options = RestoreOptions(descriptors=("/dev/null", "pipe:[11]", "pipe:[12]"))
    inherited = Inherited(network=4, stdio={"stdout": 5, "stderr": 6})
    fields = restore_fields("/root", 7, 8, inherited, options)
    assert [
        {"key": "pipe:[11]", "fd": 5},
        {"key": "pipe:[12]", "fd": 6},
        {"key": "network", "fd": 4},
    ] == fields["inherit_fd"]


def test_one_pipe_for_both_outputs_is_given_once() -> None:
    assert [("stdout", "pipe:[1]")] == stdio_links(("/dev/null", "pipe:[1]", "pipe:[1]"))


def test_what_is_no_pipe_is_not_inherited() -> None:
    assert [] == stdio_links(("/dev/pts/0", "/dev/pts/0", "socket:[3]"))


def test_volumes_are_found_again() -> None:
    options = RestoreOptions(mounts=(("/data", "/srv/data"),))
    fields = restore_fields("/root", 7, 8, Inherited(None, {}), options)
    assert ["mnt[/data]:/srv/data"] == fields["external"]
    assert [] == fields["inherit_fd"]


def test_users_of_their_own_get_a_new_network_and_nodes_of_the_host() -> None:
    dumped = dump_fields(Subject(7, 4026, ("/dev/null",), "/cg", own_users=True), 3, DumpOptions())
    assert ["mnt[/dev/null]:/dev/null"] == dumped["external"]
    options = RestoreOptions(own_users=True, mounts=(("/proc/keys", "/dev/null"),))
    restored = restore_fields("/root", 3, 4, Inherited(5, {}), options)
    assert ["mnt[/proc/keys]:/dev/null"] == restored["external"]
    assert [] == restored["inherit_fd"]
    assert 0x40000000 == dumped["empty_ns"] == restored["empty_ns"]
    assert "empty_ns" not in restore_fields("/root", 3, 4, Inherited(None, {}), options)


def test_only_containers_with_their_own_users_have_nodes_of_the_host() -> None:
    assert () == node_mounts(default_spec(["true"]))
    maps = (IdMapping(0, 100000, 65536),)
    users = default_spec(
        ["true"],
        namespaces=(Namespace("mount"), Namespace("user")),
        uid_mappings=maps,
        gid_mappings=maps,
        masked_paths=("/proc/keys",),
    )
    found = dict(node_mounts(users))
    assert ("/dev/tty", "/dev/null") == (found["/dev/tty"], found["/proc/keys"])
