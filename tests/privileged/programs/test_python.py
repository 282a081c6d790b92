"""A CPython program with one of each kind of state, and what a container keeps of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lab import Client, Lab
from tests.lab.registry import wait_for
from tests.privileged.programs.conftest import Relocate

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

ADDRESS = "10.88.0.24"
MAC = "02:00:5e:10:00:24"
SOURCE = Path(__file__).with_name("specimen.py").read_text()
HOSTNAME = "specimen.example"


def test_python_program_keeps_all_its_state(lab: Lab, relocate: Relocate) -> None:
    options = ("--ip", ADDRESS, "--mac", MAC, "--hostname", HOSTNAME, "-e", "KEPT=yes")
    run = ("run", "-d", "--name", "specimen", *options, "programs", "python3", "-c", SOURCE)
    lab["alpha"].pymigrate(*run)
    with Client(lab.client, "lines", ADDRESS, 7000) as client:
        still = client.ask("still")["value"]
        moving = client.ask("moving")["value"]

        relocate("specimen")

        assert still == client.ask("still")["value"]
        after = client.ask("moving")["value"]
        assert {
            "pipe": "in the pipe",
            "pair": "in the socket",
            "unix": "over a new connection",
            "unlinked": "56789",
            "file": "defghij",
            "mapped": "now",
            "eventfd": 7,
            "child": "to the child and back\n",
            "locked": True,
        } == client.ask("use")["value"]
        later = wait_for_progress(client, moving)
    assert (HOSTNAME, "yes") == (still["hostname"], still["environment"]["KEPT"])
    assert MAC in still["addresses"]
    assert ADDRESS in still["addresses"]
    for clock in ("monotonic", "boottime", "uptime"):
        # Clocks go on from where they were: the time in which the program stood still is left out.
        assert 0 < after[clock] - moving[clock] <= after["wall"] - moving["wall"] + 0.05
        assert later[clock] - after[clock] == pytest.approx(later["wall"] - after["wall"], abs=0.05)
    assert moving["alarms"] <= after["alarms"]


def wait_for_progress(client: Client, before: dict[str, Any]) -> dict[str, Any]:
    """Ask until every thread and the timer have gone on since `before`; return the answer."""
    later: dict[str, Any] = {}

    def progressed() -> bool:
        later.update(client.ask("moving")["value"])
        counts = zip(before["counts"], later["counts"], strict=True)
        return later["alarms"] > before["alarms"] and all(now > then for then, now in counts)

    assert wait_for(progressed, 10), f"not everything goes on: {before} {later}"
    return later
