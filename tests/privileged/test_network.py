"""Cables between network namespaces: reachable, silent when unplugged, announced, removed."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TypeVar

import pytest

from pymigrate.runtime import arp, network, rtnetlink
from pymigrate.runtime.announcing import Announcer
from pymigrate.runtime.errors import HostError, UsageError
from pymigrate.runtime.netns import inside
from pymigrate.runtime.rtnetlink import Link, Links
from pymigrate.runtime.state import NetworkSettings

pytestmark = pytest.mark.privileged

T = TypeVar("T")
BRIDGE = "pymigrate0"


class Machine:
    """A host of its own: a network namespace in which our functions are called."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.netns = self.namespace()

    def namespace(self) -> int:
        fd = network.new_namespace()
        self.stack.callback(os.close, fd)
        return fd

    def call(self, work: Callable[[], T]) -> T:
        return inside(self.netns, work)

    def container(self, number: int, *, plugged: bool = True) -> tuple[int, NetworkSettings]:
        fd = self.namespace()
        settings = NetworkSettings(address=f"10.88.0.{number}/16", gateway="10.88.0.1")
        self.call(lambda: network.attach(settings, fd, f"pm{number}", plugged=plugged))
        return fd, settings

    def links(self, netns: int | None = None) -> Links:
        links = Links(inside(self.netns if netns is None else netns, rtnetlink.open_socket))
        return self.stack.enter_context(links)

    def names(self) -> set[str]:
        return {each.name for each in self.links().all()} - {"lo"}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        yield Machine(stack)
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(5)  # an announcer leaves the closing of its socket to one


def the(link: Link | None) -> Link:
    assert link is not None
    return link


def tcp(stack: contextlib.ExitStack, netns: int) -> socket.socket:
    made = inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    made.settimeout(10)
    return stack.enter_context(made)


def connection(machine: Machine, server: int, client: int, host: str) -> tuple[socket.socket, ...]:
    listener = tcp(machine.stack, server)
    listener.bind((host, 7))
    listener.listen()
    caller = tcp(machine.stack, client)
    caller.connect((host, 7))
    accepted, _ = listener.accept()
    accepted.settimeout(10)
    return caller, machine.stack.enter_context(accepted)


def test_a_container_has_loopback_address_mac_and_default_route(machine: Machine) -> None:
    fd, _ = machine.container(5)
    links = machine.links(fd)
    end = the(links.find("eth0"))

    assert the(links.find("lo")).up
    assert (end.mac, end.up, end.carrier) == ("02:70:0a:58:00:05", True, True)
    assert (end.index, IPv4Interface("10.88.0.5/16")) in links.addresses()
    routes = subprocess.run(
        ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "ip", "-4", "route"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "default via 10.88.0.1 dev eth0" in routes


def test_two_containers_and_the_host_talk(machine: Machine) -> None:
    one, _ = machine.container(5)
    two, _ = machine.container(6)
    caller, accepted = connection(machine, one, two, "10.88.0.5")
    caller.sendall(b"hello")
    assert accepted.recv(5) == b"hello"

    from_host, at_container = connection(machine, two, machine.netns, "10.88.0.6")
    from_host.sendall(b"again")
    assert at_container.recv(5) == b"again"


def test_attach_may_be_repeated_and_changes_what_is_asked(machine: Machine) -> None:
    fd, settings = machine.container(5, plugged=False)
    before = the(machine.links().find("pm5"))
    machine.call(lambda: network.attach(settings, fd, "pm5", plugged=True))

    after = the(machine.links().find("pm5"))
    assert after.index == before.index
    assert (before.up, after.up) == (False, True)
    assert len(machine.links(fd).all()) == 2


def test_a_cable_of_a_container_that_is_gone_is_replaced(machine: Machine) -> None:
    machine.container(5)
    fd, _ = machine.container(5)

    assert the(machine.links(fd).find("eth0")).carrier


def test_plugging_makes_a_container_reachable_at_once(machine: Machine) -> None:
    server, _ = machine.container(5, plugged=False)
    client, _ = machine.container(6)
    links = machine.links(server)
    assert not the(links.find("eth0")).carrier

    machine.call(lambda: network.plug("pm5"))
    begin = time.monotonic()
    assert the(links.find("eth0")).carrier
    caller, accepted = connection(machine, server, client, "10.88.0.5")
    caller.sendall(b"x")
    assert accepted.recv(1) == b"x"
    assert time.monotonic() - begin < 0.5  # without a learning phase; with one it is 30 s


def test_an_unplugged_connection_waits_and_gets_no_reset(machine: Machine) -> None:
    server, _ = machine.container(5)
    client, _ = machine.container(6)
    caller, accepted = connection(machine, server, client, "10.88.0.5")
    machine.call(lambda: network.unplug("pm5"))
    machine.call(lambda: network.unplug("pm5"))
    caller.sendall(b"to the container")
    accepted.sendall(b"from the container")

    assert select.select([caller, accepted], [], [], 0.3) == ([], [], [])
    machine.call(lambda: network.plug("pm5"))
    assert accepted.recv(100) == b"to the container"
    assert caller.recv(100) == b"from the container"


def test_address_and_routes_survive_unplugging(machine: Machine) -> None:
    fd, _ = machine.container(5)
    show = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "ip", "-4", "-o", "route"]
    before = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    machine.call(lambda: network.unplug("pm5"))
    after = subprocess.run(show, capture_output=True, text=True, check=True).stdout

    words = [line.replace("linkdown", "").split() for line in after.splitlines()]
    assert words == [line.split() for line in before.splitlines()]
    assert len(words) == 2


def test_an_address_moves_and_its_connections_find_it(machine: Machine) -> None:
    """Two bridges joined by a cable are two hosts; the address goes from one to the other."""
    other = Machine(machine.stack)
    source, settings = machine.container(5)
    client, _ = machine.container(6)
    target, _ = other.container(5, plugged=False)
    body = rtnetlink.veth_body(
        "uplink",
        master=the(machine.links().find(BRIDGE)).index,
        mtu=1500,
        peer="uplink",
        peer_mac=None,
        peer_netns_fd=other.netns,
    )
    machine.links().add(body)
    there = other.links()
    there.set_master("uplink", the(there.find(BRIDGE)).index)
    there.set_up("uplink", up=True)
    machine.links().set_up("uplink", up=True)
    assert the(machine.links().find("uplink")).forwards
    assert the(there.find("uplink")).forwards

    # The client talks to the source, so that its bridge knows where 10.88.0.5 is.
    caller, _accepted = connection(machine, source, client, "10.88.0.5")
    caller.sendall(b"x")
    machine.call(lambda: network.unplug("pm5"))
    other.call(lambda: network.plug("pm5"))
    with Announcer(target, settings) as announcer:
        announcer.tell()
    begin = time.monotonic()
    again, accepted = connection(other, target, client, "10.88.0.5")
    again.sendall(b"y")

    assert accepted.recv(1) == b"y"
    assert time.monotonic() - begin < 0.5


def test_an_announcement_is_seen_by_a_third_though_all_was_made_unplugged(machine: Machine) -> None:
    fd, settings = machine.container(5, plugged=False)
    third, _ = machine.container(7)
    heard = inside(third, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    with heard:
        heard.settimeout(5)
        heard.bind(("eth0", arp.ETHERTYPE))
        with Announcer(fd, settings) as announcer:
            machine.call(lambda: network.plug("pm5"))
            announcer.tell(times=1)
        packets = [arp.decode(heard.recv(2048)) for _ in range(2)]

    assert packets == list(arp.announcements("02:70:0a:58:00:05", "10.88.0.5"))


def test_announcing_does_not_wait(machine: Machine) -> None:
    fd, settings = machine.container(5)
    begin = time.monotonic()
    with Announcer(fd, settings) as announcer:
        announcer.tell()

        assert time.monotonic() - begin < 0.1
        machine.call(lambda: network.unplug("pm5"))
        announcer.tell()  # nobody hears it, and that is no error


def test_an_address_in_use_is_noticed(machine: Machine) -> None:
    _, settings = machine.container(5)
    free = NetworkSettings(address="10.88.0.9/16")
    ours = NetworkSettings(address="10.88.0.1/16")
    mac = network.mac_of(settings)

    assert machine.call(lambda: network.address_in_use(settings))
    assert not machine.call(lambda: network.address_in_use(settings, except_mac=mac))
    assert machine.call(lambda: network.address_in_use(ours))
    assert not machine.call(lambda: network.address_in_use(free, timeout=0.1))
    machine.call(lambda: network.unplug("pm5"))
    assert not machine.call(lambda: network.address_in_use(settings, timeout=0.1))


def test_without_a_bridge_no_address_is_in_use(machine: Machine) -> None:
    assert not machine.call(
        lambda: network.address_in_use(NetworkSettings(address="10.88.0.9/16"), timeout=5)
    )


def test_the_last_cable_takes_our_bridge_with_it(machine: Machine) -> None:
    machine.container(5)
    machine.container(6)
    machine.call(lambda: network.detach("pm5"))
    machine.call(lambda: network.detach("pm5"))
    assert machine.names() == {BRIDGE, "pm6"}

    machine.call(lambda: network.detach("pm6"))
    assert machine.names() == set()


def test_a_bridge_of_someone_else_is_used_as_it_is_and_stays(machine: Machine) -> None:
    links = machine.links()
    links.add(rtnetlink.bridge_body(BRIDGE, "02:00:00:00:00:01"))
    machine.call(lambda: network.ensure_bridge(BRIDGE))
    machine.container(5)
    index = the(links.find(BRIDGE)).index
    assert index not in {where for where, address in links.addresses() if address.version == 4}

    machine.call(lambda: network.detach("pm5"))
    assert machine.names() == {BRIDGE}


def test_ensure_bridge_gives_the_gateway_address_once(machine: Machine) -> None:
    machine.call(lambda: network.ensure_bridge(BRIDGE, "10.99.0.1/24"))
    machine.call(lambda: network.ensure_bridge(BRIDGE, "10.99.0.1/24"))
    found = [str(address) for _, address in machine.links().addresses() if address.version == 4]

    assert found == ["10.99.0.1/24"]


@pytest.mark.parametrize("requests", range(1, 8))
def test_who_dies_while_he_makes_a_bridge_leaves_none_that_is_half_made(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    left, ask = [requests], Links._request

    def dying(links: Links, kind: int, body: bytes, flags: int = 0) -> list[rtnetlink.Message]:
        answers = ask(links, kind, body, flags)
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)  # as by SIGKILL: nothing is undone
        return answers

    pid = os.fork()
    if pid == 0:
        try:
            monkeypatch.setattr(Links, "_request", dying)
            machine.call(lambda: network.ensure_bridge(BRIDGE, "10.88.0.1/16"))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    machine.container(5)
    links = machine.links()
    bridge = the(links.find(BRIDGE))

    assert bridge.up
    assert "10.88.0.1/16" in {str(it) for index, it in links.addresses() if index == bridge.index}
    machine.call(lambda: network.detach("pm5"))
    assert machine.names() == set()


def test_an_interface_that_is_no_bridge_is_refused(machine: Machine) -> None:
    fd = machine.namespace()
    settings = NetworkSettings(address="10.88.0.5/16", bridge="lo")

    with pytest.raises(UsageError, match="not a bridge"):
        machine.call(lambda: network.attach(settings, fd, "pm5", plugged=True))
    assert machine.names() == set()


def test_a_failure_half_way_leaves_no_cable_and_no_bridge(machine: Machine) -> None:
    fd = machine.namespace()
    settings = NetworkSettings(address="10.88.0.5/16", gateway="192.168.7.1")

    with pytest.raises(HostError, match="pm5") as caught:
        machine.call(lambda: network.attach(settings, fd, "pm5", plugged=True))
    assert "gateway" in caught.value.message  # the kernel's own explanation
    assert machine.names() == set()
    assert {each.name for each in machine.links(fd).all()} == {"lo"}


def test_a_name_taken_in_the_container_is_refused(machine: Machine) -> None:
    fd, _ = machine.container(5)
    settings = NetworkSettings(address="10.88.0.6/16")

    with pytest.raises(HostError):
        machine.call(lambda: network.attach(settings, fd, "pm6", plugged=True))
    assert machine.names() == {BRIDGE, "pm5"}


def test_plugging_a_cable_that_is_gone_is_an_error(machine: Machine) -> None:
    with pytest.raises(HostError, match="plug pm5 in: No such device"):
        machine.call(lambda: network.plug("pm5"))


def test_mode_none_has_loopback_only(machine: Machine) -> None:
    fd = machine.namespace()
    machine.call(lambda: network.attach(NetworkSettings("none"), fd, "pm5", plugged=True))

    assert the(machine.links(fd).find("lo")).up
    assert machine.names() == set()


def test_another_namespace_is_left_alone(machine: Machine) -> None:
    fd = machine.namespace()
    for mode in ("host", "ns:/proc/1/ns/net"):
        settings = NetworkSettings(mode, address="10.88.0.5/16")
        machine.call(lambda settings=settings: network.attach(settings, fd, "p", plugged=True))  # type: ignore[misc]

    assert not the(machine.links(fd).find("lo")).up


def test_an_error_in_a_namespace_leaves_the_caller_where_it_is(machine: Machine) -> None:
    before = Path("/proc/thread-self/ns/net").readlink()

    with pytest.raises(ZeroDivisionError):
        inside(machine.netns, lambda: 1 // 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        inside(-1, lambda: None)
    assert Path("/proc/thread-self/ns/net").readlink() == before
    assert inside(machine.netns, lambda: Path("/proc/thread-self/ns/net").readlink()) != before


def test_a_moved_ipv6_address_is_not_checked_for_a_second(machine: Machine) -> None:
    fd = machine.namespace()
    settings = NetworkSettings(address="fd00::5/64", gateway="fd00::1")
    machine.call(lambda: network.attach(settings, fd, "pm5", plugged=True))
    shown = subprocess.run(
        ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "ip", "-6", "address", "show", "eth0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "fd00::5/64" in shown
    assert "tentative" not in shown
