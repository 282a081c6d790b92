"""The demo, as ./demo runs it once the machine is set up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.lab.host import REPOSITORY

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

DEMO = REPOSITORY / "tests" / "lab" / "demo.py"


def test_demo_ends_well() -> None:
    said = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, check=False)

    assert said.returncode == 0, said.stdout + said.stderr
    assert "acknowledged writes lost: 0\n" in said.stdout
    assert "connection: the same\n" in said.stdout
    assert "blackout seen by the client" in said.stdout
    assert "" == said.stderr


def test_demo_gives_its_numbers_as_json() -> None:
    said = subprocess.run(
        [sys.executable, DEMO, "--json", "--mib", "1"], capture_output=True, text=True, check=False
    )

    assert said.returncode == 0, said.stderr
    outcome = json.loads(said.stdout)
    assert 2 == len(outcome["moves"])
    assert all(move["seen"]["longest_gap"] > 0 for move in outcome["moves"])
