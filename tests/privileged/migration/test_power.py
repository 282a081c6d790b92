"""A target that loses its power, before and after the commit."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.privileged.migration.conftest import IMPATIENT, Counter, counting, small_lab
from tests.privileged.migration.test_crashes import DYING

pytestmark = [pytest.mark.privileged, pytest.mark.criu]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Make a lab for each test, for its hosts do not stay what they were."""
    with small_lab() as lab:
        yield lab


@pytest.fixture
def counter(lab: Lab) -> Counter:
    return counting(lab)


def test_target_without_power_before_the_commit_costs_nothing(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    alpha.run([sys.executable, DYING, "counter", "root@beta", "shipped", "reached"], check=False)
    lab["beta"].power_off()

    settled = alpha.run([sys.executable, IMPATIENT, "recover"], check=False)
    assert [alpha] == [host for host in (alpha,) if counter.status(host) == "running"]
    assert settled.returncode in (0, 50)

    lab.power_on("beta")
    alpha.pymigrate("recover")
    assert [alpha] == counter.running()


def test_lost_target_after_the_commit_needs_a_persons_word(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    alpha.run([sys.executable, DYING, "counter", "root@beta", "committed", "reached"], check=False)
    lab["beta"].power_off()
    (row,) = alpha.pymigrate_json("migrations", "ls")

    refused = alpha.pymigrate("abandon", row["id"], check=False)
    assert 2 == refused.returncode
    assert "paused" == counter.status(alpha)

    alpha.pymigrate("abandon", row["id"], "--target-is-dead")
    assert "running" == counter.status(alpha)
    lab.power_on("beta")
