"""A JVM and a Node.js under load: heaps that are collected, compiled code, many threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, images
from tests.lab.services import IMAGES, RUNTIMES, Heap
from tests.privileged.programs.conftest import by_mode, move_and_back, until_it_says

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
    pytest.mark.long,
]

ADDRESS = "10.88.0.27"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    image = images.bootstrap("runtimes", IMAGES["runtimes"])
    with Lab(("alpha", "beta")) as lab:
        for host in lab.hosts.values():
            images.lend(image, host)
        yield lab


@by_mode()
@pytest.mark.parametrize("program", RUNTIMES)
def test_a_runtime_keeps_its_heap_and_every_connection_under_load(
    lab: Lab, containers: None, program: str, mode: str
) -> None:
    run = ("run", "-d", "--name", program, "--ip", ADDRESS, "runtimes")
    lab["alpha"].pymigrate(*run, *RUNTIMES[program], "2")
    until_it_says(lab["alpha"], program, "ready")
    with Heap(lab.client, ADDRESS, rate=200) as heap:
        move_and_back(lab, program, mode, heap.look)

        heap.end()
