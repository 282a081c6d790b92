"""Memory that goes by several connections in turn: all of it arrives, whichever of them is cut."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pymigrate.migrate.wanted_sender import PROCESS_NAME as LANE_NAME
from tests.lab import Host, Lab
from tests.privileged.migration.conftest import IMPATIENT, Counter
from tests.privileged.migration.test_lane import ONE, dropped, firewall
from tests.privileged.migration.test_modes import NOISE, intact, lanes, memory

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
]
__all__ = ["memory"]


@pytest.mark.parametrize("mode", ["pre", "post", "hybrid"])
def test_a_container_moves_by_three_connections_with_all_its_memory(
    lab: Lab, memory: None, mode: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]

    there = alpha.pymigrate_json("migrate", "memory", "root@beta", "--mode", mode, "--streams", "3")

    assert ("tls", 3) == (there["data"], there["streams"])
    assert there["bytes_sent"] > 4 << 20
    assert intact(beta, "there")
    assert not lanes(alpha)
    back = beta.pymigrate_json("migrate", "memory", "root@alpha", "--mode", mode, "--streams", "8")
    assert 8 == back["streams"]
    assert intact(alpha, "back")
