"""Published ports, the way out, and rates, in a network namespace that is a host of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pymigrate.runtime import network, syscalls
from pymigrate.runtime.netns import inside
from tests.privileged.tool import Tool, until

pytestmark = pytest.mark.privileged
T = TypeVar("T")
HERE, THERE = "192.0.2.1", "192.0.2.2"  # the host, and another one beside it
WHO = "#!/bin/sh\necho Content-type: text/plain\necho\necho $REMOTE_ADDR\n"
SERVE = ("busybox", "httpd", "-f", "-p", "80", "-h", "/www")


@pytest.fixture
def other() -> Iterator[int]:
    """Move the test to a host of its own; return the network namespace of a host beside it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    beside = network.new_namespace()
    syscalls.unshare(syscalls.CLONE_NEWNET)
    try:
        ip("link", "set", "lo", "up")
        place = f"/proc/{os.getpid()}/fd/{beside}"
        ip("link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", place)
        ip("address", "add", f"{HERE}/24", "dev", "up0")
        ip("link", "set", "up0", "up")
        inside(beside, lambda: ip("address", "add", f"{THERE}/24", "dev", "up0"))
        inside(beside, lambda: ip("link", "set", "up0", "up"))
        inside(beside, lambda: ip("link", "set", "lo", "up"))
        yield beside
    finally:
        syscalls.setns(before, syscalls.CLONE_NEWNET)
        os.close(before)
        os.close(beside)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)


@pytest.fixture
def tool(tmp_path: Path, other: int) -> Iterator[Tool]:
    made = Tool(tmp_path)
    (made.rootfs / "www/cgi-bin").mkdir(parents=True)
    (made.rootfs / "www/cgi-bin/who").write_text(WHO)
    (made.rootfs / "www/cgi-bin/who").chmod(0o755)
    yield made
    left = made("ps", "-aq").stdout.split()
    if left:
        made("rm", "-f", *left)
    assert "table" not in nft("list", "tables")


def nft(*words: str) -> str:
    done = subprocess.run(["nft", *words], check=True, capture_output=True, text=True, timeout=20)
    return done.stdout


def ask(address: str, port: int) -> str:
    """Return by which address the container's server sees us."""
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.sendall(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    line = answer.decode().split("\n\n")[-1].strip()
    return line.strip("[]").removeprefix("::ffff:")  # its socket takes both families


def serve(tool: Tool, *options: str, name: str = "web") -> None:
    tool.run("-d", "--name", name, "--net", "bridge", *options, *SERVE)
    address = json.loads(tool("inspect", name).stdout)["network"]["address"].partition("/")[0]

    def answers() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return bool(ask(address, 80))
        return False

    until(answers)


def within(tool: Tool, name: str, work: Callable[[], T]) -> T:
    """Call something in a container's network."""
    fd = os.open(f"/proc/{tool.state(name)['pid']}/ns/net", os.O_RDONLY)
    try:
        return inside(fd, work)
    finally:
        os.close(fd)


def test_a_published_port_leads_in_from_here_and_from_elsewhere(tool: Tool, other: int) -> None:
    serve(tool, "-p", "8080:80")

    assert inside(other, lambda: ask(HERE, 8080)) == THERE  # the client's own address
    assert ask(HERE, 8080) == HERE
    assert ask("127.0.0.1", 8080) == "10.88.0.1"
    tool("kill", "web")
    tool("wait", "web")
    assert nft("list", "tables") == ""
    with pytest.raises(ConnectionRefusedError):
        inside(other, lambda: ask(HERE, 8080))


def test_a_container_that_is_run_again_has_its_ports_again(tool: Tool, other: int) -> None:
    serve(tool, "-p", "8080:80", "--restart", "always", "--bandwidth", "40mbit")
    os.kill(int(str(tool.state("web")["pid"])), 9)
    until(lambda: tool.state("web")["restarts"] == 1)

    def leads_in() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return inside(other, lambda: ask(HERE, 8080)) == THERE
        return False

    until(leads_in)
    tool("stop", "-t", "0", "web")
    assert nft("list", "tables") == ""


def test_a_container_reaches_its_own_published_port(tool: Tool) -> None:
    serve(tool, "-p", "8080:80")

    found = tool("exec", "web", "busybox", "wget", "-qO-", f"http://{HERE}:8080/cgi-bin/who")
    assert "10.88.0.1]" in found.stdout


def test_only_the_given_address_of_the_host_leads_in(tool: Tool, other: int) -> None:
    serve(tool, "-p", "127.0.0.1:8080:80")

    assert ask("127.0.0.1", 8080) == "10.88.0.1"
    with pytest.raises(ConnectionRefusedError):
        inside(other, lambda: ask(HERE, 8080))


HERE6, THERE6 = "2001:db8::1", "2001:db8::2"


@pytest.fixture
def other6(other: int) -> int:
    """Give the two hosts IPv6 addresses as well."""
    ip("address", "add", f"{HERE6}/64", "dev", "up0", "nodad")
    inside(other, lambda: ip("address", "add", f"{THERE6}/64", "dev", "up0", "nodad"))
    return other


def test_a_port_leads_to_the_ipv6_address_too(tool: Tool, other6: int) -> None:
    serve(tool, "-p", "8080:80", "--ip6", "fd00:88::5")

    assert inside(other6, lambda: ask(HERE, 8080)) == THERE
    assert inside(other6, lambda: ask(HERE6, 8080)) == THERE6
    assert ask(HERE6, 8080) == HERE6
    held = tool.run("--net", "bridge", "--ip6", "fd00:88::6", "-p", f"[{HERE6}]:8080:80", "true",
                    code=None)  # fmt: skip
    assert "Address already in use" in held.stderr


def test_a_port_of_an_ipv6_address_leads_in_by_that_alone(tool: Tool, other6: int) -> None:
    serve(tool, "-p", f"[{HERE6}]:8080:80", "--ip6", "fd00:88::5")

    assert inside(other6, lambda: ask(HERE6, 8080)) == THERE6
    with pytest.raises(ConnectionRefusedError):
        inside(other6, lambda: ask(HERE, 8080))


def test_a_port_of_an_ipv6_address_needs_one_of_the_container(tool: Tool, other6: int) -> None:
    words = ("--net", "bridge", "-p", f"[{HERE6}]:8080:80", "true")

    assert "it has no address of that kind" in tool.run(*words, code=None).stderr


def test_udp_leads_in_too(tool: Tool, other: int) -> None:
    tool.run("-d", "--name", "web", "--net", "bridge", "-p", "5353:53/udp", "sleep", "1000")

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", 53))
        made.settimeout(5)
        return made

    def client() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(5)
        return made

    with within(tool, "web", bound) as server, inside(other, client) as asking:
        asking.sendto(b"question", (HERE, 5353))
        words, place = server.recvfrom(100)
        assert (words, place[0]) == (b"question", THERE)
        server.sendto(b"answer", place)
        assert asking.recvfrom(100) == (b"answer", (HERE, 5353))


def test_a_port_in_use_is_refused_and_nothing_is_left(tool: Tool) -> None:
    tool.run("-d", "--name", "one", "--net", "bridge", "-p", "8080:80", "sleep", "1000")
    refused = tool.run(
        "--name", "two", "--net", "bridge", "-p", "8080:81", "sleep", "1000", code=None
    )
    assert refused.returncode == 125
    assert "port 8080/tcp" in refused.stderr
    assert tool.state("two")["status"] == "created"
    tool("kill", "one")
    tool("wait", "one")
    with socket.create_server(("0.0.0.0", 8080)):
        assert "port 8080/tcp" in tool("start", "two", code=20).stderr
    tool("start", "two")


def test_containers_reach_the_world_by_the_hosts_address(tool: Tool, other: int) -> None:
    server = inside(other, lambda: socket.create_server((THERE, 80)))
    server.settimeout(10)
    with server:
        tool.run("-d", "--name", "web", "--net", "bridge", "sleep", "1000")
        asking = within(tool, "web", lambda: socket.create_connection((THERE, 80), timeout=10))
        with asking, server.accept()[0] as accepted:
            assert accepted.getpeername()[0] == HERE
    tool("rm", "-f", "web")
    assert nft("list", "tables") == ""


def test_who_sits_on_the_bridge_does_not_reach_the_hosts_loopback(tool: Tool) -> None:
    serve(tool, "-p", "8080:80")
    with socket.create_server(("127.0.0.1", 9999)):
        within(tool, "web", lambda: ip("link", "set", "lo", "down"))
        within(tool, "web", lambda: ip("route", "add", "127.0.0.0/8", "via", "10.88.0.1"))
        within(
            tool, "web", lambda: Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
        )
        with pytest.raises(TimeoutError):
            within(
                tool,
                "web",
                lambda: socket.create_connection(
                    ("127.0.0.1", 9999), timeout=1, source_address=("10.88.0.2", 0)
                ),
            )


def test_a_container_has_an_ipv6_address_too_that_its_neighbours_and_the_host_reach(
    tool: Tool,
) -> None:
    tool.run("-d", "--name", "old", "--net", "bridge", "sleep", "1000")  # our bridge is there
    for name, address in (("one", "fd00:88::5"), ("two", "fd00:88::6/64")):
        tool.run("-d", "--name", name, "--net", "bridge", "--ip6", address, "sleep", "1000")
    place = ("fd00:88::5", 80)
    server = within(tool, "one", lambda: socket.create_server(place, family=socket.AF_INET6))
    server.settimeout(10)

    def connect() -> socket.socket:
        return socket.create_connection(place, timeout=10)

    with server:
        with connect(), server.accept()[0] as accepted:
            assert accepted.getpeername()[0] == "fd00:88::1"
        with within(tool, "two", connect), server.accept()[0] as accepted:
            assert accepted.getpeername()[0] == "fd00:88::6"
    routes = tool("exec", "one", "ip", "-6", "route").stdout
    assert "default via fd00:88::1 dev eth0" in routes
    assert "fd00:88::5" in tool("exec", "one", "cat", "/etc/hosts").stdout
    assert tool("exec", "one", "ip", "-4", "addr", "show", "eth0").stdout.count("inet ") == 1
    again = ("--net", "bridge", "--ip6", "fd00:88::5", "true")
    assert "container one" in tool.run(*again, code=2).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--net", "none", "--ip6", "fd00:88::5"), "--net bridge"),
        (("--net", "bridge", "--ip6", "10.88.0.9"), "no"),
        (("--net", "bridge", "--ip6", "ff02::1"), "single machine"),
    ],
)
def test_an_ipv6_address_that_no_container_can_have_is_refused(
    tool: Tool, options: tuple[str, ...], message: str
) -> None:
    assert message in tool.run(*options, "true", code=2).stderr
    assert tool("ps", "-aq").stdout == ""


@pytest.mark.criu
def test_an_ipv6_address_comes_back_with_a_restore_and_may_be_another(
    tool: Tool, tmp_path: Path
) -> None:
    options = ("--net", "bridge", "--ip6", "fd00:88::5")
    tool.run("-d", "--name", "web", *options, *SERVE)
    until(lambda: _answers("fd00:88::5"))
    file = str(tmp_path / "web.tar")
    tool("checkpoint", "web", "-o", file)
    tool("restore", file)
    assert _answers("fd00:88::5")
    taken = tool("restore", file, "--name", "copy", "--ip", "10.88.0.9", code=12)
    assert "fd00:88::5" in taken.stderr
    tool("restore", file, "--name", "copy", "--ip", "10.88.0.9", "--ip6", "fd00:88::9")
    assert _answers("fd00:88::9")
    assert _answers("fd00:88::5")


def _answers(address: str) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        return ask(address, 80) != ""
    return False


@pytest.mark.parametrize("into", [True, False], ids=["ingress", "egress"])
def test_the_rate_holds_within_a_tenth_in_each_direction(tool: Tool, into: bool) -> None:
    tool.run("-d", "--name", "web", "--net", "bridge", "--bandwidth", "40mbit", "sleep", "1000")
    listener = within(tool, "web", lambda: socket.create_server(("10.88.0.2", 80)))
    with listener, socket.create_connection(("10.88.0.2", 80)) as ours, listener.accept()[0] as its:
        sender, receiver = (ours, its) if into else (its, ours)
        sending = threading.Thread(target=_send_all, args=(sender,))
        sending.start()
        _receive(receiver, 0.5)  # the bucket's first burst, and TCP's start
        begin = time.monotonic()
        count = _receive(receiver, 2.0)
        rate = count * 8 / (time.monotonic() - begin)
        receiver.shutdown(socket.SHUT_RDWR)
        receiver.close()
        sending.join()

    assert rate == pytest.approx(40e6, rel=0.1)


def _send_all(sender: socket.socket) -> None:
    block = bytes(1 << 16)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            sender.sendall(block)


def _receive(receiver: socket.socket, seconds: float) -> int:
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += len(receiver.recv(1 << 16))
    return count


@pytest.mark.criu
def test_ports_and_rate_come_back_with_a_restore_and_may_be_others(
    tool: Tool, other: int, tmp_path: Path
) -> None:
    serve(tool, "-p", "8080:80", "--bandwidth", "40mbit")
    file = str(tmp_path / "web.tar.zst")
    tool("checkpoint", "web", "-o", file)
    tool("rm", "web")
    assert nft("list", "tables") == ""

    tool("restore", file)
    assert inside(other, lambda: ask(HERE, 8080)) == THERE
    assert json.loads(tool("inspect", "web").stdout)["network"]["bandwidth"] == 40_000_000
    assert (
        "port 8080/tcp"
        in tool("restore", file, "--name", "copy", "--ip", "10.88.0.9", code=20).stderr
    )
    tool("restore", file, "--name", "copy", "--ip", "10.88.0.9", "-p", "8081:80")
    assert inside(other, lambda: ask(HERE, 8081)) == THERE
    assert tool.state("web")["status"] == "running"


def test_rules_of_a_supervisor_that_was_killed_are_removed(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "--net", "bridge", "-p", "8080:80", "sleep", "1000")
    os.kill(tool.supervisor("web").pid, 9)
    tool("rm", "-f", "web")

    assert nft("list", "tables") == ""
