"""Many containers on one host at a time."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.privileged.tool import DEADLINE, Tool, until

pytestmark = pytest.mark.privileged

AT_A_TIME = 4  # commands; the containers stay
BRIDGE = ("--net", "bridge", "--bridge", "pmtest0")
PORT = 7000
SERVER = f'exec nc -ll -p {PORT} -e echo "$HOSTNAME"'


MANY = pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1200)])


@pytest.mark.parametrize("count", [10, MANY])
def test_many_are_started_listed_reached_and_removed(tool: Tool, count: int) -> None:
    wanted = [f"c{number}" for number in range(count)]

    def run(name: str) -> None:
        tool.run(*BRIDGE, "-d", "--name", name, "--hostname", name, "sh", "-c", SERVER)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(run, wanted))
    listed = json.loads(tool("ps", "--json").stdout)
    addresses = {each["name"]: each["address"].partition("/")[0] for each in listed}
    for name, where in addresses.items():
        until(partial(answers, where, name))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(lambda name: tool("rm", "-f", name), wanted))

    assert sorted(addresses) == sorted(wanted)
    assert {each["status"] for each in listed} == {"running"}
    assert len(set(addresses.values())) == count
    assert json.loads(tool("ps", "-a", "--json").stdout) == []
    assert list((tool.root / "containers").iterdir()) == []


def answers(where: str, name: str) -> bool:
    """Tell whether the container at this address listens already, and says that it is this one."""
    try:
        with socket.create_connection((where, PORT), DEADLINE) as connection:
            return connection.makefile().readline() == f"{name}\n"
    except ConnectionRefusedError:
        return False
