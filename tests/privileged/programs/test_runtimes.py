"""A JVM and a Node.js under load: heaps that are collected, compiled code, many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import Client, Lab, images
from tests.privileged.programs.conftest import by_mode, move_and_back

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
    pytest.mark.long,
]

ADDRESS = "10.88.0.27"
PACKAGES = ("default-jdk-headless", "nodejs")
CONNECTIONS = 4
HERE = Path(__file__).parent
JAVA = 'printf %s "$0" > /tmp/Load.java; exec java -Xmx256m -XX:+UseG1GC /tmp/Load.java'
PROGRAMS = {"java": ("sh", "-c", JAVA), "node": ("node", "-e")}
SOURCES = {"java": HERE / "Load.java", "node": HERE / "load.js"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    image = images.bootstrap("runtimes", PACKAGES)
    with Lab(("alpha", "beta")) as lab:
        for host in lab.hosts.values():
            images.lend(image, host)
        yield lab


@by_mode()
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_runtime_keeps_its_heap_and_every_connection_under_load(
    lab: Lab, containers: None, program: str, mode: str
) -> None:
    command = (*PROGRAMS[program], SOURCES[program].read_text())
    alpha = lab["alpha"]
    alpha.pymigrate("run", "-d", "--name", program, "--ip", ADDRESS, "runtimes", *command)
    alpha.sh(f"until pymigrate logs {program} | grep -q ready; do sleep 0.1; done", timeout=120)
    with ExitStack() as stack:
        asker = stack.enter_context(Client(lab.client, "lines", ADDRESS, 7001))
        loads = [
            stack.enter_context(Client(lab.client, "echo", ADDRESS, 7000, "--rate", "200"))
            for _ in range(CONNECTIONS)
        ]
        began = asker.ask("state")["value"]

        def used() -> None:
            for load in loads:
                while not load.ask("moved")["answers"]:
                    pass  # the client itself gives up, with an error, when nothing comes
            state = asker.ask("state")["value"]
            assert 0 == state["damaged"]
            assert began["pid"] == state["pid"]
            assert began["entries"] == state["entries"]

        move_and_back(lab, program, mode, used)

        said = [load.finish() for load in loads]
        ended = asker.ask("state")["value"]
    # Each answer was given once, by the one program.
    assert ended["served"] == sum(each["answers"] for each in said)
