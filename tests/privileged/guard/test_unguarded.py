"""A checkpoint that is killed leaves a container that `resume` lets go on, with its network."""

from __future__ import annotations

import sys

import pytest

from tests.lab import Client, Lab
from tests.privileged.migration.conftest import ADDRESS, PORT, counting, small_lab

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

KILLED_IN_THE_DUMP = """
import os, signal
from pathlib import Path
from pymigrate.checkpoint import dump
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host

container = Container.open(Host.open(Path(os.environ["PYMIGRATE_ROOT"])), "counter")
images = Path("/srv/images")
images.mkdir()
container.freeze()
container.unplug()
held = dump.hold(container, images, DumpOptions())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_resume_settles_a_checkpoint_that_was_killed() -> None:
    with small_lab() as lab:
        check(lab)


def check(lab: Lab) -> None:
    alpha = lab["alpha"]
    counter = counting(lab)
    with Client(lab.client, "echo", ADDRESS, PORT) as echo:
        alpha.run([sys.executable, "-c", KILLED_IN_THE_DUMP], check=False)
        assert "paused" == counter.status(alpha)

        alpha.pymigrate("resume", "counter")

        assert "running" == counter.status(alpha)
        while not echo.ask("resumed")["answers"]:
            pass  # the client itself gives up, with an error, when nothing comes
        echo.finish()
